from __future__ import annotations

import json
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from t2ictl.errors import BadSetting
from t2ictl.shapes import instrument, instrument_id, model_path


def test_the_instrument_is_the_recorded_one() -> None:
    """World, judge and weights are frozen; the error says what to do after a change."""
    instrument.check_instrument()


def test_id_names_version_and_parts() -> None:
    hashes = instrument.instrument_hashes()
    assert set(hashes) == {"world", "judge", "weights"}
    assert all(len(digest) == 64 for digest in hashes.values())
    expected = ", ".join(f"{part} {digest[:8]}" for part, digest in hashes.items())
    assert instrument_id() == f"shapes {instrument.INSTRUMENT_VERSION} ({expected})"


@pytest.mark.parametrize("part", ["world", "judge", "weights"])
def test_a_change_without_a_new_version_is_refused(part: str, tmp_path: Path) -> None:
    path = tmp_path / "instrument.json"
    with pytest.raises(BadSetting, match="--record"):
        instrument.check_instrument(path)
    instrument.record(path)
    instrument.record(path)  # the same once more is no change
    instrument.check_instrument(path)
    entries, version = json.loads(path.read_text(encoding="utf-8")), instrument.INSTRUMENT_VERSION
    assert entries == {version: instrument.instrument_hashes()}
    frozen = {version: {**entries[version], part: "0" * 64}}  # of what is installed, this part is another one
    path.write_text(json.dumps(frozen), encoding="utf-8")
    before = path.read_bytes()
    for refuse in (instrument.check_instrument, instrument.record):
        with pytest.raises(BadSetting, match=f"The {part} of the instrument changed.*INSTRUMENT_VERSION"):
            refuse(path)
    assert path.read_bytes() == before
    older = {"older": frozen[version]}  # as after the version was raised
    path.write_text(json.dumps(older), encoding="utf-8")
    instrument.record(path)
    instrument.check_instrument(path)
    assert json.loads(path.read_text(encoding="utf-8")) == older | entries


def test_any_byte_and_any_name_of_the_weights_counts(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path(), tmp_path / "model"))
    digests = [instrument.weights_digest(folder)]
    assert digests[0] == instrument.instrument_hashes()["weights"]
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    digests.append(instrument.weights_digest(folder))
    (folder / "model_index.json").rename(folder / "other.json")
    digests.append(instrument.weights_digest(folder))
    assert len(set(digests)) == 3


def copied(folder: Path, *names: str) -> ModuleType:
    """The module from a folder of its own, beside copies of the sources that it hashes."""
    folder.mkdir()
    for name in ("instrument.py", *names, *instrument.WORLD_FILES, *instrument.JUDGE_FILES):
        shutil.copy(Path(instrument.__file__).with_name(name), folder)
    spec = spec_from_file_location("copied_instrument", folder / "instrument.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_words_and_line_ends_do_not_count_and_all_code_does(tmp_path: Path) -> None:
    harmless = ((b"\n", b"\r\n"), (b'"""The ', b'"""Another '), (b"from __future__", b"# a comment\nfrom __future__"))
    found = [instrument.instrument_hashes()]
    for number, (old, new) in enumerate((*harmless, (b"return ", b"return 0 or "))):
        module = copied(tmp_path / str(number), "instrument.json")
        path = tmp_path / str(number) / "world.py"
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
        found.append(module.instrument_hashes())
    assert found[1:4] == [found[0]] * 3
    assert {part for part, digest in found[4].items() if digest != found[0][part]} == {"world"}


def test_command_says_whether_it_is_frozen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = copied(tmp_path / "shapes")  # without a record
    assert module.main([]) == 1
    assert module.main(["--record"]) == 0
    assert module.main([]) == 0
    assert capsys.readouterr().out.count(module.instrument_id()) == 3
    assert json.loads((tmp_path / "shapes" / "instrument.json").read_text()).keys() == {instrument.INSTRUMENT_VERSION}

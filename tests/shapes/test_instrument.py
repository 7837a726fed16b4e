from __future__ import annotations

import json
import shutil
from pathlib import Path

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
def test_a_change_without_a_new_version_is_refused(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "instrument.json"
    with pytest.raises(BadSetting, match="--record"):
        instrument.check_instrument(path)
    instrument.record(path)
    instrument.record(path)  # the same once more is no change
    instrument.check_instrument(path)
    before = path.read_bytes()
    changed = {**instrument.instrument_hashes(), part: "0" * 64}
    monkeypatch.setattr(instrument, "instrument_hashes", lambda: changed)
    for refuse in (instrument.check_instrument, instrument.record):
        with pytest.raises(BadSetting, match=f"The {part} of the instrument changed.*INSTRUMENT_VERSION"):
            refuse(path)
    assert path.read_bytes() == before
    old = instrument.INSTRUMENT_VERSION
    monkeypatch.setattr(instrument, "INSTRUMENT_VERSION", "next")
    instrument.record(path)
    instrument.check_instrument(path)
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert list(entries) == [old, "next"]
    assert entries[old] == json.loads(before)[old]


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


def test_line_ends_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instrument, "__file__", str(tmp_path / "instrument.py"))
    (tmp_path / "world.py").write_bytes(b"a = 1\n")
    unix = instrument._digest(instrument._sources(("world.py",)))
    (tmp_path / "world.py").write_bytes(b"a = 1\r\n")
    assert instrument._digest(instrument._sources(("world.py",))) == unix
    (tmp_path / "world.py").write_bytes(b"a = 2\n")
    assert instrument._digest(instrument._sources(("world.py",))) != unix


def test_command_says_whether_it_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "instrument.json"
    monkeypatch.setattr(instrument.check_instrument, "__defaults__", (path,))
    monkeypatch.setattr(instrument.record, "__defaults__", (path,))
    assert instrument.main([]) == 1
    assert instrument.main(["--record"]) == 0
    assert instrument.main([]) == 0
    assert capsys.readouterr().out.count(instrument_id()) == 3

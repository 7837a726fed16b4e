"""Small parts of the page: escaping, colors, presets, memory, and how it is started."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from PIL import Image

import t2ictl
from t2ictl import Request
from t2ictl.app.engine.editor import Editor
from t2ictl.app.engine.memory import ModelFacts, estimate, facts_of, report
from t2ictl.app.engine.work import JobRequest
from t2ictl.app.images import LEGEND, data_uri, difference
from t2ictl.app.launch import OPTIONS, new_editor, serve
from t2ictl.app.settings import examples, presets, what_changed
from t2ictl.app.text import plain
from t2ictl.app.views.inspect import short_names
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting
from t2ictl.maps.figures import COLORS
from t2ictl.session.checkpoints import Checkpointing
from t2ictl.shapes import model_path
from tests.tiny import sd

HOSTILE = [
    "# heading", "*a* _b_ **c**", "[x](http://y)", "![x](http://y/z.png)", "<script>alert(1)</script>", ":red[x]",
    ":material/home:", "$x^2$", "a\n\n- b", "`code`", "| a | b |", "~~x~~", ":smile:", "\\*", "&lt;b&gt;", "1. x",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_users_are_shown_as_they_are(text: str) -> None:
    found = plain(text)
    assert re.sub(r"\\(.)", r"\1", found) == " ".join(text.split())  # nothing is lost
    special = r"\\`*_{}[]()#+-.!|<>~$:&^="
    assert not re.search(rf"(?<!\\)(?:\\\\)*[{re.escape(special.replace(chr(92), ''))}]", found)


def test_terms_of_losses_have_short_names_unless_two_controls_share_one() -> None:
    assert short_names({"a_star.overlap", "a_star.retention"}) == {
        "a_star.overlap": "overlap",
        "a_star.retention": "retention",
    }
    names = {"attend_and_excite.presence", "self_cross.presence", "self_cross.conflict", "whole"}
    assert short_names(names) == {
        "attend_and_excite.presence": "attend_and_excite.presence",
        "self_cross.presence": "self_cross.presence",
        "self_cross.conflict": "conflict",
        "whole": "whole",
    }


def test_files_of_a_model_are_read_once_for_the_estimate(tmp_path: Path) -> None:
    model = Path(shutil.copytree(model_path(), tmp_path / "models" / "shapes"))
    editor = Editor([tmp_path / "models"], folder=tmp_path / "results", work=lambda job: None)
    try:
        wanted = JobRequest(model=str(model.resolve()), request=Request(prompt="a circle"), controls=(), compare=False)
        first = editor.estimate(wanted, 2)
        for path in model.glob("*/*"):
            path.unlink()  # whoever reads them again finds nothing
        assert first is not None and editor.estimate(wanted, 2) == first
    finally:
        editor.close()


def test_long_texts_are_cut_with_a_sign() -> None:
    assert plain("x" * 300, 10) == "x" * 9 + "…" and plain("x" * 10, 10) == "x" * 10


def test_the_legend_has_the_colors_of_heat_maps() -> None:
    assert LEGEND == f"linear-gradient(to right, {', '.join(COLORS)})"


def test_difference_and_address() -> None:
    one, other = Image.new("RGB", (4, 2), (10, 20, 30)), Image.new("RGB", (4, 2), (13, 10, 30))
    found = difference(one, other)
    assert found.getpixel((0, 0)) == (3, 10, 0) and difference(one, one).getbbox() is None
    content = base64.b64decode(data_uri(found).partition(",")[2])
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == (3, 10, 0)


@pytest.mark.parametrize("name", t2ictl.list_controls())
def test_presets_are_good_settings_of_their_control(name: str) -> None:
    for preset in presets(name):
        assert t2ictl.control_from_dict({**preset.settings, "control": name}, files=False) and preset.about.endswith(
            "."
        )
    assert len({preset.name for preset in presets(name)}) == len(presets(name))


def test_presets_belong_to_controls_and_none_are_looked_for_elsewhere() -> None:
    files = {path.stem for path in (Path(t2ictl.__file__).parent / "app" / "preset_files").glob("*.json")}
    assert files <= set(t2ictl.list_controls()) and presets("../examples") == () and presets("no_such") == ()


def test_examples_can_be_used() -> None:
    assert len(examples()) >= 3
    for example in examples():
        assert example.recipe.controls and not example.recipe.notes and example.recipe.model == "shapes"


def test_what_a_preset_changes_is_said() -> None:
    assert what_changed(
        {"a": 1, "b": "x"}, {"a": 1, "c": {"d": 2}}
    ) == r"b x → default; c default → \{\"d\"\: 2\}".replace(r"\"", '"')
    assert what_changed({"a": 1}, {"a": 1}) == ""


def test_facts_of_a_folder_are_those_of_the_loaded_model() -> None:
    facts = facts_of(model_path())
    pipe = t2ictl.load("shapes", device="cpu")
    modules = (pipe.unet, pipe.vae, pipe.text_encoder)
    loaded = sum(each.numel() * 4 for module in modules for each in module.parameters())
    assert (
        facts.family == "sd" and facts.cells == pipe.unet.config.sample_size and facts.factor == pipe.vae_scale_factor
    )
    assert loaded == pytest.approx(facts.weights, rel=0.001)


def test_of_several_formats_one_is_counted(tmp_path: Path) -> None:
    sd().save_pretrained(tmp_path)
    once = facts_of(tmp_path).weights
    for path in list(tmp_path.glob("*/*.safetensors")):
        (path.parent / f"{path.stem}.fp16.safetensors").write_bytes(path.read_bytes())
        (path.parent / "pytorch_model.bin").write_bytes(b"0" * 1000)
    assert facts_of(tmp_path).weights == once > 0
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(BadSetting, match="how large"):
        facts_of(tmp_path)


def test_the_estimate_follows_what_is_asked_for() -> None:
    facts = ModelFacts(family="sdxl", weights=4000, unet_width=320, decoder_width=256, cells=128, factor=8)
    asked = Request(prompt="x", steps=10)

    def work(moves: bool = False, way: Checkpointing = "off") -> int:
        found = estimate(facts, asked, moves=moves, guided=True, words=3, bytes_each=2, checkpointing=way)
        return found.work

    # The counted bytes of one update at 1024 x 1024, and those of the decoder where it takes more.
    assert work(moves=True) == pytest.approx(3.66 * 2**30, rel=0.01)
    assert work(moves=True, way="feed_forward") == pytest.approx(1.86 * 2**30, rel=0.01)
    assert work(moves=True, way="all") == 1.5 * 2**30 > 1.10 * 2**30
    assert work(moves=True, way="block") == work(moves=True, way="all")
    assert work() < work(moves=True)
    half = estimate(facts, Request(prompt="x", width=512, height=512), moves=True, guided=True, words=3, bytes_each=2)
    assert half.work == pytest.approx(work(moves=True) / 4, rel=1e-6) and half.weights == 2000
    assert half.total == half.weights + half.work + half.maps


def test_memory_is_reported() -> None:
    found = report("cpu")
    assert found.device == "CPU" and 0 < found.used < found.total and 0 < found.free <= found.total


def test_options_reach_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd().save_pretrained(tmp_path / "mine")
    monkeypatch.setenv(OPTIONS, json.dumps({"models": [str(tmp_path)], "device": "cpu", "dtype": "bfloat16"}))
    editor = new_editor()
    try:
        assert [model.name for model in editor.found()][:: len(editor.found()) - 1] == ["shapes (embedded)", "mine"]
        assert editor.models.dtype == "bfloat16" and editor.models.device == "cpu"
    finally:
        editor.close()


def test_bad_options_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments in (
            ["--port", port], ["--port", "99999"], ["--models", str(tmp_path / "none")], ["--device", "moon"],
            ["--dtype", "int3"], ["--checkpointing", "some"],
        ):  # fmt: skip
            assert main(["app", "--headless", *arguments]) == 2
            said = capsys.readouterr().err
            assert said.startswith("t2ictl: ") and len(said.splitlines()) == 1


def test_streamlit_is_started_on_this_machine_only_and_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.web import cli

    seen: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda arguments, **_: seen.append(arguments))
    monkeypatch.setenv(OPTIONS, "{}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert serve(port, [], checkpointing="all", is_headless=True) == 0
    assert json.loads(os.environ[OPTIONS])["checkpointing"] == "all"
    (arguments,) = seen
    assert Path(arguments[1]).name == "streamlit_app.py" and Path(arguments[1]).is_file()
    assert {
        "--server.address=localhost",
        "--browser.gatherUsageStats=false",
        "--server.showEmailPrompt=false",
        f"--server.port={port}",
    } <= set(arguments)


def test_the_first_model_of_a_page_needs_nothing(tmp_path: Path) -> None:
    editor = Editor(folder=tmp_path, work=lambda job: None)
    try:
        assert editor.found()[0].source == "shapes" and editor.memory().dtype == ""
    finally:
        editor.close()

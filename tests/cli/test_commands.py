"""The command line: files, JSON on stdout, one line on stderr and the exit status for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from PIL import Image

from t2ictl.controls.registry import list_controls
from t2ictl.settings.files import read_settings

PROMPT = "a red circle and a blue square"
Run = Callable[..., tuple[int, str, str]]


def options(model: str) -> tuple[str, ...]:
    return ("--model", model, "--steps", "2", "--size", "64x48", "--device", "cpu")


def test_generate_writes_an_image_that_can_be_made_again(run: Run, model: str, tmp_path: Path) -> None:
    chosen = ("--control", "attention_segregation", "--set", "attention_segregation.step.size=5")
    status, out, _ = run("generate", PROMPT, *chosen, *options(model), "--seed", "7", "--out", "a.png")
    assert (status, out.split()) == (0, ["a.png"])
    settings = read_settings("a.png")
    assert settings["request"]["seed"] == 7 and settings["controls"][0]["step"]["scale"] == 5
    assert Image.open("a.png").size == (64, 48)
    status, _, _ = run("generate", "--from", "a.png", "--model", model, "--out", "b.png")
    assert status == 0 and Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_checkpointing_reaches_the_session_and_leaves_the_file_as_it_is(run: Run, model: str, ways: list[str]) -> None:
    chosen = ("--control", "attention_segregation", *options(model))
    assert run("generate", PROMPT, *chosen, "--out", "a.png")[0] == 0
    assert run("generate", PROMPT, *chosen, "--checkpointing", "all", "--out", "b.png")[0] == 0
    assert ways == ["off", "all"]
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_compare_puts_the_plain_image_beside(run: Run, model: str) -> None:
    chosen = ("--control", "attention_segregation", "--compare", "--json")
    status, out, _ = run("generate", PROMPT, *chosen, *options(model), "--out", "a.png")
    summary = json.loads(out)
    assert status == 0 and summary["updates"] == 2
    assert summary["cost"]["extra_forwards"] == 2 and summary["cost"]["forwards"] == 4
    assert read_settings(summary["plain"][0])["controls"] == []
    assert Image.open(summary["compare"][0]).width > 2 * 64
    assert Image.open("a.png").tobytes() != Image.open("a.plain.png").tobytes()


def test_maps_writes_values_on_one_scale(run: Run, model: str) -> None:
    status, _, _ = run("maps", PROMPT, "--words", "circle, blue square", *options(model), "--out", "words")
    data = json.loads(Path("words/maps.json").read_text())
    assert status == 0 and list(data["maps"]) == ["circle", "blue square"]
    assert len(data["maps"]["circle"]) == 12 and len(data["maps"]["circle"][0]) == 16
    assert all(0 <= value <= 1 for rows in data["maps"].values() for row in rows for value in row)
    assert {path.name for path in Path("words").iterdir()} == {"image.png", "maps.png", "maps.json", "maps.html"}


def test_controls_lists_every_control_and_every_field(run: Run) -> None:
    status, out, _ = run("controls")
    assert status == 0 and all(name in out for name in list_controls())
    _, out, _ = run("controls", "attention_segregation", "--json")
    fields = json.loads(out)["attention_segregation"]["fields"]["properties"]
    assert fields["strength"]["maximum"] == 5 and all(each.get("description") for each in fields.values())


def test_doctor_runs_every_kernel_once(run: Run) -> None:
    status, out, _ = run("doctor", "--json")
    findings = {each["name"]: each for each in json.loads(out)}
    assert status == 0
    assert findings["math float32 on cpu"]["works"] and "ran, off by" in findings["math float32 on cpu"]["detail"]
    assert findings["shapes"]["works"] and findings["grammar"]["works"]


@pytest.mark.usefixtures("stand_ins")
def test_doctor_tries_every_embedded_model(run: Run) -> None:
    findings = [each for each in json.loads(run("doctor", "--json")[1]) if each["topic"] == "model"]
    assert [each["name"] for each in findings] == ["shapes", "shapes-clip", "shapes-dit"]
    assert all(each["works"] and "64 x 64" in each["detail"] for each in findings)


def test_doctor_believes_no_kernel(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.nn.functional as F

    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: v * 0)
    status, out, _ = run("doctor", "--json")
    wrong = next(each for each in json.loads(out) if each["name"] == "math float32 on cpu")
    assert status == 1 and not wrong["works"] and "is off by" in wrong["detail"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "must be a prompt or --from"),
        (["generate", PROMPT, "--control", "nope"], "no control 'nope'"),
        (["generate", PROMPT, "--size", "6x"], "not WIDTHxHEIGHT"),
        (["generate", PROMPT, "--model", "/nowhere"], "no model '/nowhere'"),
        (["generate", PROMPT, "--device", "warp"], "no device 'warp'"),
        (["generate", PROMPT, "--dtype", "int4"], "no precision 'int4'"),
        (["generate", PROMPT, "--checkpointing", "some"], "checkpointing cannot be 'some'"),
        (["generate", PROMPT, "--out", "nowhere/a.png"], "does not exist"),
        (["generate", PROMPT, "--out", "a.jpg"], "a.jpg"),
        (["generate", PROMPT, "--set", "attention_segregation.strength=1"], "not used"),
        (["generate", PROMPT, "--control", "attend_and_excite", "--control", "attend_and_excite"], "given twice"),
        (["generate", PROMPT, "-c", "attention_segregation", "--set", "attention_segregation.strength=9"], "strength"),
        (["generate", PROMPT, "-c", "attention_segregation", "--set", "attention_segregation.nope=1"], "nope"),
        (["generate", PROMPT, "-c", "attention_segregation", "--set", "strength"], "control.field=value"),
        (["generate", "--from", "nowhere.png"], "nowhere.png"),
        (["maps", PROMPT, "--words", "dog"], "dog"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Run, model: str, arguments: list[str], message: str) -> None:
    if "--model" not in arguments and len(arguments) > 1:
        arguments = [*arguments, "--model", model]
    status, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("t2ictl: ")]
    assert status == 2 and out == ""
    assert len(lines) == 1 and message in lines[0]


def test_a_bad_output_is_found_before_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded for nothing")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", unwanted)
    assert run("generate", PROMPT, "--out", "nowhere/a.png")[0] == 2
    assert run("generate", PROMPT, "--out", "a.jpg")[0] == 2
    assert run("maps", PROMPT, "--out", "nowhere/maps")[0] == 2
    assert run("generate", PROMPT, "-c", "nope")[0] == 2


def test_an_unknown_option_and_no_command(run: Run) -> None:
    assert run("generate", PROMPT, "--sede", "3")[0] == 2
    assert run("--version")[1].strip().count(".") == 2

"""Runs, evaluations and studies of the embedded models beside ``shapes``, with untrained weights in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from t2ictl.benchmarks.embedded import as_measured, identity, open_model
from t2ictl.benchmarks.runs.plan import make_plan
from t2ictl.benchmarks.shapes.evaluate import evaluate, sheet
from t2ictl.benchmarks.studies import composition
from t2ictl.benchmarks.studies.token_flow import run as token_flow
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting
from t2ictl.settings.files import read_settings
from t2ictl.shapes import MODELS, EmbeddedModel, embedded, instrument_id, model_path
from tests.benchmarks.runs import bench

LENGTH = {"max_sequence_length": 24}
ARMS = "plain,linguistic_binding,random:linguistic_binding,best-of-2,best-of-2:linguistic_binding"
FEWER = ("--limit", "2", "--seeds", "1")


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of text rows of all passes of transformers so far."""
    from diffusers import SD3Transformer2DModel

    seen: list[int] = []
    forward = SD3Transformer2DModel.forward

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["encoder_hidden_states"].shape[1])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SD3Transformer2DModel, "forward", note)
    return seen


@pytest.mark.usefixtures("stand_ins")
def test_a_run_names_its_model_and_its_images_come_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert bench(run, "--model", "shapes-dit", *FEWER, arms=ARMS) == 0
    line = instrument_id("shapes-dit")
    assert f"instrument {line}" in capsys.readouterr().out
    manifest = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    assert manifest["instrument"] == line and manifest["arguments"] == LENGTH
    rows = pd.read_parquet(run / "results.parquet")
    assert len(rows) == 10 and set(rows["status"]) == {"ok"}
    moved = {row.arm for row in rows.itertuples() if len(row.lengths)}
    assert moved == {"linguistic_binding", "random:linguistic_binding"}
    image = sorted((run / "images" / "linguistic_binding").glob("*.png"))[0]
    settings = read_settings(image)
    assert settings["pipeline"] == {"model": "shapes-dit"} and settings["arguments"] == LENGTH
    again = tmp_path / "again.png"
    assert main(["generate", "--from", str(image), "--device", "cpu", "--out", str(again)]) == 0
    assert read_settings(again)["pipeline"]["model"] == "shapes-dit"


@pytest.mark.usefixtures("stand_ins")
def test_a_run_on_the_unet_on_clip(tmp_path: Path) -> None:
    assert bench(tmp_path / "run", "--model", "shapes-clip", *FEWER, arms="plain,structured_guidance") == 0
    manifest = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert manifest["instrument"] == instrument_id("shapes-clip") and "arguments" not in manifest


def test_the_model_of_somebody_else_lends_its_weights_to_no_instrument(tmp_path: Path) -> None:
    from tests.tiny import sd

    sd().save_pretrained(tmp_path / "mine")
    assert bench(tmp_path / "run", "--model", str(tmp_path / "mine"), *FEWER, arms="plain") == 0
    manifest = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert manifest["instrument"] == instrument_id(None) and "weights" not in manifest["instrument"]


@pytest.mark.usefixtures("only_shapes")
def test_a_run_on_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path / "run", "--model", "shapes-dit", arms="plain") == 2
    assert "weights of the embedded model 'shapes-dit'" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(BadSetting, match="shapes-clip"):
        evaluate.main(["--model", "shapes-clip"])


def test_steps_and_guidance_are_those_of_the_model_unless_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = EmbeddedModel(about="", pipeline="StableDiffusion3Pipeline", steps=28, guidance=5.0)
    monkeypatch.setitem(embedded.MODELS, "shapes-dit", other)
    plan = make_plan({"model": "shapes-dit"})
    assert (plan.steps, plan.guidance) == (28, 5.0)
    plan = make_plan({"model": "shapes-dit", "steps": 4})
    assert (plan.steps, plan.guidance) == (4, 5.0)
    for model in ("shapes", "owner/model"):
        assert (make_plan({"model": model}).steps, make_plan({"model": model}).guidance) == (20, 3.0)
    file = tmp_path / "plan.yaml"
    file.write_text("arms: [plain]\nsteps: 6")
    from t2ictl.benchmarks.commands import _plan

    changed = _plan(file, {"model": "shapes-dit"}, None)
    assert (changed.steps, changed.guidance, dict(changed.arms)) == (6, 5.0, {"plain": None})


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("model", ["shapes-clip", "shapes-dit", "folder"])
def test_evaluation_takes_a_name_or_a_folder(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], lengths: list[int]
) -> None:
    if model == "folder":
        (tmp_path / "checkpoint").symlink_to(model_path("shapes-dit"))
        model = str(tmp_path / "checkpoint")
    assert evaluate.main(["--model", model, "--prompts", "2", "--steps", "2", "--kinds", "pair"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{identity(model)}, split tune") and "2 steps, guidance 3" in said
    assert set(lengths) == (set() if model == "shapes-clip" else {48})
    assert ("no version" in said) == (model not in MODELS)


@pytest.mark.usefixtures("stand_ins")
def test_a_sheet_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int]) -> None:
    monkeypatch.setattr(sheet, "MIX", {"pair": 2})
    assert sheet.main(["--model", "shapes-dit", "--steps", "1", "--out", str(tmp_path / "sheet")]) == 0
    assert len(json.loads((tmp_path / "sheet.json").read_text())) == 2 and set(lengths) == {48}


@pytest.mark.usefixtures("stand_ins")
def test_pairs_of_controls_that_act_on_the_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    import t2ictl

    names = ("attention_segregation", "attend_and_excite", "token_merging")
    chosen = {name: cls for name, cls in t2ictl.list_controls().items() if name in names}
    monkeypatch.setattr(t2ictl, "list_controls", lambda: chosen)
    found = list(composition.pairs(open_model("shapes-dit")))
    assert {name for one, other, _ in found for name in (one, other)} == {"attention_segregation", "attend_and_excite"}


@pytest.mark.usefixtures("stand_ins")
def test_token_flow_names_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(token_flow, "STEPS", 1)
    options = ["--out", str(tmp_path), "--part", "round", "--prompts", "1", "--seeds", "1", "--model", "shapes-clip"]
    assert token_flow.main(options) == 0
    assert token_flow.main([*options[:2], "--table"]) == 0
    assert instrument_id("shapes-clip") in capsys.readouterr().out


def test_options_of_measuring_are_filled_in() -> None:
    import argparse

    made = as_measured(argparse.Namespace(model="shapes-dit", steps=None, guidance=0.0))
    assert (made.steps, made.guidance) == (MODELS["shapes-dit"].steps, 0.0)
    assert torch.get_num_threads() == 1

"""``t2ictl.flow`` whole, on tiny pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import t2ictl
from t2ictl.errors import BadSetting, Cancelled, NotRecorded, SpanNotFound, UnsupportedPipeline
from t2ictl.processors import TokenFlow
from t2ictl.processors.token_flow.items import Item
from tests.processors.token_flow.flow_cases import PROMPT, SMALL, BrightnessJudge
from tests.tiny import sd, sd2, sdxl
from tests.tiny_transformers import sd3

families = pytest.mark.parametrize("build", [sd, sd2, sdxl])


# -- the verb -----------------------------------------------------------------------------------------------------


@families
def test_flow_runs_on_every_family(build: Any, tmp_path: Path) -> None:
    pipe = build()
    processors = dict(pipe.unet.attn_processors)
    items = [Item(words="circle", swap="ring"), Item(words="square", senses={"circle": "heart"})]
    operators = ("clean_pad", "encoder_mask", "drop")
    result = t2ictl.flow(pipe, PROMPT, items, judge=BrightnessJudge(), operators=operators, **SMALL)
    assert result.scores is not None and set(result.scores.questions) == {"circle", "square", "heart"}
    assert {cell.text for cell in result.tokens} == {"circle", "square"}
    assert set(result.tokens[0].necessity) == set(operators)
    assert {(c.target, c.source, c.form) for c in result.leaks} == {
        ("circle", "square", "presence"),
        ("square", "circle", "presence"),
        ("square", "circle", "sense"),
    }
    assert result.leak("square", "circle").form == "sense" and result.leak("square", "circle").total is not None
    assert all(values.shape == (2, 3) for values in result.scores.by_condition.values())
    assert result.record.map("circle").max() > 0
    json.dumps(result.to_dict(), allow_nan=False)
    page = result.save(tmp_path / "report")
    assert page.is_file() and json.loads((tmp_path / "report/report.json").read_text())["schema"] == 1
    assert all(pipe.unet.attn_processors[name] is each for name, each in processors.items())


def test_depths_are_conditions_of_their_own() -> None:
    result = t2ictl.flow(sd(), PROMPT, judge=BrightnessJudge(), depths=(0.0, 1.0), **SMALL)
    assert result.scores is not None
    by_condition = result.scores.by_condition
    assert (by_condition["depth:1.00"] == by_condition["full"]).all()
    assert (by_condition["depth:0.00"] != by_condition["full"]).any()
    with pytest.raises(BadSetting, match="shares of the encoder's layers"):
        t2ictl.flow(sd(), PROMPT, depths=(2.0,), **SMALL)


def test_an_encoder_that_reads_both_ways_has_no_impossible_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2ictl.families.stable_diffusion import StableDiffusionAdapter

    monkeypatch.setattr(StableDiffusionAdapter, "text_is_causal", False)
    result = t2ictl.flow(sd(), PROMPT, judge=BrightnessJudge(), **SMALL)
    assert all(cell.is_possible for cell in result.screen) and all(cell.is_possible for cell in result.leaks)


def test_without_a_judge_there_are_screen_and_maps_only(tmp_path: Path) -> None:
    result = t2ictl.flow(sd(), PROMPT, **SMALL)
    assert [item.words for item in result.items] == ["circle", "square"]
    assert result.screen and result.record.steps == 2 and not result.leaks and result.scores is None
    assert result.fix is None
    with pytest.raises(NotRecorded, match="No leak of 'circle' into 'square' was measured"):
        result.leak("square", "circle")
    assert "Nothing was judged" in result.save(tmp_path / "r").read_text(encoding="utf-8")


def test_an_analysis_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> bool:
        return False

    wanted: dict[str, Any] = {"judge": BrightnessJudge(), "folder": tmp_path / "cells", **SMALL}
    with pytest.raises(Cancelled):
        t2ictl.flow(sd(), PROMPT, on_batch=stop, **wanted)
    assert len(list((tmp_path / "cells").iterdir())) == 4
    result = t2ictl.flow(sd(), PROMPT, **wanted)
    fresh = t2ictl.flow(sd(), PROMPT, **{**wanted, "folder": None})
    assert result.reused >= 4 and fresh.reused == 0 and result.scores is not None and fresh.scores is not None
    assert result.scores.to_dict() == fresh.scores.to_dict()


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"items": ["heart"]}, SpanNotFound, "heart"),
        ({"judge": "oracle"}, BadSetting, "no judge 'oracle'"),
        ({"judge": "shapes", "items": ["cat"], "prompt": "a cat"}, BadSetting, "does not know 'cat'"),
        ({"operators": ("guess",)}, BadSetting, "clean_pad"),
        ({"seeds": 0}, BadSetting, "seeds=0"),
        ({"steps": 0}, BadSetting, "steps"),
    ],
)
def test_bad_input_is_refused_before_any_image(settings: Any, error: type[Exception], match: str) -> None:
    pipe = sd()
    pipe.unet.forward = None  # it must not be called
    wanted = {**SMALL, **settings}
    with pytest.raises(error, match=match):
        t2ictl.flow(pipe, wanted.pop("prompt", PROMPT), **wanted)


def test_a_transformer_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedPipeline, match="TokenFlow needs encoders.* which pipelines of the family 'sd3'"):
        t2ictl.flow(sd3(), PROMPT, **SMALL)


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_a_judge_that_gives_no_probabilities_is_refused(value: float) -> None:
    class Wrong(BrightnessJudge):
        """Says anything."""

        def __call__(self, images: Any, things: Any) -> Any:
            return super().__call__(images, things) * 0 + value

    with pytest.raises(BadSetting, match="gives probabilities"):
        t2ictl.flow(sd(), PROMPT, judge=Wrong(), **SMALL)


def test_fix_is_the_control_that_was_confirmed() -> None:
    from dataclasses import replace

    from t2ictl.processors.token_flow.analysis.repair import Candidate, RepairOutcome

    outcome = RepairOutcome(
        target="square",
        source="circle",
        form="sense",
        accepted=True,
        reason="",
        chosen=Candidate(how="pairwise", strength=0.5, special="masked"),
    )
    result = replace(t2ictl.flow(sd(), PROMPT, **SMALL), repairs=(outcome,))
    assert result.fix == TokenFlow(
        items=("square",), sources=("circle",), how="pairwise", strength=0.5, special="masked", pooled="masked"
    )


# -- the command --------------------------------------------------------------------------------------------------


def test_seeds_that_confirm_have_chosen_nothing() -> None:
    from t2ictl.generation import Request
    from t2ictl.processors.token_flow.analysis.scoring import Scoring

    result = t2ictl.flow(sd(), PROMPT, seed=7, **SMALL)
    assert result.seeds == (7, 8) and result.confirmed == (9, 10)
    request = Request(prompt=PROMPT, steps=2)
    items = ["circle", "square"]
    both = Scoring(sd(), request, items, BrightnessJudge(), seeds=(7, 8), confirm=(9, 10))
    later = Scoring(sd(), request, items, BrightnessJudge(), seeds=(9, 10))
    whole = both.conditions.whole()
    confirmed, alone = both.score([whole], True).of("full", "circle"), later.score([whole]).of("full", "circle")
    assert (confirmed == alone).all() and (confirmed != both.score([whole]).of("full", "circle")).any()

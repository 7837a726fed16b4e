"""Token merging after the merge: words at their new places, and when and how often its losses move rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.guidance.text_objectives import EmbedStep
from t2ictl.settings.windows import Window
from tests.processors.token_merging.merging_cases import (
    ALWAYS,
    MERGE,
    OBJECTS,
    PROMPT,
    encoded,
    noise,
    paper,
    spied,
    with_control,
)
from tests.tiny import run, scheduler, sd, sdxl

pytestmark = pytest.mark.filterwarnings("ignore:token_merging does nothing:UserWarning")


# -- words after the merge --------------------------------------------------------------------------------------------

PLACES = {
    "compact": {"red": 2, "circle": 2, "red circle": 2, "and": 3, "blue": 5, "square": 5},
    "mask": {"red": 3, "circle": 3, "red circle": 3, "and": 4, "blue": 7, "square": 7},
    "zero": {"red": 3, "circle": 3, "red circle": 3, "and": 4, "blue": 7, "square": 7},
}


@pytest.mark.parametrize("removal", PLACES)
def test_words_answer_with_the_maps_at_their_new_places(removal: Any) -> None:
    pipe = sd(dtype=torch.float64)
    spies = spied(pipe)
    with t2ictl.controlled(pipe, [paper(removal=removal, **MERGE)], record=True) as session:
        run(pipe, PROMPT, steps=1, latents=noise(1))
    maps = torch.cat([spy.probabilities[1] for spy in spies if spy.probabilities.shape[2] == 256]).mean(dim=0)
    for word, place in PLACES[removal].items():
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            map_YX = session.record.map(word)
        torch.testing.assert_close(map_YX.double(), maps[:, place].reshape(16, 16), rtol=0, atol=1e-6)
        told = [str(each.message) for each in found if "merged" in str(each.message)]
        assert [f"{word!r} was merged" in each for each in told] == (
            [True] if word in ("red", "circle", "blue", "square") else []
        )


def test_masked_words_get_no_attention_in_the_conditional_rows_only() -> None:
    pipe = sd(dtype=torch.float64)
    spies = spied(pipe)
    with_control(pipe, PROMPT, paper(removal="mask", **ALWAYS), steps=1)
    for spy in spies:
        negative, own = spy.probabilities
        others = [place for place in range(16) if place not in (2, 6)]
        assert not own[..., [2, 6]].any() and negative[..., [2, 6]].min() > 0
        torch.testing.assert_close(own[..., others].sum(dim=-1), torch.ones_like(own[..., 0]))


def test_a_masked_word_counts_by_what_is_left_of_its_strength() -> None:
    pipe = sd(dtype=torch.float64)
    spies = spied(pipe)
    with_control(pipe, PROMPT, paper(removal="mask", strength=0.75, **MERGE), steps=1, latents=noise(1))
    masked = [spy.probabilities[1] for spy in spies][:1]
    r = encoded(pipe, PROMPT)
    rows = r.clone()
    rows[3], rows[7] = r[3] + 0.75 * r[2], r[7] + 0.75 * r[6]
    run(pipe, None, prompt_embeds=rows[None], steps=1, latents=noise(1))
    count = torch.ones(16, dtype=torch.float64)
    count[[2, 6]] = 0.25
    expected = spies[0].probabilities[1] * count
    torch.testing.assert_close(masked[0], expected / expected.sum(dim=-1, keepdim=True), rtol=0, atol=2e-5)


# -- the schedule of the losses ---------------------------------------------------------------------------------------


def counts(trace: Sequence[Any], term: str, row: int = 0) -> list[int]:
    """How often a row moved for a loss at each evaluation."""
    made = [0] * 10
    for each in trace:
        made[each.step.index] += int(f"token_merging.{term}" in each.terms and float(each.length[row]) > 0)
    return made


@pytest.mark.parametrize("prompt", [PROMPT, OBJECTS])
@pytest.mark.parametrize("preset", ["auto", "attribute", "object"])
def test_presets_say_how_often_and_how_long(preset: Any, prompt: str) -> None:
    control = paper(prompt_kind=preset, thresholds=(0.0,), binding_steps=1, semantic_step=EmbedStep(final_scale=1.0))
    _, session = with_control(sd(), prompt, control, steps=10)
    is_object = preset == "object" or (preset == "auto" and prompt == OBJECTS)
    assert counts(session.trace, "entropy") == ([6, 6] if is_object else [4, 0]) + [0] * 8
    assert counts(session.trace, "semantic") == ([1, 1] if is_object else [1, 0]) + [0] * 8
    assert {each.moved for each in session.trace} == {"tokens"}


def test_each_image_of_a_batch_has_the_preset_of_its_prompt() -> None:
    _, session = with_control(sd(), [PROMPT, OBJECTS], paper(thresholds=(0.0,), binding_steps=0), steps=10)
    assert [counts(session.trace, "entropy", row)[:3] for row in (0, 1)] == [[4, 0, 0], [6, 6, 0]]


def test_an_image_under_its_target_does_not_move() -> None:
    pipe = sd()
    control = paper(binding_steps=0, entropy_steps=3, thresholds=(1.0,), window=Window())
    found, session = with_control(pipe, PROMPT, control, steps=2)
    assert torch.equal(found, with_control(pipe, PROMPT, paper(**MERGE), steps=2)[0])
    assert [(float(each.length), each.iteration) for each in session.trace] == [(0.0, 0)] * 2
    _, session = with_control(pipe, PROMPT, paper(binding_steps=0, entropy_steps=3, **ALWAYS), steps=2)
    assert [each.iteration for each in session.trace] == [0, 1, 2] * 2


@pytest.mark.parametrize("window", [Window(start=0.1, stop=0.7), Window(start=0.85, stop=0.4, by="noise")])
def test_each_fiftieth_of_the_schedule_has_its_target_and_a_window_is_kept(window: Window) -> None:
    settings: dict[str, Any] = {"binding_steps": 0, "entropy_steps": 1, "step": EmbedStep(final_scale=1.0)}
    control = paper(**settings, thresholds=(0.0,) * 15 + (1.0,) * 10 + (0.0,), window=window)
    _, session = with_control(sd(), PROMPT, control, steps=10)
    assert counts(session.trace, "entropy") == [0, 1, 1, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "heun"])
def test_schedulers_run_with_the_losses_on(name: str) -> None:
    pipe = sd()
    pipe.scheduler = scheduler(name, pipe)
    merged, _ = with_control(pipe, PROMPT, paper(**MERGE), steps=3)
    found, session = with_control(pipe, PROMPT, paper(**ALWAYS, binding_steps=1, entropy_steps=1), steps=3)
    assert torch.isfinite(found).all() and (found - merged).norm() / merged.norm() > 1e-4
    assert len({each.step.index for each in session.trace}) == (5 if name == "heun" else 3)


@pytest.mark.parametrize("build", [sd, sdxl])
def test_half_precision_runs(build: Any) -> None:
    pipe = build(dtype=torch.bfloat16)
    for removal in ("compact", "mask"):
        control: Any = paper(**ALWAYS, binding_steps=1, entropy_steps=1, removal=removal)
        found, session = with_control(pipe, [PROMPT, "a dog and a cat"], control, steps=2)
        assert torch.isfinite(found).all() and found.dtype == torch.bfloat16
        assert all(float(each.length[0]) > 0 for each in session.trace if each.step.index == 0)
        assert not any(bool(each.skipped.any()) for each in session.trace)

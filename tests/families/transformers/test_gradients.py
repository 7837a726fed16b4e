"""Gradients through transformers: those of a whole pass to the last bit, and downhill for every loss."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.controls.base import Control
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors import (
    AttendAndExcite,
    AttentionSegregation,
    ContrastiveAttention,
    LinguisticBinding,
    PredicatedDiffusion,
)
from t2ictl.session.session import Session
from t2ictl.settings.windows import Window
from tests.families.transformers.cases import (
    DISTINCT,
    FAMILIES,
    MOVES,
    OTHER,
    PROMPT,
    STEPS,
    distance,
    excite,
    families,
    held,
    seen,
    shared,
)
from tests.tiny_transformers import run


@functools.cache
def exact(name: str) -> Any:
    """A pipeline in double precision, in which the shortest of moves is more than rounding."""
    return FAMILIES[name](dtype=torch.float64)


# -- passes that end early --------------------------------------------------------------------------------------------

# A raw step has the length of the gradient in it, which a normalized one divides out.
RAW = {"step": StepSize(scale=2.0), "preset": "none"}
TRUNCATED: dict[str, Control] = {
    "deep": AttentionSegregation(**RAW, layers=("cross&depth<0.7", "joint&depth<0.7", "single&depth<0.7")),
    "refined": AttendAndExcite(**RAW, refinement=Refinement(thresholds=((0.0, 0.9),), max_iterations=2)),
}


def moved(pipe: Any, control: Control, *, truncate: bool) -> tuple[torch.Tensor, tuple[MoveTrace, ...], int]:
    """Latents, trace, and how many attention layers ran in the session's own passes."""
    layers = [0]

    def count(*_: Any) -> None:
        layers[0] += torch.is_grad_enabled()

    handles = [each.register_forward_pre_hook(count) for each in pipe.transformer.modules() if hasattr(each, "heads")]
    session = Session(
        pipe, (control,), recording=None, words=None, parser="grammar", raise_nonfinite=True, truncate=truncate
    )
    with session:
        latents = run(pipe, PROMPT, steps=STEPS, num_images_per_prompt=2)
    for handle in handles:
        handle.remove()
    return latents, session.trace, layers[0]


@pytest.mark.filterwarnings("ignore:Attention layers carry hooks")
@pytest.mark.parametrize("which", TRUNCATED)
@pytest.mark.parametrize("name", DISTINCT)
def test_truncated_and_whole_passes_are_bit_equal(name: str, which: str) -> None:
    pipe, control = exact(name), TRUNCATED[which]
    short, whole = (moved(pipe, control, truncate=each) for each in (True, False))
    assert torch.equal(short[0], whole[0])
    assert distance(short[0], run(pipe, PROMPT, steps=STEPS, num_images_per_prompt=2)) > 1e-4
    assert len(short[1]) == len(whole[1]) > 0
    for one, other in zip(short[1], whole[1], strict=True):
        assert torch.equal(one.length, other.length) and torch.equal(one.total, other.total)
        assert float(one.length.min()) > 0
    assert short[2] < whole[2]


@pytest.mark.parametrize("name", DISTINCT)
def test_layers_that_are_computed_again_change_nothing(name: str) -> None:
    kept, _ = held(exact(name), [MOVES])
    for way in ("feed_forward", "all", "block"):
        assert torch.equal(held(exact(name), [MOVES], checkpointing=way)[0], kept)


# -- losses fall ------------------------------------------------------------------------------------------------------

CONTROLS = (AttendAndExcite, AttentionSegregation, ContrastiveAttention, LinguisticBinding, PredicatedDiffusion)
# How far each prompt's images move (share of the latent's norm).
SCALES = {PROMPT: 0.001, "a green frog and a yellow bench and a black cat": 0.003}
UPDATES, IMAGES = 3, 6
# Losses of maxima have kinks, and a step over one of them may go up.
LEAST = 0.95


def made(cls: Any, scale: float) -> Control:
    known = cls.__dataclass_fields__
    step = StepSize(scale=scale, mode="normalized", final_scale_sq=1.0)
    wanted = {"preset": "none", "step": step, "window": Window(), "refinement": None}
    made: Control = cls(**{key: value for key, value in wanted.items() if key in known})
    return made


def changes(name: str, cls: Any, prompt: str, scale: float) -> list[float]:
    """By how much the loss of each image changed with each update, as a share of its size."""
    control, found = made(cls, scale), list[float]()
    call = {"measure": [control], "steps": UPDATES, "num_images_per_prompt": IMAGES}
    _, session = held(exact(name), [control], prompt, **call)
    assert len(session.trace) == len(session.measured) == UPDATES
    for before, after in zip(session.trace, session.measured, strict=True):
        assert before.step.index == after.step.index and not before.skipped.any()
        moved_B = before.length > 0
        found += ((after.loss - before.total) / before.total.abs())[moved_B].tolist()
    return found


@pytest.mark.parametrize("cls", CONTROLS, ids=lambda cls: cls.name)
@pytest.mark.parametrize("name", DISTINCT)
def test_the_loss_falls(name: str, cls: Any) -> None:
    found = [each for prompt, scale in SCALES.items() for each in changes(name, cls, prompt, scale)]
    assert len(found) == len(SCALES) * UPDATES * IMAGES
    assert sum(each < 0 for each in found) >= LEAST * len(found)


# -- precision --------------------------------------------------------------------------------------------------------


@families
def test_moved_samples_reach_a_flow_scheduler_in_float32(name: str) -> None:
    pipe, control = FAMILIES[name](dtype=torch.bfloat16), excite(0.005, window=Window())
    keeps = type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    steps = seen(pipe, [control])
    assert len(steps) == STEPS
    for step in steps:
        # SANA keeps its latents in float32; the others keep them in the precision of the transformer.
        assert step.plain.dtype == (torch.float32 if name == "sana" else torch.bfloat16)
        assert step.sample.dtype == (torch.float32 if keeps else step.plain.dtype)
        # Numbers of 8 bits cannot hold all of a move of a two-hundredth; those of 24 can.
        length = distance(step.sample, step.plain)
        assert length == pytest.approx(0.005, rel=1e-3 if keeps or name == "sana" else 0.5)
    latents, _ = held(pipe, [control], record=True)
    assert torch.isfinite(latents).all()
    assert latents.dtype == run(pipe, PROMPT, steps=STEPS).dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd3", "flux", "chroma", "hunyuan_dit"])
def test_times_that_a_pipeline_rounds_are_still_those_of_its_schedule(name: str, dtype: torch.dtype) -> None:
    """They are told in another unit, rounded before and after; each must be known as the next of the call."""
    pipe = FAMILIES[name](dtype=dtype)
    recorded, session = held(pipe, [], record=True, steps=20)
    assert session.record.steps == 20
    assert torch.equal(recorded, run(pipe, PROMPT, steps=20))


@families
def test_a_prompt_of_any_length(name: str) -> None:
    plain = run(shared(name), OTHER, steps=STEPS)
    with t2ictl.controlled(shared(name), [MOVES]):
        assert 1e-3 < distance(run(shared(name), OTHER, steps=STEPS), plain) < 1

"""Other schedulers of transformers: a move is taken up by each, and everything is restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from t2ictl.settings.windows import Window
from tests.families.transformers.cases import FAMILIES, PROMPT, distance, excite, held, seen
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run

STEPS = 3
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SHIFTED = {**FLOW, "flow_shift": 3.0}

Build = Callable[[Any], Any]


def of(cls: Any, **config: Any) -> Build:
    """A scheduler of a class of its own; alphas of the pipeline's own schedule where they are not said."""
    betas = ("beta_schedule", "beta_start", "beta_end", "prediction_type")

    def build(pipe: Any) -> Any:
        own = {} if config or "Flow" in cls.__name__ else {key: pipe.scheduler.config[key] for key in betas}
        return cls(**own, **config)

    return build


CASES: list[tuple[str, str, Build]] = [
    ("sd3", "heun", of(FlowMatchHeunDiscreteScheduler, shift=3.0)),
    ("sd35", "heun", of(FlowMatchHeunDiscreteScheduler, shift=3.0)),
    *((name, "dpm", of(DPMSolverMultistepScheduler, **FLOW)) for name in ("sd3", "sana")),
    ("flux", "dpm", of(DPMSolverMultistepScheduler, **FLOW, use_dynamic_shifting=True)),
    *(
        (name, "dpm sde", of(DPMSolverMultistepScheduler, **SHIFTED, algorithm_type="sde-dpmsolver++"))
        for name in ("sd3",)
    ),
    *((name, "unipc", of(UniPCMultistepScheduler, **FLOW)) for name in ("sd3", "flux", "chroma", "sana")),
    ("sd3", "deis", of(DEISMultistepScheduler, **FLOW)),
    ("sana", "euler", of(FlowMatchEulerDiscreteScheduler, shift=3.0)),
    ("flux", "euler stochastic", of(FlowMatchEulerDiscreteScheduler, shift=3.0, stochastic_sampling=True)),
    ("sd3", "euler karras", of(FlowMatchEulerDiscreteScheduler, use_karras_sigmas=True)),
    *((name, "euler", of(EulerDiscreteScheduler)) for name in ("pixart_alpha", "pixart_sigma", "hunyuan_dit")),
    *((name, "ddim", of(DDIMScheduler)) for name in ("pixart_alpha", "pixart_sigma", "hunyuan_dit")),
    ("pixart_sigma", "euler ancestral", of(EulerAncestralDiscreteScheduler)),
]


@pytest.mark.parametrize(
    ("name", "build"), [(name, build) for name, _, build in CASES], ids=[f"{a}-{b}" for a, b, _ in CASES]
)
def test_moved_and_restored(name: str, build: Build) -> None:
    pipe = FAMILIES[name]()
    pipe.scheduler = build(pipe)
    plain = run(pipe, PROMPT, steps=STEPS)
    before = state(pipe)
    recorded, session = held(pipe, [], record=True, steps=STEPS)
    assert torch.equal(recorded, plain)
    moved, session = held(pipe, [excite(window=Window())], steps=STEPS)
    assert torch.isfinite(moved).all() and 1e-3 < distance(moved, plain) < 1
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)
    evaluations = 2 * STEPS - 1 if "Heun" in type(pipe.scheduler).__name__ else STEPS
    assert recorded.shape == moved.shape
    # Samples of a second stage are thrown away, and are not moved.
    assert [entry.step.index for entry in session.trace] == list(
        range(0, evaluations, evaluations // STEPS + (evaluations > STEPS))
    )


@pytest.mark.parametrize(
    ("name", "build"), [(name, build) for name, _, build in CASES], ids=[f"{a}-{b}" for a, b, _ in CASES]
)
def test_the_scheduler_steps_from_what_the_transformer_saw(name: str, build: Build) -> None:
    pipe = FAMILIES[name]()
    pipe.scheduler = build(pipe)
    steps = seen(pipe, [excite(0.05, window=Window())], steps=STEPS)
    moved = [step for step in steps if not torch.equal(step.sample, step.plain)]
    assert len(moved) == STEPS
    for step in moved:
        (first, *_), (reached, *_) = step.given, step.reached
        before, after = (each["hidden_states"][-1:] for each in (first, reached))
        scale = float((before.double() * step.plain.double()).sum() / step.plain.double().square().sum())
        assert distance(after, before) == pytest.approx(0.05, rel=1e-2)
        # What the transformer sees is a multiple of the sample, before the move and after it.
        assert torch.allclose(before, scale * step.plain, atol=1e-4 * float(before.abs().max()))
        assert torch.allclose(after, scale * step.sample, atol=1e-4 * float(after.abs().max()))


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_losses_fall_at_every_step_of_two_stages(name: str) -> None:
    pipe = FAMILIES[name](dtype=torch.float64)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    control = excite(0.001, window=Window())
    _, session = held(pipe, [control], measure=[control], steps=STEPS)
    after = {entry.step.index: entry.loss for entry in session.measured}
    assert len(session.trace) == STEPS
    assert all(bool((after[entry.step.index] < entry.total).all()) for entry in session.trace)

"""Attend-and-Excite against the stock pipeline of diffusers, over whole runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionAttendAndExcitePipeline
from torch import Tensor

import t2ictl
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors import AttendAndExcite
from t2ictl.settings.windows import Window
from tests.tiny import generator, run, scheduler, sd, sd2, sdxl

# The stock pipeline makes its smoothing kernel with the old form of a torch function.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")

PROMPT = "a red circle and a blue square"
STEPS, LAST = 6, 4  # latents move at the first four evaluations
THRESHOLDS = {0: 0.6, 2: 0.8}
LOW = {0: 0.45, 1: 0.4}


@dataclass(kw_only=True)
class Published:
    """The stock pipeline's run and the number of its updates."""

    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    updates: int = 0


def evaluations(name: str) -> int:
    return STEPS + (name == "pndm")  # PNDM's multistep start evaluates one timestep twice


def published(pipe: Any, prompt: Any, words: list[list[int]], scale: float, thresholds: Any, **call: Any) -> Published:
    """Run the stock Attend-and-Excite pipeline on the parts of a plain one."""
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()  # it warns that it is deprecated
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    stock = StableDiffusionAttendAndExcitePipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    diffusers.utils.logging.set_verbosity(verbosity)
    stock.set_progress_bar_config(disable=True)
    found, update = Published(), stock._update_latent

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.updates += 1
        return update(*args, **kwargs)

    stock._update_latent = counted
    found.latents = stock(
        prompt,
        words,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        generator=generator(1),
        output_type="latent",
        max_iter_to_alter=LAST,
        thresholds=thresholds,
        scale_factor=scale,
        attn_res=(16, 16),
        **call,
    ).images
    return found


def control(name: str, scale: float = 20.0, thresholds: Any = THRESHOLDS, **settings: Any) -> AttendAndExcite:
    """Our settings for the same run; fractions of the schedule instead of steps."""
    total = evaluations(name)
    targets = tuple((index / total, least) for index, least in thresholds.items())
    given: dict[str, Any] = {
        "concepts": ("circle", "square"),
        "parity": True,
        "layers": ("cross@1",),
        "window": Window.from_steps(0, LAST, total),
        "refinement": Refinement(thresholds=targets),
        "step": StepSize(scale=scale),
    }
    return AttendAndExcite(**(given | settings))


def ours(pipe: Any, prompt: Any, settings: AttendAndExcite, **call: Any) -> tuple[Tensor, Any]:
    with t2ictl.controlled(pipe, [settings]) as session:
        made = run(pipe, prompt, steps=STEPS, seed=1, height=64, width=64, **call)
    return made, session


def updates(session: Any) -> int:
    return sum(int((entry.length > 0).sum()) for entry in session.trace)


def refined(session: Any) -> int:
    return sum(int(entry.refined.sum()) for entry in session.trace)


def positions(pipe: Any, prompt: str, *words: str) -> list[int]:
    return [
        pipe.tokenizer(prompt).input_ids.index(pipe.tokenizer.convert_tokens_to_ids(f"{word}</w>")) for word in words
    ]


@pytest.mark.parametrize("name", ["ddim", "pndm"])
@pytest.mark.parametrize("precision", ["double", "single"])
def test_parity_over_a_whole_run(name: str, precision: str) -> None:
    # Each refinement multiplies a rounding difference by a few (the loss is the maximum of maxima, and its gradient
    # jumps with the place of the maximum): tens of them grow 1e-7 to 1e-3. In single precision a shorter step keeps
    # the maximum where it is, so that the test sees the code and not the growth.
    dtype, scale, tight = (torch.float64, 20.0, 1e-8) if precision == "double" else (torch.float32, 4.0, 1e-3)
    pipe = sd(dtype=dtype)
    pipe.scheduler = scheduler(name)
    theirs = published(pipe, PROMPT, [positions(pipe, PROMPT, "circle", "square")], scale, THRESHOLDS)
    made, session = ours(pipe, PROMPT, control(name, scale))
    # PNDM's second evaluation has a move whose length is kept in parity mode, so every update is counted.
    assert updates(session) == theirs.updates
    assert refined(session) == theirs.updates - LAST >= 5
    assert (made - run(pipe, PROMPT, steps=STEPS, seed=1)).abs().max() > 0.1
    torch.testing.assert_close(made, theirs.latents, rtol=0, atol=tight)


@pytest.mark.parametrize("images", [1, 2])
def test_parity_in_a_batch_of_two_prompts(images: int) -> None:
    """The stock pipeline takes one sample after the other; here they are rows of one batch."""
    pipe, prompts = sd(dtype=torch.float64), [PROMPT, "a cat on a car"]
    words = (("circle", "square"), ("cat", "car"))
    indices = [positions(pipe, prompt, *own) for prompt, own in zip(prompts, words, strict=True)]
    theirs = published(pipe, prompts, indices, 20.0, LOW, num_images_per_prompt=images)
    made, session = ours(pipe, prompts, control("ddim", 20.0, LOW, concepts=words), num_images_per_prompt=images)
    assert updates(session) == theirs.updates and refined(session) >= 5
    torch.testing.assert_close(made, theirs.latents, rtol=0, atol=1e-8)
    assert len({tuple(entry.refined.tolist()) for entry in session.trace}) > 2  # rows stop at different times


def test_without_parity_one_refinement_fewer_reaches_the_same_target() -> None:
    """The published loop decides on the loss before its last update, and so makes one too many."""
    pipe = sd(dtype=torch.float64)
    settings = {"window": Window.from_steps(0, 1, STEPS), "refinement": Refinement(thresholds=((0.0, 0.6),))}
    _, stale = ours(pipe, PROMPT, control("ddim", parity=True, **settings))
    _, fresh = ours(pipe, PROMPT, control("ddim", parity=False, **settings))
    assert refined(stale) == refined(fresh) + 1 >= 2
    for long, short in zip(stale.trace, fresh.trace, strict=False):
        assert torch.equal(long.total, short.total)  # the same way, as far as both go
    assert float(fresh.trace[-1].total) <= 0.4 < float(fresh.trace[-2].total)


def test_without_parity_no_move_that_pndm_throws_away() -> None:
    pipe = sd(dtype=torch.float64)
    pipe.scheduler = scheduler("pndm")
    plain = {"refinement": None}
    with_it, parity = ours(pipe, PROMPT, control("pndm", parity=True, **plain))
    without, ordinary = ours(pipe, PROMPT, control("pndm", parity=False, **plain))
    assert [entry.step.index for entry in parity.trace] == [0, 1, 2, 3]
    assert [entry.step.index for entry in ordinary.trace] == [0, 2, 3]
    # The shift is thrown away, and yet the noise was predicted from the shifted latents.
    assert (with_it - without).abs().max() > 1e-4
    assert parity.cost.extra_forwards == 4 and ordinary.cost.extra_forwards == 3


def test_passes_end_early_and_only_where_latents_move() -> None:
    """The published pipeline makes a pass with gradients at every step."""
    pipe = sd()
    _, session = ours(pipe, [PROMPT, "a cat"], control("ddim", concepts=(), refinement=None))
    assert (session.cost.extra_forwards, session.cost.backwards) == (2 * LAST, 2 * LAST)
    assert session.cost.forwards == 2 * 2 * STEPS


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
def test_default_settings_lower_the_loss_of_every_family(build: Any) -> None:
    pipe = build()
    with t2ictl.controlled(
        pipe, [AttendAndExcite(refinement=Refinement(thresholds=((0.0, 0.9),), max_iterations=4))]
    ) as session:
        assert torch.isfinite(run(pipe, PROMPT, steps=2)).all()
    first = [float(entry.total) for entry in session.trace if entry.step.index == 0]
    assert len(first) == 5 and first[-1] < first[0]


def test_no_refinement_for_a_row_that_has_no_concept() -> None:
    pipe = sd()
    settings = AttendAndExcite(refinement=Refinement(thresholds=((0.0, 0.99),), max_iterations=3))
    with pytest.warns(UserWarning, match="found no objects"), t2ictl.controlled(pipe, [settings]) as session:
        run(pipe, [PROMPT, "in white"], steps=2)
    assert [entry.refined.tolist() for entry in session.trace] == [[True, False]] * 3 + [[False, False]]
    assert all(entry.length[1] == 0 for entry in session.trace)

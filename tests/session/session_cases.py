"""The matrix of pipelines and schedulers on which sessions are tried, and what is measured on each of its cases."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import t2ictl
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.guidance.rules import StepSize
from t2ictl.processors.attention_segregation import AttentionSegregation
from tests import tiny

PROMPT = "a red circle and a blue square"
THREE = (PROMPT, "a cat and a dog and a frog", "a lion in a bowl and a bench")
# Long enough to be seen in float32, short enough for the gradient to tell the truth about the loss.
SMALL = StepSize(scale=1e-3, mode="normalized")
STEPS = 3
# A perturbed sample that changes the next one by less than this share of itself was thrown away: what is left is
# rounding. Samples that are kept come back at a tenth of their size or more.
LOST = 1e-3


@functools.cache
def _made(name: str, *args: Any) -> tuple[Any, str]:
    pipe = getattr(tiny, name)(*args)
    own = type(pipe.scheduler).__name__
    return pipe, next(key for key, value in tiny.SCHEDULERS.items() if value == own)


def pipeline(name: str, *args: Any, scheduler: str | None = None) -> Any:
    """A pipeline of ``tests.tiny``, made once for all tests that share it, with a scheduler of its own each time."""
    pipe, own = _made(name, *args)
    config = pipe.scheduler.config
    keep = {key: config[key] for key in (*tiny.SCHEDULE, "timestep_spacing") if key in config}
    pipe.scheduler = tiny.scheduler(scheduler or own, keep)
    return pipe


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pipeline call.

    Args:
        build: name of the builder in ``tests.tiny``, with its positional arguments.
        scheduler: key of ``tests.tiny.SCHEDULERS``; None for the pipeline's own.
        prompts: one prompt, or several.
        call: further arguments of the call.
    """

    build: tuple[Any, ...]
    scheduler: str | None
    prompts: tuple[str, ...] = (PROMPT,)
    call: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        words = [*map(str, self.build), self.scheduler or "own", f"{len(self.prompts)}p"]
        return "-".join(words + [f"{key}={value}" for key, value in self.call])

    @property
    def pipe(self) -> Any:
        """The pipeline; a session leaves no trace in it."""
        return pipeline(*self.build, scheduler=self.scheduler)

    def run(self, pipe: Any, **more: Any) -> Tensor:
        """Make the call."""
        prompts: str | list[str] = self.prompts[0] if len(self.prompts) == 1 else list(self.prompts)
        return tiny.run(pipe, prompts, **({"steps": STEPS} | dict(self.call) | more))


def matrix() -> tuple[Case, ...]:
    """Every scheduler with both families, guidance on and off, one and several images; then every other pipeline."""
    one, many = {"guidance_scale": 7.5}, {"guidance_scale": 1.0, "num_images_per_prompt": 2}
    several = {"guidance_scale": 5.0, "num_images_per_prompt": 2}
    oblong = {"height": 48, "width": 80}
    few = ("euler_ancestral", "pndm", "heun")
    cases = [
        Case(build=(family,), scheduler=name, prompts=prompts, call=tuple(call.items()))
        for family, calls in {
            "sd": [((PROMPT,), one), (THREE, many)],
            "sdxl": [(THREE, several), ((PROMPT,), {"guidance_scale": 1.0} | oblong)],
        }.items()
        for prompts, call in calls
        for name in (few if call.get("height") else tiny.SCHEDULERS)
    ]
    others = [("img2img",), ("inpaint",), ("inpaint", 9), ("controlnet",)]
    for family, names in {"sd": ("ddim", "euler_ancestral", "heun"), "sdxl": ("euler", "lcm")}.items():
        cases += [
            Case(build=(f"{family}_{kind}", *rest), scheduler=name, prompts=THREE[:2])
            for kind, *rest in others
            for name in names
        ]
    cases += [Case(build=("sd",), scheduler=name, call=tuple(oblong.items())) for name in ("ddim", "pndm")]
    cases += [Case(build=("sd2",), scheduler=name) for name in ("ddim", "euler")]
    cases += [Case(build=("sd_lcm",), scheduler=None, prompts=THREE, call=(("num_images_per_prompt", 2),))]
    return tuple(cases)


@dataclass(kw_only=True)
class Evaluation:
    """One scheduler step.

    Args:
        listens: whether the scheduler uses the sample that it is given.
        moved: whether the session moved it.
        effect: change of the next sample by the move, as a share of the move.
        mismatch: largest difference between this sample, scaled, and what the denoiser saw, in all rows.
    """

    listens: bool
    moved: bool
    effect: float
    mismatch: float


@dataclass(kw_only=True)
class Outcome:
    """What was measured on one case.

    Args:
        images: rows of the batch that show an image.
        evaluations: one entry a scheduler step.
        moves: evaluations at which the session moved the latents, in the order of the moves.
        before: losses of each image before a move, one entry a move.
        after: losses of the moved latents, as the pass that makes the image shows them.
        extra_forwards: rows of the session's own passes.
    """

    images: int
    evaluations: list[Evaluation] = field(default_factory=list)
    moves: list[int] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    extra_forwards: int = 0


@functools.cache
def outcome(case: Case) -> Outcome:
    """Run a case under control and look at each scheduler step and each move."""
    pipe = case.pipe
    rows = len(case.prompts) * dict(case.call).get("num_images_per_prompt", 1)
    found, control = Outcome(images=rows), AttentionSegregation(step=SMALL)

    def note(entry: MoveTrace) -> None:
        found.moves.append(entry.step.index)
        found.before.append(entry.total)

    with (
        _watched(pipe, found),
        t2ictl.controlled(pipe, [control], measure=[control], on_move=note) as session,
    ):
        case.run(pipe)
    found.after = [entry.loss for entry in session.measured]
    found.extra_forwards = session.cost.extra_forwards
    return found


@contextmanager
def _watched(pipe: Any, found: Outcome) -> Iterator[None]:
    """RowSubset at each scheduler step from below the session's wrap, and at what the pipeline gives it from above."""
    scheduler, encode_prompt = pipe.scheduler, pipe.encode_prompt
    original, seen = scheduler.step, {}
    given: list[Tensor] = []
    signature = inspect.signature(original)

    def look(module: Any, inputs: Any) -> None:
        if not torch.is_grad_enabled():  # the last such pass before a step is the one that makes the image
            seen["sample"] = inputs[0]

    @functools.wraps(original)
    def below(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        moved = arguments.pop("sample")
        plain = given.pop()
        noise = torch.randn(plain.shape, generator=tiny.generator(1))
        effect = _change(scheduler, arguments, plain, moved) / max(float((moved - plain).norm()), 1e-12)
        listens = _change(scheduler, arguments, plain, plain + noise) > LOST * float(noise.norm())
        scaled = copy.deepcopy(_without_step(scheduler)).scale_model_input(moved, arguments["timestep"])
        rows = seen["sample"][:, : moved.shape[1]].unflatten(0, (-1, len(moved)))
        evaluation = Evaluation(
            listens=listens,
            moved=not torch.equal(plain, moved),
            effect=effect,
            mismatch=float((rows - scaled).abs().max()),
        )
        found.evaluations.append(evaluation)
        return original(*args, **kwargs)

    @functools.wraps(encode_prompt)
    def encode(*args: Any, **kwargs: Any) -> Any:
        """Called when the session has set its own wrap: ours goes above it."""
        scheduler.step = _noting(scheduler.step, given)
        return encode_prompt(*args, **kwargs)

    scheduler.step, pipe.encode_prompt = below, encode
    handle = pipe.unet.conv_in.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
        del scheduler.__dict__["step"], pipe.__dict__["encode_prompt"]


def _noting(step: Any, given: list[Tensor]) -> Any:
    """A scheduler's step that keeps the sample that it is given."""
    signature = inspect.signature(step)

    @functools.wraps(step)
    def above(*args: Any, **kwargs: Any) -> Any:
        given.append(signature.bind(*args, **kwargs).arguments["sample"])
        return step(*args, **kwargs)

    return above


def _change(scheduler: Any, arguments: dict[str, Any], first: Tensor, second: Tensor) -> float:
    """How far apart the next samples are, of two samples given to the scheduler's own ``step``."""
    results = []
    for sample in (first, second):
        double = copy.deepcopy(_without_step(scheduler))
        own = {key: _copied_generator(value) for key, value in arguments.items()}
        results.append(double.step(sample=sample, **{**own, "return_dict": False})[0])
    return float((results[1] - results[0]).norm())


def _without_step(scheduler: Any) -> Any:
    """A shallow copy of a scheduler with the ``step`` of its class."""
    double = copy.copy(scheduler)
    double.__dict__ = {key: value for key, value in scheduler.__dict__.items() if key != "step"}
    return double


def _copied_generator(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return torch.Generator().set_state(value.get_state())
    return [_copied_generator(each) for each in value] if isinstance(value, list) else value


def distance(first: Tensor, second: Tensor) -> float:
    """Relative distance of two latents."""
    return float((first - second).norm() / second.norm())


def rows_apart(first: Tensor, second: Tensor) -> list[float]:
    """Largest absolute difference in each row."""
    return [float(each) for each in (first - second).abs().flatten(1).amax(dim=1)]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator an image."""
    return [tiny.generator(seed) for seed in seeds]


MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))
Change = Callable[[Any], None]


def at_step(number: int, change: Change) -> dict[str, Any]:
    """Arguments of a call that changes something at the end of one step."""

    def callback(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        if index == number:
            change(pipe)
        return given

    return {"callback_on_step_end": callback}

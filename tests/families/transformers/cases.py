"""Pipelines of the transformer families on which sessions are tried, and what is seen of them from below.

Legend: ``B`` image, ``R`` row of the transformer's batch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.controls.base import Control
from t2ictl.guidance.rules import StepSize
from t2ictl.processors import AttendAndExcite, AttentionSegregation
from tests.tiny_transformers import FAMILIES, run
from tests.tiny_variants import VARIANTS

PROMPT = "a red circle and a blue square"
OTHER = "a cat and a dog and a big green frog on a bench"  # more tokens in every tokenizer
WORDS = ("circle", "square")
STEPS = 2

families = pytest.mark.parametrize("name", FAMILIES)
PIPELINES: dict[str, Callable[..., Any]] = FAMILIES | VARIANTS
#: One pipeline of each kind of transformer, for what costs more.
DISTINCT = [name for name in FAMILIES if name not in ("pixart_alpha", "flux_schnell")]
#: Stock pipelines repeat the masks of several prompts in another order than their rows.
MASKS_IN_WRONG_ORDER = ("sana", "hunyuan_dit")

MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))


def excite(scale: float = 0.02, **more: Any) -> AttendAndExcite:
    """Attend-and-Excite by steps of one length, without refinement."""
    step = StepSize(scale=scale, mode="normalized", final_scale_sq=1.0)
    return AttendAndExcite(**{"preset": "none", "step": step, "refinement": None} | more)


@functools.cache
def shared(name: str) -> Any:
    """A pipeline that all tests use which leave no trace in it; its scheduler starts anew with each call."""
    return PIPELINES[name]()


def held(pipe: Any, controls: list[Control], prompt: Any = PROMPT, **call: Any) -> tuple[Tensor, Any]:
    """Latents of a call under control, and the session."""
    own = {key: call.pop(key) for key in ("record", "measure", "checkpointing") if key in call}
    with t2ictl.controlled(pipe, controls, **own) as session:
        latents = run(pipe, prompt, **{"steps": STEPS} | call)
    return latents, session


def distance(first: Tensor, second: Tensor) -> float:
    """Relative distance of two latents."""
    return float((first.double() - second.double()).norm() / second.double().norm())


def sibling(pipe: Any, name: str) -> Any:
    """Another pipeline made of the same parts, as users make it."""
    accepted = inspect.signature(getattr(diffusers, name).__init__).parameters
    parts = {key: each for key, each in pipe.components.items() if key in accepted}
    more: dict[str, Any] = {"requires_safety_checker": False, "pag_applied_layers": ["blocks.1"]}
    other = getattr(diffusers, name)(**parts, **{key: each for key, each in more.items() if key in accepted})
    other.set_progress_bar_config(disable=True)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return other


# -- seen from below --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Seen:
    """One scheduler step, and the calls of the transformer since the one before.

    Args:
        given: arguments of each call as the pipeline passes them, by name.
        reached: the same below the session, without the session's own passes.
        own: those of the session's own passes.
        plain: the sample that the pipeline hands to the scheduler.
        sample: the one that reaches it.
    """

    given: list[dict[str, Any]] = field(default_factory=list)
    reached: list[dict[str, Any]] = field(default_factory=list)
    own: list[dict[str, Any]] = field(default_factory=list)
    plain: Tensor
    sample: Tensor


class _Spy:
    """Stands above and below a session at the transformer and at the scheduler."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.steps = pipe, list[Seen]()
        self.given: list[dict[str, Any]] = []
        self.reached: list[dict[str, Any]] = []
        self.own: list[dict[str, Any]] = []
        self.plain: list[Tensor] = []
        self._names = list(inspect.signature(type(pipe.transformer).forward).parameters)[1:]

    def bound(self, args: Any, kwargs: Any) -> dict[str, Any]:
        named = dict(zip(self._names, args, strict=False)) | kwargs
        return {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in named.items()}

    def above(self, module: Any, args: Any, kwargs: Any) -> None:
        self.given.append(self.bound(args, kwargs))

    def below(self, *args: Any, **kwargs: Any) -> Any:
        # Passes of the session's own ask for a gradient, those of the pipeline do not.
        (self.own if torch.is_grad_enabled() else self.reached).append(self.bound(args, kwargs))
        return self.forward(*args, **kwargs)

    def step_below(self, step: Any) -> Any:
        @functools.wraps(step)
        def below(*args: Any, **kwargs: Any) -> Any:
            self.steps.append(
                Seen(
                    given=self.given,
                    reached=self.reached,
                    own=self.own,
                    plain=self.plain.pop(),
                    sample=self.sample_of(args, kwargs),
                )
            )
            self.given, self.reached, self.own = [], [], []
            return step(*args, **kwargs)

        return below

    def sample_of(self, args: Any, kwargs: Any) -> Tensor:
        sample: Tensor = inspect.signature(self.step).bind(*args, **kwargs).arguments["sample"]
        return sample.clone()

    def encode_above(self, *args: Any, **kwargs: Any) -> Any:
        """The session wraps ``scheduler.step`` when a prompt is encoded: this wraps it once more."""
        found = self.encode_prompt(*args, **kwargs)
        if not getattr(self.pipe.scheduler.step, "is_spy", False):
            inner = self.pipe.scheduler.step

            def above(*args: Any, **kwargs: Any) -> Any:
                self.plain.append(self.sample_of(args, kwargs))
                return inner(*args, **kwargs)

            above.is_spy = True  # type: ignore[attr-defined]
            self.pipe.scheduler.step = functools.wraps(self.step)(above)
        return found

    @contextmanager
    def __call__(self) -> Iterator[list[Seen]]:
        pipe = self.pipe
        self.forward, self.step, self.encode_prompt = pipe.transformer.forward, pipe.scheduler.step, pipe.encode_prompt
        handle = pipe.transformer.register_forward_pre_hook(self.above, with_kwargs=True)
        pipe.transformer.forward, pipe.scheduler.step = self.below, self.step_below(self.step)
        try:
            yield self.steps
        finally:
            handle.remove()
            del pipe.transformer.__dict__["forward"]
            pipe.scheduler.__dict__.pop("step", None)


def seen(pipe: Any, controls: list[Control], prompt: Any = PROMPT, **call: Any) -> list[Seen]:
    """All scheduler steps of a call under control, seen from above and from below."""
    spy = _Spy(pipe)
    with spy() as steps, t2ictl.controlled(pipe, controls):
        spy.encode_prompt = pipe.encode_prompt
        pipe.encode_prompt = spy.encode_above
        run(pipe, prompt, **{"steps": STEPS} | call)
        pipe.encode_prompt = spy.encode_prompt
    return steps

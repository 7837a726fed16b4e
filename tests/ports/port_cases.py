"""What stock pipelines call their denoisers with, and the port of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from t2ictl.families import find_adapter
from t2ictl.ports.base import DenoiserPort, take_rows
from tests import tiny
from tests import tiny_transformers as transformers
from tests.tiny_variants import VARIANTS

PROMPTS = ["a red circle and a blue square", "a cat"]
PLACES = transformers.TOKENS[0] * transformers.TOKENS[1]
BUILDS: dict[str, Callable[..., Any]] = {
    "sd": tiny.sd,
    "sdxl": tiny.sdxl,
    "sd_inpaint_9": functools.partial(tiny.sd_inpaint, 9),
    **transformers.FAMILIES,
    **VARIANTS,
}


@dataclass
class Call:
    """One call of a denoiser.

    Args:
        args: positional arguments.
        kwargs: the others.
        sample: what the pipeline hands to its scheduler afterwards.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sample: Tensor | None = None


def calls_of(pipe: Any, prompt: Any = PROMPTS, **call: Any) -> list[Call]:
    """All calls of the denoiser in a run of two steps."""
    is_unet = hasattr(pipe, "unet")
    seen: list[Call] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        # Containers are new ones: some models empty the lists that they are given.
        seen.append(Call(*take_rows((args, kwargs), slice(None), -1)))

    def step(result: Tensor, t: Tensor, sample: Tensor, **more: Any) -> Any:
        for each in seen:
            each.sample = sample if each.sample is None else each.sample
        return own_step(result, t, sample, **more)

    own_step, denoiser = pipe.scheduler.step, pipe.unet if is_unet else pipe.transformer
    pipe.scheduler.step = step
    try:
        with denoiser.register_forward_pre_hook(note, with_kwargs=True):
            (tiny if is_unet else transformers).run(pipe, prompt, steps=2, **call)
    finally:
        del pipe.scheduler.step
    return seen


def made(name: str) -> tuple[DenoiserPort, Call]:
    """The port of a tiny pipeline and the first call of its denoiser: two prompts with two images each."""
    pipe = BUILDS[name]()
    first = calls_of(pipe, num_images_per_prompt=2)[0]
    return find_adapter(pipe).port, first


@functools.cache
def known(name: str) -> tuple[DenoiserPort, Call]:
    """The same, made once: for tests that write into nothing."""
    return made(name)

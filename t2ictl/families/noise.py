"""How much noise there is: one scale for schedulers that mix image and noise in different ways.

A latent ``x = a z0 + b eps`` has the noise level ``s = b / (a + b)``, which is ``sigma`` of flow matching,
``x = (1 - s) z0 + s eps``. It falls from about 1 to 0 in the course of a call, whatever the spacing of its steps.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.schedulers import noise_levels

__all__ = ["is_flow", "level_at_fraction", "noise_level"]

_STEPS = 1000


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler's samples are those of flow matching.

    Args:
        scheduler: a diffusers scheduler.

    Example:
        >>> from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
        >>> is_flow(FlowMatchEulerDiscreteScheduler()), is_flow(DDIMScheduler())
        (True, False)
    """
    config = getattr(scheduler, "config", {})
    return type(scheduler).__name__.startswith("FlowMatch") or bool(config.get("use_flow_sigmas", False))


def noise_level(scheduler: Any, index: int) -> float | None:
    """Return the noise level of one evaluation.

    Args:
        scheduler: a diffusers scheduler whose timesteps are set.
        index: place of the evaluation among these.

    Returns:
        ``s`` in [0, 1]; None where the scheduler does not tell (EDM, consistency models with scales of their own).

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> flow = FlowMatchEulerDiscreteScheduler()
        >>> flow.set_timesteps(4)
        >>> noise_level(flow, 0)
        1.0
    """
    if is_flow(scheduler):
        sigmas: Tensor | None = getattr(scheduler, "sigmas", None)
        return None if sigmas is None or index >= len(sigmas) else float(sigmas[index])
    try:
        signal, noise = noise_levels(scheduler, float(torch.as_tensor(scheduler.timesteps[index])))
    except (UnsupportedPipeline, IndexError):
        return None
    return noise / (signal + noise)


@functools.cache
def level_at_fraction(fraction: float) -> float:
    """Return the noise level that Stable Diffusion 1.x has after a fraction of fifty evenly spaced steps.

    Methods published for it count their windows in such steps. Other schedules spend their steps elsewhere: the same
    noise is reached after another share of them.

    Args:
        fraction: share of the steps that are done, in [0, 1].

    Returns:
        ``s``.

    Example:
        >>> [round(level_at_fraction(each), 2) for each in (0.0, 0.2, 0.4, 0.5, 1.0)]
        [0.93, 0.82, 0.68, 0.6, 0.03]

    Reference:
        Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv 2112.10752: the
        square root of beta grows evenly from sqrt(0.00085) to sqrt(0.012).
    """
    betas_T = torch.linspace(0.00085**0.5, 0.012**0.5, _STEPS, dtype=torch.float64).square()
    last = _STEPS - _STEPS // 50 + 1  # timesteps are 981, 961, ..., 1
    alpha = float((1 - betas_T).cumprod(0)[max(last - round(fraction * _STEPS), 0)])
    return (1 - alpha) ** 0.5 / (alpha**0.5 + (1 - alpha) ** 0.5)

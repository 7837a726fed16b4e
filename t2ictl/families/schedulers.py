"""What is true of schedulers: the scale of their samples, which samples they ignore, and a wrap of ``step``.

A latent is moved in the *scaled* space, the one that the denoiser sees (Euler-type samples
have a standard deviation of up to 14, the denoiser's input always about 1). One step length
then means the same for every scheduler: ``x = c(sigma) z``, ``dx = -alpha dL/dx``,
``dz = dx / c``, which for ``c = 1 / sqrt(1 + sigma^2)`` is ``dz = -alpha sqrt(1 + sigma^2) dL/dx``.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from t2ictl.errors import UnsupportedPipeline
from t2ictl.patching import instance_attribute

__all__ = ["SchedulerPatch", "discards_sample", "input_scale", "noise_levels"]


def input_scale(scheduler: Any, timestep: Any) -> float:
    """Measure the factor ``c`` with which a scheduler scales samples for the denoiser.

    The pipeline has just asked the same question for the same timestep, so asking again
    changes nothing in the scheduler.

    Args:
        scheduler: a diffusers scheduler in the middle of a call.
        timestep: the timestep being evaluated.

    Returns:
        ``c`` in ``x = c z``; 1 for variance-preserving schedulers.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> input_scale(DDIMScheduler(), 10)
        1.0
    """
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones((), dtype=torch.float64), timestep))


def noise_levels(scheduler: Any, timestep: float) -> tuple[float, float]:
    """Return the shares of image and noise in the latents that the denoiser sees at a timestep.

    All schedulers of the supported families hand the denoiser ``x = sqrt(a) z0 + sqrt(1 - a) eps``, with ``a`` the
    cumulated alpha: those with samples ``z0 + sigma eps`` scale them by ``1 / sqrt(1 + sigma^2)``. Between two whole
    timesteps the logarithm of ``sigma`` is interpolated, as Karras-type schedules do. Solvers that show whole timesteps
    all the same (DPM++, UniPC, DEIS; with Karras sigmas KDPM2) are up to one of them away from it.

    Args:
        scheduler: a diffusers scheduler.
        timestep: the timestep, not necessarily whole.

    Returns:
        ``sqrt(a), sqrt(1 - a)``.

    Raises:
        UnsupportedPipeline: if the scheduler scales its samples in another way (EDM, flow matching), or its timesteps
            do not say how much noise there is.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> signal, noise = noise_levels(DDIMScheduler(), 0)
        >>> round(signal, 4), round(signal**2 + noise**2, 6)
        (0.9999, 1.0)
    """
    alphas_T, config = getattr(scheduler, "alphas_cumprod", None), scheduler.config
    # Flow matching has x = (1 - sigma) z0 + sigma eps; the other two tell the denoiser something else than the timestep
    # at which the training schedule has this sigma.
    others = {"use_flow_sigmas": True, "timestep_type": "continuous", "interpolation_type": "log_linear"}
    if alphas_T is None or any(config.get(key) == value for key, value in others.items()):
        raise UnsupportedPipeline(
            f"{type(scheduler).__name__} does not noise images as the supported families do.",
            "Use one of the ordinary schedulers, such as DDIM, Euler or DPM++.",
        )
    last = len(alphas_T) - 1
    low = min(max(int(timestep), 0), last)
    ends = [float(alphas_T[each]) for each in (low, min(low + 1, last))]
    share = min(max(timestep - low, 0.0), 1.0)
    if share == 0 or min(ends) <= 0:
        alpha = ends[0]
    else:
        odds = [math.log((1 - each) / each) for each in ends]
        alpha = 1 / (1 + math.exp(odds[0] + share * (odds[1] - odds[0])))
    return math.sqrt(alpha), math.sqrt(1 - alpha)


def discards_sample(scheduler: Any) -> bool:
    """Return whether the scheduler's next ``step`` ignores the sample that it is given.

    Two-stage schedulers keep the sample of their first evaluation and go on from that one at
    the second: every second evaluation of Heun and KDPM2, the second evaluation of PNDM's
    linear multistep start, and three of four in PNDM's Runge-Kutta start. A latent moved
    there is lost, so no move is made, nor paid for.

    Args:
        scheduler: a diffusers scheduler before a ``step``.

    Returns:
        True if a moved sample would be thrown away.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> discards_sample(DDIMScheduler())
        False
    """
    if not getattr(scheduler, "state_in_first_order", True):
        return True
    if type(scheduler).__name__ == "PNDMScheduler":
        runge_kutta = scheduler.counter < len(scheduler.prk_timesteps) and not scheduler.config.skip_prk_steps
        if runge_kutta:
            return bool(scheduler.counter % 4)
        return bool(scheduler.counter == 1 and scheduler.cur_sample is not None)
    return False


class SchedulerPatch:
    """An instance-level wrap of ``scheduler.step`` that may hand it another sample.

    The wrap shows the signature of the method that it replaces: stock pipelines inspect it to
    decide whether to pass ``generator`` and ``eta``, and an ancestral scheduler that is not
    given the user's generator draws from the global one.

    Args:
        scheduler: the scheduler to wrap.
        replace: gets the sample of each step and returns the one to use.
    """

    def __init__(self, scheduler: Any, replace: Callable[[Tensor], Tensor]) -> None:
        self.scheduler = scheduler
        original = scheduler.step
        signature, function = inspect.signature(original), getattr(original, "__func__", None)

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.arguments["sample"] = replace(bound.arguments["sample"])
            if function is None:  # somebody's own function at the instance, not a method
                return original(*bound.args, **bound.kwargs)
            return function(self, *bound.args, **bound.kwargs)

        if function is None:
            made: Any = functools.wraps(original)(functools.partial(step, scheduler))
        else:  # a method, which a deep copy of the scheduler binds to the copy
            made = types.MethodType(functools.wraps(function)(step), scheduler)
        self._undo = ExitStack()
        self._undo.enter_context(instance_attribute(scheduler, "step", made))

    def remove(self) -> None:
        """Put back what was there, unless someone else has replaced the wrap since."""
        self._undo.close()

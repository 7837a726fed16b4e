"""What is true of schedulers: the scale of their samples, which samples they discard, and a wrap of ``step``.

A latent is moved in the *scaled* space, the one that the denoiser sees (Euler-type samples
have a standard deviation of up to 14, the denoiser's input always about 1). One step length
then means the same for every scheduler: ``x = c(sigma) z``, ``dx = -alpha dL/dx``,
``dz = dx / c``, which for ``c = 1 / sqrt(1 + sigma^2)`` is ``dz = -alpha sqrt(1 + sigma^2) dL/dx``.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from t2ictl.errors import UnsupportedPipeline
from t2ictl.patching import InstanceAttributes

__all__ = ["SchedulerPatch", "discarded_samples", "input_scale", "keeps_precision", "needed_at_step", "noise_levels"]


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


def discarded_samples(scheduler: Any, timestep: Any, total: int) -> tuple[bool, ...]:
    """Find out at which evaluations of a call the scheduler goes on from another sample than it is given.

    Two-stage solvers keep the sample of one evaluation and step from that one at the next. A latent moved there is
    lost, so no move is made, nor paid for. It is measured, for a scheduler of any class: a copy makes the steps of the
    call on small random numbers, each with and without a moved sample. The predicted noise is the same for both,
    whatever the model predicts: a sample that only turns a velocity into noise is not stepped from.

    Args:
        scheduler: a diffusers scheduler before the first ``step`` of a call; it is not touched, and no random number of
            the caller's is used.
        timestep: the first one of the call.
        total: number of evaluations of the call.

    Returns:
        For each evaluation whether a moved sample is thrown away; False for all where a copy cannot be tried.

    Example:
        >>> from diffusers import HeunDiscreteScheduler
        >>> heun = HeunDiscreteScheduler()
        >>> heun.set_timesteps(2)
        >>> discarded_samples(heun, heun.timesteps[0], 3)
        (False, True, False)
    """
    times = tuple(float(each) for each in torch.as_tensor(scheduler.timesteps).tolist())
    start = getattr(scheduler, "begin_index", None)
    if start is None:
        first = float(torch.as_tensor(timestep).flatten()[0])
        start = times.index(first) if first in times else 0
    plain = {name: value for name, value in vars(scheduler).items() if isinstance(value, (bool, int, float, str))}
    config = sorted(getattr(scheduler, "config", {}).items())
    key = (type(scheduler), repr(config), repr(sorted(plain.items())), times, start, total)
    if key not in _MEASURED:
        if len(_MEASURED) >= _MOST_MEASURED:
            _MEASURED.clear()
        try:
            _MEASURED[key] = _measured(scheduler, start, total)
        except Exception:  # a step that wants more than stock pipelines pass: its moves are checked as they are made
            _MEASURED[key] = (False,) * total
    return _MEASURED[key]


def needed_at_step(scheduler: Any) -> tuple[str, ...]:
    """Name what a scheduler wants at each step beyond what every pipeline passes.

    Args:
        scheduler: a diffusers scheduler.

    Returns:
        Names of arguments without a default; of RePaint the original image and its mask.

    Example:
        >>> from diffusers import DDIMScheduler, RePaintScheduler
        >>> needed_at_step(DDIMScheduler()), needed_at_step(RePaintScheduler())
        ((), ('original_image', 'mask'))
    """
    passed = ("model_output", "timestep", "sample")
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(scheduler.step).parameters if hasattr(scheduler, "step") else {}
    return tuple(
        name
        for name, each in parameters.items()
        if each.default is inspect.Parameter.empty and each.kind not in open_ended and name not in passed
    )


def keeps_precision(scheduler: Any, dtype: torch.dtype) -> bool:
    """Find out whether a scheduler that steps from a float32 sample returns one in the precision of the model's result.

    Such a one may be handed a moved sample as it is: in half precision short moves would be rounded away.

    Args:
        scheduler: a diffusers scheduler in the middle of a call; it is not touched.
        dtype: precision of the pipeline's latents.

    Returns:
        True for float32, which has nothing to lose.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> flow = FlowMatchEulerDiscreteScheduler()
        >>> flow.set_timesteps(2)
        >>> keeps_precision(flow, torch.bfloat16)
        True
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return True
    key = (type(scheduler), repr(sorted(getattr(scheduler, "config", {}).items())), dtype)
    if key not in _KEEPS:
        try:
            double = _double(scheduler)
            result, sample = torch.zeros(1, 4, 2, 2, dtype=dtype), torch.zeros(1, 4, 2, 2)
            place = min(getattr(double, "step_index", None) or 0, len(double.timesteps) - 1)
            _KEEPS[key] = _step(double, result, double.timesteps[place], sample).dtype is dtype
        except Exception:  # what cannot be tried gets what it always got
            _KEEPS[key] = False
    return _KEEPS[key]


_KEEPS: dict[Any, bool] = {}
_MEASURED: dict[Any, tuple[bool, ...]] = {}
_MOST_MEASURED = 64
# Samples that are kept come back at a tenth of their size or more; of one that is not, rounding is left.
_LOST = 1e-3


@torch.no_grad()
def _measured(scheduler: Any, start: int, total: int) -> tuple[bool, ...]:
    double = _double(scheduler)
    if "prediction_type" in getattr(double, "config", {}):
        double.register_to_config(prediction_type="epsilon")
    source = torch.Generator().manual_seed(0)
    # Small, so that nothing is clipped on the way.
    sample = 0.5 * float(getattr(double, "init_noise_sigma", 1.0)) * torch.randn(1, 4, 8, 8, generator=source)
    found: list[bool] = []
    for t in double.timesteps[start : start + total]:
        move = 0.1 * sample.std() * torch.randn(sample.shape, generator=source)
        noise = double.scale_model_input(sample, t) if hasattr(double, "scale_model_input") else sample
        moved = _step(_double(double), noise, t, sample + move)
        sample = _step(double, noise, t, sample)
        found.append(float(((moved - sample) * move).sum() / move.square().sum()) < _LOST)
    return (*found, *(False,) * (total - len(found)))


def _step(scheduler: Any, noise: Tensor, t: Any, sample: Tensor) -> Tensor:
    """The next sample, with the same random numbers each time, and none of the caller's."""
    if "generator" in inspect.signature(scheduler.step).parameters:
        own = torch.Generator().manual_seed(0)
        return scheduler.step(noise, t, sample, generator=own, return_dict=False)[0]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return scheduler.step(noise, t, sample, return_dict=False)[0]


def _double(scheduler: Any) -> Any:
    """A copy of a scheduler on the CPU, with the ``step`` of its class; tables are shared, histories are not."""
    made = copy.copy(scheduler)
    own = {name: value for name, value in vars(scheduler).items() if name != "step"}
    tables = {name: value.cpu() for name, value in own.items() if isinstance(value, Tensor)}
    made.__dict__ = {**{name: copy.deepcopy(value) for name, value in own.items() if name not in tables}, **tables}
    return made


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
        if "sample" not in signature.parameters:  # somebody's own function that passes everything on
            signature = inspect.signature(types.MethodType(type(scheduler).step, scheduler))

        self._is_on = is_on = {id(scheduler)}

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            """Step from the sample that is to be used."""
            bound = signature.bind(*args, **kwargs)
            if id(self) in is_on:  # neither a copy of the scheduler, nor one whose session is over
                bound.arguments["sample"] = replace(bound.arguments["sample"])
            if function is None:  # somebody's own function at the instance, not a method
                return original(*bound.args, **bound.kwargs)
            return function(self, *bound.args, **bound.kwargs)

        if function is None:
            made: Any = functools.wraps(original)(functools.partial(step, scheduler))
        else:  # a method, which a deep copy of the scheduler binds to the copy
            made = types.MethodType(functools.wraps(function)(step), scheduler)
        self._changed = InstanceAttributes()
        self._changed.set(scheduler, "step", made)

    def remove(self) -> None:
        """Put back what was there, unless someone else has replaced the wrap since."""
        self._is_on.clear()
        self._changed.undo()

"""A request as the arguments of one pipeline's call: what it takes, which values it can use, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch

from t2ictl.errors import BadSetting, OutOfMemory, T2ictlError, UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.families.schedulers import needed_at_step
from t2ictl.families.transformers import default_argument
from t2ictl.settings.fields import given_fields
from t2ictl.settings.request import Request

__all__ = ["call_arguments", "checked_request", "named_refusals"]

#: What a request says under a name of its own, and what would change what a call returns.
_OURS = {
    "num_inference_steps": "steps",
    "num_images_per_prompt": "images_per_prompt",
    "generator": "seed",
    "callback_on_step_end": "on_step",
    "callback": "on_step",
    "prompt": "prompt",
    "output_type": "",
    "return_dict": "",
}
#: What a request has for every pipeline, and a value that asks for nothing.
_NEUTRAL = {"negative_prompt": "", "guidance_scale": Request(prompt="-").guidance_scale, "images_per_prompt": 1}
_CHECKING = ("diffusers", "transformers", "PIL")
_COMPUTING = (*_CHECKING, "torch", "numpy", "contextlib")
#: Ours that call a pipeline's own code, and pass on what it is given.
_CALLING = ("t2ictl.generation", "t2ictl.session.encoding", "t2ictl.session.hooks", "t2ictl.families.schedulers")
_MEMORY = ("allocate memory", "not enough memory", "out of memory", "Cannot allocate", "Invalid buffer size")


def checked_request(pipe: Any, request: Request, more: Mapping[str, Any]) -> Request:
    """Check what a pipeline is asked for, before any pass, and complete it.

    Guidance that nobody asked for is a transformer's own: 7.5 is that of U-Nets. The stock Stable Diffusion pipeline
    takes its own size when only one side is asked for; here the other side is filled in, so that the image has the size
    that its settings have.

    Args:
        pipe: a diffusers pipeline.
        request: what it is asked for.
        more: further arguments of its call.

    Returns:
        The request, with both sides or neither.

    Raises:
        BadSetting: if the pipeline has no such argument, a side that its layers do not divide, or a number of steps
            that its scheduler does not have.
    """
    taken, adapter = _parameters(pipe), find_adapter(pipe)
    if "guidance_scale" not in given_fields(request) and adapter.port.component == "transformer":
        own_scale = default_argument(pipe, "guidance_scale")
        request = request if own_scale is None else replace(request, guidance_scale=float(own_scale))
    for name in more:
        if name in _OURS or not (taken is None or name in taken):
            own = _OURS.get(name, "")
            own = own or ", ".join(each.name for each in fields(request) if each.name != "prompt")
            raise BadSetting(f"{type(pipe).__name__} cannot be asked with {name!r} here.", f"There are: {own}.")
    for name in ("width", "height", "negative_prompt"):
        if getattr(request, name) and not _takes(taken, name):
            raise BadSetting(f"{type(pipe).__name__} takes no {name}.", "Leave it out: the pipeline does not use it.")
    for side in ("width", "height"):
        value, factor = getattr(request, side), math.lcm(8, adapter.size_multiple)
        if value is not None and value % factor:
            below = max(factor, value - value % factor)
            raise BadSetting(
                f"Request.{side} {value} is no multiple of {factor}, which this model needs.",
                f"Use {below} or {below + factor}." if value > factor else f"Use {factor}.",
            )
    _check_steps(pipe, request.steps)
    _check_strength(pipe, request.steps, more)
    if (request.width is None) == (request.height is None) or "image" in more:
        return request
    own_height, own_width = adapter.native_size
    return replace(request, width=request.width or own_width, height=request.height or own_height)


def call_arguments(pipe: Any, request: Request, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the call of a pipeline.

    Args:
        pipe: a diffusers pipeline.
        request: as :func:`checked_request` returned it.
        more: further arguments of its call.

    Returns:
        Value by name, without those that this pipeline does not have and that ask for nothing.

    Raises:
        UnsupportedPipeline: if it takes no prompt.
        BadSetting: if it cannot do what is asked for.
    """
    taken, arguments = _parameters(pipe), request.arguments()
    if not _takes(taken, "prompt"):
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} takes no prompt.", "Use a pipeline that makes images of text."
        )
    for name in [name for name in arguments if not _takes(taken, name)]:
        ours = _OURS.get(name, name)
        if ours == "steps" or getattr(request, ours, None) != _NEUTRAL.get(ours, getattr(request, ours, None)):
            raise BadSetting(f"{type(pipe).__name__} takes no {ours}.", "Leave it out: the pipeline does not use it.")
        del arguments[name]
    return {**arguments, **more}


def _parameters(pipe: Any) -> set[str] | None:
    """Names that the call of a pipeline takes; None if it takes any, as somebody's own may.

    Those of diffusers pick old names out of their keyword arguments, and take no notice of a misspelled one.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if takes_any and not type(pipe).__module__.startswith("diffusers."):
        return None
    return set(parameters) - {"self"}


def _takes(taken: set[str] | None, name: str) -> bool:
    return taken is None or name in taken


def _check_steps(pipe: Any, steps: int) -> None:
    """Refuse a number of steps that the scheduler refuses, by asking a copy of it."""
    scheduler = getattr(pipe, "scheduler", None)
    most = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    if isinstance(most, int) and steps > most:
        raise BadSetting(
            f"Request.steps {steps} is more than the {most} steps that {type(scheduler).__name__} has.",
            f"Use 1 to {most}.",
        )
    if scheduler is not None and (wanted := needed_at_step(scheduler)):
        raise BadSetting(
            f"The steps of {type(scheduler).__name__} want {' and '.join(wanted)}, and this pipeline passes none.",
            "Use one of the ordinary schedulers, such as DDIM, Euler or DPM++.",
        )
    if scheduler is None or getattr(scheduler.config, "use_dynamic_shifting", False):
        return
    try:
        copy.deepcopy(scheduler).set_timesteps(steps)
    except Exception as error:  # of a configuration from somewhere else, all are possible
        raise BadSetting(
            f"{type(scheduler).__name__} cannot make {steps} steps: {_line(error)}", "Use another number of steps."
        ) from error


def _check_strength(pipe: Any, steps: int, more: Mapping[str, Any]) -> None:
    """Refuse a strength of image to image that leaves no step."""
    known = inspect.signature(type(pipe).__call__).parameters.get("strength")
    strength = more.get("strength", None if known is None else known.default)
    if known is not None and isinstance(strength, (int, float)) and 0 <= strength <= 1 and int(steps * strength) < 1:
        raise BadSetting(
            f"strength {strength} of {steps} steps leaves no step to make.", "Use more steps, or a larger strength."
        )


@contextmanager
def named_refusals(pipe: Any, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Name what a pipeline refuses before its first pass, and memory that runs out at any time.

    Args:
        pipe: a diffusers pipeline, which is called in the block.
        has_begun: whether a pass was made. After it, what code of the user's raises stays as it is.

    Yields:
        Nothing.

    Raises:
        BadSetting: in place of what the pipeline's own code raises of what it was given.
        OutOfMemory: if memory ran out.
    """
    try:
        yield
    except T2ictlError:
        raise
    except Exception as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(each in str(error) for each in _MEMORY):
            raise OutOfMemory(
                f"There was not enough memory for the images: {_line(error)}",
                "Make fewer or smaller ones at once; updates take less with checkpointing='block'.",
            ) from error
        if not _is_of_library(error, has_begun()):
            raise
        raise BadSetting(
            f"{type(pipe).__name__} refuses what it is asked for: {_line(error)}",
            "The reason is the pipeline's own; docs/errors.md says what can be asked for.",
        ) from error


def _is_of_library(error: BaseException, has_begun: bool) -> bool:
    """Whether the pipeline raised an error, or what it calls, and not code of the user's or ours.

    Before the first pass its checks are the innermost code. Later, and where torch cannot compute with what was given,
    nobody else's code may stand between the call and the error.
    """
    trace, names = error.__traceback__, [""]
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    if "CUDA" in str(error):
        return False  # of the machine
    if not has_begun and names[-1].partition(".")[0] in _CHECKING:
        return True
    last = max(number for number, name in enumerate(names) if not name or name.startswith("t2ictl."))
    inner = [name.partition(".")[0] for name in names[last + 1 :]]
    return names[last] in _CALLING and bool(inner) and all(name in _COMPUTING for name in inner)


def _line(error: BaseException) -> str:
    """The first line of an error, with a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:300] + "."

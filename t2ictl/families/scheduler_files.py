"""Schedulers in settings: class and configuration as JSON, and a pipeline that runs with them for a while."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import diffusers

from t2ictl.families.schedulers import needed_at_step
from t2ictl.patching import instance_attribute

__all__ = ["RecordedScheduler", "scheduler_config", "use_scheduler"]

LARGEST = 1_000_000
"""Largest number in a configuration that is used; training steps, which tables have a row for, are some thousands."""


class RecordedScheduler(NamedTuple):
    """A scheduler as settings have it.

    Args:
        name: its class in diffusers.
        config: its configuration.
    """

    name: str
    config: dict[str, Any]


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """Return the configuration of a scheduler as JSON values.

    Args:
        scheduler: a diffusers scheduler.

    Returns:
        Value by name; arrays as lists, and infinite numbers, which JSON does not have, as ``"inf"`` and ``"-inf"``.

    Example:
        >>> scheduler_config(diffusers.DDIMScheduler())["num_train_timesteps"]
        1000
    """
    config: dict[str, Any] = json.loads(scheduler.to_json_string())
    return {key: _written(value) for key, value in config.items() if not key.startswith("_")}


def _written(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _read(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in ("inf", "-inf") else value


@contextmanager
def use_scheduler(pipe: Any, recorded: RecordedScheduler | None) -> Iterator[None]:
    """Let a pipeline run with a recorded scheduler; its own comes back afterwards.

    Where class and configuration are the pipeline's own already, and where the class is not known here or does not take
    the configuration, the pipeline keeps its own.

    Args:
        pipe: a diffusers pipeline.
        recorded: the scheduler; None for the pipeline's own.

    Yields:
        Nothing.
    """
    made = None if recorded is None or _is_same(pipe.scheduler, recorded) else _made(recorded)
    if made is None:
        yield
    else:
        with instance_attribute(pipe, "scheduler", made):
            yield


def _is_same(scheduler: Any, recorded: RecordedScheduler) -> bool:
    return type(scheduler).__name__ == recorded.name and scheduler_config(scheduler) == recorded.config


def _is_large(value: Any) -> bool:
    """Whether a number of a stranger's would make tables that fill the memory."""
    return isinstance(value, (int, float)) and abs(value) > LARGEST


def _made(recorded: RecordedScheduler) -> Any:
    """The scheduler; None where it cannot be made. Only schedulers of diffusers are."""
    cls = getattr(diffusers, recorded.name, None) if recorded.name.isidentifier() else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        return None
    try:
        large = next((name for name, value in recorded.config.items() if _is_large(value)), None)
        if large is not None:
            raise ValueError(f"{large} is too large")
        made: Any = cls
        scheduler = made.from_config({name: _read(value) for name, value in recorded.config.items()})
        if wanted := needed_at_step(scheduler):
            raise ValueError(f"its steps want {' and '.join(wanted)}, which the pipeline does not pass")
        return scheduler
    except Exception as error:  # a configuration may be wrong in every way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"The scheduler {recorded.name} of the settings cannot be made: {reason}", stacklevel=4)
        return None

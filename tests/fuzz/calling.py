"""One call of a verb: whether it ended well or with an error of this library, and what it left in the pipeline."""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import t2ictl
from t2ictl.errors import T2ictlError
from tests import tiny
from tests.fuzz.argument_sets import ArgumentSet
from tests.fuzz.places import make_places
from tests.session.pipeline_cases import state

__all__ = ["Called", "call", "faults_of_call"]

_LONGEST = 1700


@dataclass(frozen=True, kw_only=True)
class Called:
    """How a call ended.

    Args:
        error: what it raised, or None.
        changed: what is not as it was in the pipeline.
        new: files that were left.
    """

    error: BaseException | None
    changed: tuple[str, ...]
    new: tuple[str, ...]


@functools.cache
def _pipe(name: str) -> Any:
    pipe = getattr(tiny, name)()
    tiny.run(pipe, "a red circle", steps=2)  # a first call leaves attributes of diffusers' own
    return pipe


def _state(pipe: Any) -> dict[str, Any]:
    parts = {name: part for name, part in pipe.components.items() if hasattr(part, "parameters")}
    grads = {name: [each.requires_grad for each in part.parameters()] for name, part in parts.items()}
    return {**state(pipe), "parts": {name: id(part) for name, part in pipe.components.items()}, "grads": grads}


def call(given: ArgumentSet) -> Called:
    """Make a call in an empty folder.

    Args:
        given: the call.

    Returns:
        How it ended.
    """
    pipe = _pipe(given.pipe) if given.pipe else given.wrong
    before = _state(pipe) if given.pipe else {}
    here, error = os.getcwd(), None
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_places(Path(name), [str(each) for each in given.values if isinstance(each, (str, Path))])
        found = sorted(os.listdir(name))
        os.chdir(name)
        try:
            values = given.values if given.verb == "load" else (pipe, *given.values)
            getattr(t2ictl, given.verb)(*values, **given.named)
        except BaseException as caught:  # what is no error of this library is the fault that is looked for
            error = caught
        finally:
            os.chdir(here)
        new = sorted(set(os.listdir(name)) - set(found))
    after = _state(pipe) if given.pipe else {}
    changed = tuple(key for key in before if before[key] != after[key])
    return Called(error=error, changed=changed, new=tuple(new))


def faults_of_call(called: Called) -> list[str]:
    """Return what is wrong with how a call ended.

    Args:
        called: how it ended.

    Returns:
        One entry a broken promise.
    """
    found = [f"{each} is not as it was" for each in called.changed] + [f"{each} was left" for each in called.new]
    error = called.error
    if error is None:
        return found
    if not isinstance(error, T2ictlError):
        return [*found, f"it ended with {type(error).__name__}: {error}"[:400]]
    if len(str(error)) > _LONGEST or "Traceback" in str(error):
        found.append(f"its message has {len(str(error))} characters")
    return found

"""Attributes set on objects of the user's, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["instance_attribute"]

_ABSENT = object()


@contextmanager
def instance_attribute(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """Set an attribute of an instance for the length of a ``with`` block.

    What stood in the instance's ``__dict__`` comes back, and what did not leaves it again, so that methods of the class
    show through as before. A value that somebody else has set in the meantime stays.

    Args:
        owner: any object with a ``__dict__``; a module's submodules and parameters are not reached.
        name: of the attribute.
        value: what it is within the block.

    Yields:
        The value.

    Example:
        >>> class Scheduler:
        ...     def step(self): return "own"
        >>> scheduler = Scheduler()
        >>> with instance_attribute(scheduler, "step", lambda: "ours"):
        ...     scheduler.step()
        'ours'
        >>> scheduler.step(), vars(scheduler)
        ('own', {})
    """
    before = owner.__dict__.get(name, _ABSENT)
    owner.__dict__[name] = value
    try:
        yield value
    finally:
        if owner.__dict__.get(name) is value:
            if before is _ABSENT:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before

"""Attributes set on objects of the user's, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["InstanceAttributes", "instance_attribute"]

_ABSENT = object()


class InstanceAttributes:
    """Attributes that are set on instances and put back together.

    What stood in an instance's ``__dict__`` comes back, and what did not leaves it again, so that methods of the class
    show through as before. A value that somebody else has set in the meantime stays. Each attribute is noted before it
    is set and forgotten after it is put back: :meth:`undo` may be broken off anywhere and run again.

    Example:
        >>> class Scheduler:
        ...     def step(self): return "own"
        >>> scheduler, changed = Scheduler(), InstanceAttributes()
        >>> changed.set(scheduler, "step", lambda: "ours")
        >>> scheduler.step()
        'ours'
        >>> changed.undo()
        >>> scheduler.step(), vars(scheduler)
        ('own', {})
    """

    def __init__(self) -> None:
        self._changed: list[tuple[Any, str, Any, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set one attribute.

        Args:
            owner: any object with a ``__dict__``; a module's submodules and parameters are not reached.
            name: of the attribute.
            value: what it is from now on.
        """
        self._changed.append((owner, name, value, owner.__dict__.get(name, _ABSENT)))
        owner.__dict__[name] = value

    def undo(self) -> None:
        """Put everything back, the latest first."""
        while self._changed:
            owner, name, value, before = self._changed[-1]
            if owner.__dict__.get(name) is value:
                if before is _ABSENT:
                    del owner.__dict__[name]
                else:
                    owner.__dict__[name] = before
            self._changed.pop()


@contextmanager
def instance_attribute(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """Set an attribute of an instance for the length of a ``with`` block.

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
    """
    changed = InstanceAttributes()
    try:
        changed.set(owner, name, value)
        yield value
    finally:
        changed.undo()

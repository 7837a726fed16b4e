"""Asking, before every pass, whether the user still wants the image: a refinement may take longer than all steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from t2ictl.errors import Cancelled

__all__ = ["cancel_when", "check_cancelled"]

_ASKED: ContextVar[Callable[[], bool] | None] = ContextVar("t2ictl_cancel", default=None)


@contextmanager
def cancel_when(is_cancelled: Callable[[], bool] | None) -> Iterator[None]:
    """Ask a function before every extra pass of the sessions in the block.

    Args:
        is_cancelled: returns True to stop; None to ask nobody.

    Yields:
        Nothing.

    Example:
        >>> with cancel_when(lambda: True):
        ...     check_cancelled()
        Traceback (most recent call last):
        t2ictl.errors.Cancelled: Stopped between two passes.
    """
    token = _ASKED.set(is_cancelled)
    try:
        yield
    finally:
        _ASKED.reset(token)


def check_cancelled() -> None:
    """Raise :class:`Cancelled` if the user has asked to stop."""
    asked = _ASKED.get()
    if asked is not None and asked():
        raise Cancelled("Stopped between two passes.")

"""Files that settings name: allowed for the user's own settings, refused for those that came from a stranger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from t2ictl.errors import BadSetting

__all__ = ["no_files", "require_files"]

_ALLOWED: ContextVar[bool] = ContextVar("t2ictl_named_files", default=True)


@contextmanager
def no_files() -> Iterator[None]:
    """Refuse every file that settings name while the block runs.

    Yields:
        Nothing.

    Example:
        >>> with no_files():
        ...     require_files("mask.png")
        Traceback (most recent call last):
        t2ictl.errors.BadSetting: The settings name the file 'mask.png', which is not opened. Give ...
    """
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def require_files(name: object) -> None:
    """Refuse to open a file that settings name, where that is not allowed.

    Args:
        name: the file.

    Raises:
        BadSetting: inside of :func:`no_files`.
    """
    if not _ALLOWED.get():
        shown = str(name)
        raise BadSetting(
            f"The settings name the file {shown[:60]!r}, which is not opened.", "Give the picture or mask by hand."
        )

"""Files that settings name: allowed for the user's own settings, refused for those that came from a stranger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from t2ictl.errors import BadSetting

__all__ = ["forbid_paths", "require_files"]

_ALLOWED: ContextVar[bool] = ContextVar("t2ictl_named_files", default=True)


@contextmanager
def forbid_paths() -> Iterator[None]:
    """Refuse every file that settings name while the block runs.

    Yields:
        Nothing.

    Example:
        >>> with forbid_paths():
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
        BadSetting: inside of :func:`forbid_paths`.
    """
    if not _ALLOWED.get():
        shown = str(name)
        raise BadSetting(
            f"The settings name the file {shown[:60]!r}, which is not opened.", "Give the image or mask by hand."
        )

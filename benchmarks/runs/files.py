"""Files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there when it is on the disk.

    Args:
        path: the file; an older one stays as it is until the new one is complete.
        content: all of it.

    Example:
        >>> write_whole(Path("a.txt"), b"new")
        >>> Path("a.txt").read_bytes()
        b'new'
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

"""A folder from which an interrupted program goes on: images by key, and rows of JSON that are appended.

An image is written beside its place and moved there, so it is complete or absent. Rows are lines at the end of a
file; a write that was interrupted leaves a last line without its newline, which is not read and is cut off before
anything is appended. So what the folder holds is complete, and what it does not hold is made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from t2ictl.errors import BadSetting
from t2ictl.settings.files import write_bytes, write_png
from t2ictl.settings.images import open_image

__all__ = ["Line", "Store"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that was written to its end.

    Args:
        row: its JSON object; None if the line is damaged.
        end: where it ends in the file (bytes).
    """

    row: dict[str, Any] | None
    end: int


@dataclass(frozen=True)
class Store:
    """Images by key and files of rows below one folder.

    Several processes may write images, each of which replaces a whole file. A file of rows has one writer at a time:
    processes that share a folder have a file each.

    Args:
        root: the folder. It and the folders in it are made when they are first written to.

    Example:
        >>> store = Store(Path("run"))
        >>> store.append("rows/first", [{"seed": 0}, {"seed": 1}])
        >>> store.rows("rows/first")
        [{'seed': 0}, {'seed': 1}]
        >>> _ = store.write_image("images/cat-0", Image.new("RGB", (4, 2)), {"seed": 0})
        >>> store.read_image("images/cat-0").size, store.read_image("images/cat-1")
        ((4, 2), None)
    """

    root: Path

    # -- rows ------------------------------------------------------------------------------------

    def lines(self, name: str) -> Iterator[Line]:
        """Read a file of rows line by line, without an incomplete last line.

        Args:
            name: of the file, without its ending; may contain folders.

        Yields:
            The lines in the order of the file; none if there is no file.
        """
        path, end = self._rows_path(name), 0
        content = path.read_bytes() if path.exists() else b""
        for text in content.split(b"\n")[:-1]:
            end += len(text) + 1
            yield Line(row=_row(text), end=end)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return all rows of a file; incomplete and damaged lines count as absent.

        Args:
            name: of the file, without its ending.

        Returns:
            The rows in the order in which they were appended.
        """
        return [line.row for line in self.lines(name) if line.row is not None]

    def append(self, name: str, rows: Sequence[Mapping[str, Any]], *, sync: bool = True) -> None:
        """Append rows in one write, behind the last complete line.

        Args:
            name: of the file, without its ending.
            rows: JSON objects with finite numbers.
            sync: whether to return only when they are on the disk.

        Raises:
            ValueError: if a number is not finite; nothing is written then.
        """
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        self.cut(name)
        path = self._rows_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            handle.write(text.encode("utf-8"))
            handle.flush()
            if sync:
                os.fsync(handle.fileno())

    def cut(self, name: str, end: int | None = None) -> None:
        """Cut off what an interrupted write left at the end of a file.

        Args:
            name: of the file, without its ending.
            end: how much of it stays (bytes); None keeps all complete lines.
        """
        path = self._rows_path(name)
        if not path.exists():
            return
        with path.open("r+b") as handle:
            size = handle.seek(0, os.SEEK_END)
            if end is None:
                end = _complete(handle, size)
            if end < size:
                handle.truncate(end)
                os.fsync(handle.fileno())

    def _rows_path(self, name: str) -> Path:
        return self.root / f"{name}.jsonl"

    # -- files -----------------------------------------------------------------------------------

    def image_path(self, key: str) -> Path:
        """Return the file of an image, whether it is there or not.

        Args:
            key: name of the image; may contain folders.

        Returns:
            A PNG file below the root.
        """
        return self.root / f"{key}.png"

    def write_image(self, key: str, image: Image.Image, settings: dict[str, Any]) -> Path:
        """Write an image with its settings inside, completely or not at all.

        Args:
            key: name of the image.
            image: the image.
            settings: JSON values.

        Returns:
            Its file.
        """
        path = self.image_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_png(image, path, settings)

    def read_image(self, key: str) -> Image.Image | None:
        """Read an image.

        Args:
            key: name of the image.

        Returns:
            An RGB image; None if there is none, or if its file is damaged.
        """
        path = self.image_path(key)
        try:
            return open_image(str(path)) if path.is_file() else None
        except BadSetting:
            return None

    def write_file(self, name: str, content: bytes) -> Path:
        """Write any other file, completely or not at all.

        Args:
            name: of the file, with its ending; may contain folders.
            content: all of it.

        Returns:
            The file.
        """
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_bytes(path, content)


def _row(text: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _complete(handle: Any, size: int) -> int:
    """Where the last complete line of an open file ends."""
    if size:
        handle.seek(size - 1)
        if handle.read(1) == b"\n":
            return size
    handle.seek(0)
    return int(handle.read().rfind(b"\n")) + 1

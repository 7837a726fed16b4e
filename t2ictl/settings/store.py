"""A folder from which an interrupted program goes on: images by key, and rows of JSON that are appended.

An image is written beside its place and moved there, so it is complete or absent. Rows are lines at the end of a
file; a write that was interrupted leaves a last line without its newline, which is not read and is cut off before
anything is appended. Each line ends with a checksum of itself, so that one which a disk or an editor changed counts as
absent. So what the folder holds is complete and as it was written, and what it does not hold is made again.
"""

from __future__ import annotations

import hashlib
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

__all__ = ["CHECKSUM", "Line", "Store", "file_hash", "file_name"]

CHECKSUM = "checksum"
"""Key that ends each line: the first 16 hexadecimal digits of the SHA-256 of the line without it."""
_SEAL = f', "{CHECKSUM}": "'.encode()
_DIGITS = 16
_SEAL_BYTES = len(_SEAL) + _DIGITS + len(b'"}')
_LONGEST_NAME = 150  # of the 255 that most file systems have; callers add seeds and endings
_ALIKE = 3  # bytes of a seal that may be damaged; by more, other keys differ from it
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


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
            rows: JSON objects with finite numbers, and without the key ``checksum``, which the file adds.
            sync: whether to return only when they are on the disk.

        Raises:
            ValueError: if a number is not finite, or a row has a checksum; nothing is written then.
        """
        content = b"".join(_sealed(row) + b"\n" for row in rows)
        self.cut(name)
        path = self._rows_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            handle.write(content)
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


def file_name(key: str) -> str:
    """Return a name that stands for a key in file systems, another one for each key.

    Letters, digits, ``.``, ``_`` and ``-`` stay; every other byte of its UTF-8 becomes ``=`` and two digits, and so
    does a dot at the beginning. Of a long name only the beginning stays, and a hash follows. No name contains a slash.

    Args:
        key: any text that is not empty.

    Returns:
        The name.

    Example:
        >>> file_name("a-b"), file_name("a/b"), file_name("..")
        ('a-b', 'a=2Fb', '=2E.')
    """
    kept = "".join(
        char if char in _PLAIN else "".join(f"={byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in key
    )
    name = f"=2E{kept[1:]}" if kept.startswith(".") else kept
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return f"{name[: _LONGEST_NAME - _DIGITS - 1]}={digest}"


def file_hash(path: Path) -> str:
    """Hash the bytes of a file.

    Args:
        path: a file that is there.

    Returns:
        Its SHA-256.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sealed(row: Mapping[str, Any]) -> bytes:
    """Return the line of a row, without its newline."""
    if CHECKSUM in row:
        raise ValueError(f"a row cannot have the key {CHECKSUM!r} of its own")
    text = json.dumps({**row, CHECKSUM: ""}, ensure_ascii=False, allow_nan=False).encode("utf-8")
    body = text.removesuffix(b'"}')
    return body + _digest(body) + b'"}'


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_DIGITS].encode()


def _row(text: bytes) -> dict[str, Any] | None:
    """Return the row of a line; None if it is damaged. Lines without a checksum were written before there was one."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    # A seal that is itself damaged must not make its line pass for an old one.
    end = text[-_SEAL_BYTES:]
    differing = sum(one != other for one, other in zip(end, _SEAL, strict=False))
    if CHECKSUM not in row and (len(end) < _SEAL_BYTES or differing > _ALIKE):
        return row
    body = text[: -_DIGITS - 2]
    return row if row.pop(CHECKSUM, None) == _digest(body).decode() else None


def _complete(handle: Any, size: int) -> int:
    """Where the last complete line of an open file ends."""
    if size:
        handle.seek(size - 1)
        if handle.read(1) == b"\n":
            return size
    handle.seek(0)
    return int(handle.read().rfind(b"\n")) + 1

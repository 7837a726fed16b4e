"""A text chunk of a PNG, found without decoding the image: a small file can hold an enormous one."""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO

__all__ = ["read_png_text"]

_KINDS = (b"tEXt", b"zTXt", b"iTXt")


def read_png_text(handle: BinaryIO, keyword: str, most: int) -> str | None:
    """Return the text that a PNG has under a keyword, wherever in the file it is.

    Args:
        handle: the file, open for reading bytes.
        keyword: of the chunk.
        most: largest text (bytes).

    Returns:
        The text; None if there is no such chunk.

    Raises:
        ValueError: if the file has no header, or the chunk is damaged, cut off, or larger than ``most``.
    """
    handle.seek(8)
    if handle.read(8) != b"\0\0\0\rIHDR":
        raise ValueError("it has no header")
    handle.seek(8)
    opening = keyword.encode("latin-1") + b"\0"
    while len(head := handle.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        start = handle.read(min(length, len(opening))) if kind in _KINDS else b""
        if start != opening:
            handle.seek(length - len(start) + 4, os.SEEK_CUR)
            continue
        if length > most + 4096:
            raise ValueError(f"its text is larger than {most} bytes")
        content, checksum = handle.read(length - len(start)), handle.read(4)
        if len(checksum) < 4 or struct.unpack(">I", checksum)[0] != zlib.crc32(kind + start + content):
            raise ValueError("its text is damaged or cut off")
        return _text(kind, content, most)
    return None


def _text(kind: bytes, content: bytes, most: int) -> str:
    """Decode what stands behind the keyword."""
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed, content = content[:1] == b"\1", content[2:].split(b"\0", 2)[-1]
    elif is_packed:
        content = content[1:]
    if is_packed:
        try:
            content = zlib.decompressobj().decompress(content, most + 1)
        except zlib.error as error:
            raise ValueError(f"its text is damaged ({error})") from None
    if len(content) > most:
        raise ValueError(f"its text is larger than {most} bytes")
    return content.decode("utf-8" if kind == b"iTXt" else "latin-1")

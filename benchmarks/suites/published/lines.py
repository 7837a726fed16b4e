"""Reading files line by line, so that an error names its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ictl.errors import BadSetting

__all__ = ["Line", "read_lines", "read_objects"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A place in a file.

    Args:
        path: the file.
        number: the line, from 1.
    """

    path: Path
    number: int

    def error(self, problem: str, remedy: str) -> BadSetting:
        """Return the error for this line.

        Args:
            problem: what is wrong with it.
            remedy: what to do.

        Returns:
            An error that names file and line.
        """
        return BadSetting(f"{self.path}, line {self.number}: {problem}", remedy)


def read_lines(path: Path) -> Iterator[tuple[Line, str]]:
    """Read the lines of a text file that are not empty, whatever their ends.

    Args:
        path: UTF-8, with or without a byte order mark.

    Yields:
        The place and the text without blanks around it.

    Raises:
        BadSetting: for a file that is not there, or is not UTF-8.

    Example:
        >>> _ = Path("a.txt").write_bytes(b"a cat\\r\\n\\r\\na dog\\n")
        >>> [(line.number, text) for line, text in read_lines(Path("a.txt"))]
        [(1, 'a cat'), (3, 'a dog')]
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadSetting(
            f"{path} cannot be read: {error.strerror}.", "Give the folder with the prompt files."
        ) from None
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise Line(path=path, number=number).error("not UTF-8.", "Save the file as UTF-8.") from None
    for number, text in enumerate(content.split("\n"), start=1):
        if text.strip():
            yield Line(path=path, number=number), text.strip()


def read_objects(path: Path, fields: Mapping[str, type]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Read a file with one JSON object a line.

    Args:
        path: the file.
        fields: what each object must have, and of which type.

    Yields:
        The place and the object.

    Raises:
        BadSetting: for a line that is no JSON object, or lacks a field or has it in another type.

    Example:
        >>> _ = Path("a.jsonl").write_text('{"prompt": 3}')
        >>> next(read_objects(Path("a.jsonl"), {"prompt": str}))
        Traceback (most recent call last):
        t2ictl.errors.BadSetting: a.jsonl, line 1: 'prompt' is 3, not text. Put the line right, or take it out.
    """
    names = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
    for line, text in read_lines(path):
        try:
            data = json.loads(text)
        except ValueError as error:
            raise line.error(f"not JSON ({error}).", "Put the line right, or take it out.") from None
        if not isinstance(data, dict):
            raise line.error("no JSON object.", "Put the line right, or take it out.")
        for name, kind in fields.items():
            if not isinstance(data.get(name), kind) or isinstance(data[name], bool):
                found = f"{name!r} is {data[name]!r}, not {names[kind]}" if name in data else f"no {name!r}"
                raise line.error(f"{found}.", "Put the line right, or take it out.")
        yield line, data

"""Where a story run keeps what it has: a header, and one line of JSON a story and arm, so that it can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ictl.errors import BadSetting

__all__ = ["StoryStore", "digest"]

HEADER, ROWS = "header.json", "stories.jsonl"


def digest(settings: Mapping[str, Any]) -> str:
    """Give a short hash of settings, whatever the order of their names.

    Args:
        settings: plain JSON data.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class StoryStore:
    """The folder of a run.

    A killed process leaves at most one line without an end, which is cut off when the folder is opened again.

    Args:
        folder: made if it is not there.
        settings: what all rows have in common, as plain JSON data; None to read a folder as it is.

    Raises:
        BadSetting: if the folder was begun with other settings, or, to be read, holds no run.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None) -> None:
        self.folder, self._rows = folder, folder / ROWS
        header = folder / HEADER
        if settings is None and not header.exists():
            raise BadSetting(f"The folder {str(folder)!r} holds no story run.", "Run one with this --out first.")
        folder.mkdir(parents=True, exist_ok=True)
        if not header.exists():
            _write(header, json.dumps({"hash": digest(settings or {}), "settings": dict(settings or {})}, indent=1))
        self.header: dict[str, Any] = json.loads(header.read_text(encoding="utf-8"))
        if settings is not None and self.header["hash"] != digest(settings):
            known = self.header["settings"]
            differ = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
            raise BadSetting(
                f"The folder {str(folder)!r} was begun with other settings ({', '.join(differ)} differ).",
                "Use the same settings, or another --out.",
            )
        if settings is not None:
            self._cut()

    def _cut(self) -> None:
        """Cut off a line that was not written to its end."""
        data = self._rows.read_bytes() if self._rows.exists() else b""
        if data and not data.endswith(b"\n"):
            with self._rows.open("r+b") as handle:
                handle.truncate(data.rfind(b"\n") + 1)
                os.fsync(handle.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """Give all rows, in the order in which they were written; a line without an end is left out."""
        text = self._rows.read_text(encoding="utf-8") if self._rows.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def done(self, settings_by_arm: Mapping[str, Mapping[str, Any]]) -> set[tuple[str, str]]:
        """Give the stories that are there.

        Args:
            settings_by_arm: settings of the arms that are about to be run.

        Returns:
            Pairs of story and arm.

        Raises:
            BadSetting: if rows of one of these arms were made with other settings of it.
        """
        found = set()
        for row in self.rows():
            arm = row["arm"]
            if arm in settings_by_arm and row["arm_hash"] != digest(settings_by_arm[arm]):
                raise BadSetting(
                    f"The arm {arm!r} had other settings when {str(self.folder)!r} was begun.",
                    "Give the new one another label, or use another --out.",
                )
            found.add((row["story"], arm))
        return found

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, and wait until it is on the disk."""
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        with self._rows.open("ab") as handle:
            handle.write(line.encode())
            handle.flush()
            os.fsync(handle.fileno())


def _write(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    half = path.with_suffix(".part")
    with half.open("w", encoding="utf-8") as handle:
        handle.write(text + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    half.replace(path)

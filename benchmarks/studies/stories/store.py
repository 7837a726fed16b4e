"""Where a story run keeps what it has: a header, and one line of JSON a story and arm, so that it can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from t2ictl.errors import BadSetting
from t2ictl.settings.store import Store

__all__ = ["StoryStore", "digest"]

HEADER, ROWS = "header.json", "stories"


def digest(settings: Mapping[str, Any]) -> str:
    """Compute a short hash of settings, whatever the order of their names.

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
    """The folder of a run, with one process at work on it.

    Args:
        folder: made if it is not there.
        settings: what all rows have in common, as plain JSON data; None to read a folder as it is.

    Raises:
        BadSetting: if the folder was begun with other settings, or, to be read, holds no run.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None) -> None:
        self.folder, self._store = folder, Store(folder)
        header = folder / HEADER
        if settings is None and not header.exists():
            raise BadSetting(f"The folder {str(folder)!r} holds no story run.", "Run one with this --out first.")
        if not header.exists():
            begun = {"hash": digest(settings or {}), "settings": dict(settings or {})}
            self._store.write_file(HEADER, (json.dumps(begun, indent=1) + "\n").encode())
        self.header: dict[str, Any] = json.loads(header.read_text(encoding="utf-8"))
        if settings is not None and self.header["hash"] != digest(settings):
            known = self.header["settings"]
            differ = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
            raise BadSetting(
                f"The folder {str(folder)!r} was begun with other settings ({', '.join(differ)} differ).",
                "Use the same settings, or another --out.",
            )

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, in the order in which they were written."""
        return self._store.rows(ROWS)

    def done(self, settings_by_arm: Mapping[str, Mapping[str, Any]]) -> set[tuple[str, str]]:
        """List the stories that are there.

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
        self._store.append(ROWS, [row])

    def save_sheet(self, story: str, sheet: Image.Image, arms: Sequence[str]) -> None:
        """Write the contact sheet of a story.

        Args:
            story: its key, which names the file.
            sheet: the images of all arms.
            arms: labels of the arms, from top to bottom.
        """
        self._store.write_image(story, sheet, {"sheet": {"story": story, "arms": list(arms)}})

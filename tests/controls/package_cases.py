"""Packages that look as if they were installed: their entry points are found as those of any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest


def write_metadata(folder: Path, groups: Mapping[str, Mapping[str, str]], name: str = "stray") -> None:
    """Write what ``pip install`` leaves beside a package.

    Args:
        folder: where the package is.
        groups: for each group of entry points, objects such as ``"module:name"`` by name.
        name: of the package.
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{point} = {value}" for point, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, groups: Mapping[str, Mapping[str, str]]) -> None:
    """Install a package with entry points, for the length of a test; ``folder`` goes on the import path."""
    write_metadata(folder, groups)
    monkeypatch.syspath_prepend(str(folder))

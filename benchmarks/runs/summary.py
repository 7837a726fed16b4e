"""The short table that a run prints: outcomes in percent for each arm and category. Intervals are another command's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from t2ictl.benchmarks.runs.table import flat_rows

__all__ = ["is_oracle", "shown_name", "summarize", "summary_text"]

_ORACLE = re.compile(r"best-of-\d+")


def is_oracle(label: str) -> bool:
    """Return whether the judge that reports also chooses the images of an arm.

    Args:
        label: label of the arm.

    Returns:
        True for best-of-N, False for a selection by a loss.

    Example:
        >>> is_oracle("best-of-4"), is_oracle("best-of-4:gentle")
        (True, False)
    """
    return _ORACLE.fullmatch(label) is not None


def shown_name(label: str) -> str:
    """Return the name of an arm in tables: an oracle is called one.

    Args:
        label: label of the arm.

    Returns:
        The label, marked where the reporting judge selects.

    Example:
        >>> shown_name("best-of-4"), shown_name("best-of-4:gentle")
        ('best-of-4 (oracle)', 'best-of-4:gentle')
    """
    return f"{label} (oracle)" if is_oracle(label) else label


def summarize(rows: Sequence[Mapping[str, Any]], arms: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Count outcomes by category and arm.

    Args:
        rows: as they were written.
        arms: the arms in the order of the table; others come after them.

    Returns:
        One entry a category and arm: images, failures, outcomes in percent, mean passes.

    Example:
        >>> row = {"arm": "plain", "category": "pair", "prompt_id": "a", "seed": 0, "status": "ok",
        ...        "outcomes": {"has_all": True}, "forwards": 4, "backwards": 0}
        >>> summarize([row, row | {"seed": 1, "outcomes": {"has_all": False}}])[0]["percent"]
        {'has_all': 50.0}
    """
    names = sorted({name for row in rows for name in row.get("outcomes", {})})
    place = {arm: number for number, arm in enumerate(arms)}
    ordered = sorted(flat_rows(rows), key=lambda row: (row["category"], place.get(row["arm"], len(place)), row["arm"]))
    table = []
    for (category, arm), group in groupby(ordered, key=lambda row: (row["category"], row["arm"])):
        listed = list(group)
        good = [row for row in listed if row["status"] == "ok"]
        table.append(
            {
                "category": category,
                "arm": arm,
                "shown": shown_name(arm),
                "n": len(good),
                "failed": len(listed) - len(good),
                "percent": {name: _mean([100.0 * row[name] for row in good]) for name in names},
                "forwards": _mean([row["forwards"] for row in good]),
                "backwards": _mean([row["backwards"] for row in good]),
            }
        )
    return table


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 2) if values else None


def summary_text(table: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """Write the table as text.

    Args:
        table: from :func:`summarize`.
        notes: lines above it.

    Returns:
        Lines for a terminal.

    Example:
        >>> entry = {"category": "pair", "shown": "plain", "n": 4, "failed": 0, "percent": {"has_all": 50.0},
        ...          "forwards": 40.0, "backwards": 0.0}
        >>> print(summary_text([entry], ["a note"]))
        a note
        category  arm    n  failed  has_all %  forwards  backwards
        pair      plain  4       0       50.0      40.0        0.0
    """
    names = list(table[0]["percent"]) if table else []
    lines = [["category", "arm", "n", "failed", *(f"{name} %" for name in names), "forwards", "backwards"]]
    for entry in table:
        values = [*entry["percent"].values(), entry["forwards"], entry["backwards"]]
        shown = ["-" if value is None else f"{value:.1f}" for value in values]
        lines.append([entry["category"], entry["shown"], str(entry["n"]), str(entry["failed"]), *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([*notes, *text])

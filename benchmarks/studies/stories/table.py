"""Tables of a story run: shares of each arm with intervals, and paired differences. A story is the unit.

Letters: ``P`` story, ``C`` measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2ictl.benchmarks.markdown import markdown_table
from t2ictl.benchmarks.studies.stories.measures import MEASURES, StoryReading, outcomes, story_measures
from t2ictl.evaluation.statistics.intervals import ALL_ALIKE, STUDENT, Bounds, difference_bounds, share_bounds
from t2ictl.evaluation.statistics.resampling import Array, seed_of

__all__ = ["COLUMNS", "difference_table", "share_table", "show"]

COLUMNS = (
    *("same", "same_color", "same_there", "swap", "missing", "broken", "fused", "extra"),
    *("pairs", "pairs_there", "unclear"),
)
RESAMPLES = 9999
MARKS = {ALL_ALIKE: "=", STUDENT: "t"}
NOTES = (
    "In percent, 95 % intervals over stories (each the mean of its subjects and scenes). Shares: Wilson's with the "
    "effective number of independent stories. Differences: paired by story, bootstrap of whole stories; 't': "
    "Student's, few stories changed; '=': all stories alike. A missing subject is not the same."
)
Rows = Sequence[Mapping[str, Any]]


def _by_story(rows: Rows) -> dict[int, dict[str, dict[str, StoryReading]]]:
    """Readings by number of subjects, arm and story."""
    found: dict[int, dict[str, dict[str, StoryReading]]] = {}
    for row in rows:
        reading = StoryReading.from_dict(row["reading"])
        found.setdefault(len(reading.portraits), {}).setdefault(row["arm"], {})[row["story"]] = reading
    return dict(sorted(found.items()))


def _values(readings: Sequence[StoryReading]) -> Array:
    """``values_PC``: the measures of each story."""
    made = [story_measures(reading) for reading in readings]
    return np.array([[each[name] for name in COLUMNS] for each in made], dtype=float)


def _cells(bounds: Bounds, *, signed: bool) -> list[str]:
    cells = []
    for estimate, low, high, method in zip(bounds.estimate, bounds.low, bounds.high, bounds.method, strict=True):
        if np.isnan(estimate):
            cells.append("-")
            continue
        sign = "+" if signed else ""
        value, bottom, top = (f"{100 * each:{sign}.1f}" for each in (estimate, low, high))
        cells.append(f"{value} [{bottom}, {top}]{MARKS.get(str(method), '')}")
    return cells


def _text(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_table(head, lines))


def share_table(rows: Rows) -> str:
    """Show the measures of each arm and number of subjects.

    Args:
        rows: of a run.

    Returns:
        A Markdown table. ``n`` counts subjects in scenes whose portrait is clear.
    """
    lines = []
    for subjects, arms in _by_story(rows).items():
        for arm, readings in arms.items():
            told = list(readings.values())
            clear = sum(not each.unclear for reading in told for each in outcomes(reading))
            bounds = share_bounds(_values(told))
            lines.append([str(subjects), arm, str(len(told)), str(clear), *_cells(bounds, signed=False)])
    return _text(["subjects", "arm", "stories", "n", *(MEASURES[name] for name in COLUMNS)], lines)


def difference_table(rows: Rows, against: Sequence[str] = ("plain", "in_full", "resample")) -> str:
    """Show what each arm changes, story by story.

    Args:
        rows: of a run.
        against: arms that the others are compared with; those that the run has not are left out.

    Returns:
        A Markdown table.
    """
    lines = []
    for subjects, arms in _by_story(rows).items():
        for base in against:
            for arm, readings in arms.items():
                common = [story for story in readings if story in arms.get(base, {})]
                if arm == base or not common or (arm in against and against.index(arm) < against.index(base)):
                    continue
                change_PC = _values([readings[story] for story in common]) - _values(
                    [arms[base][story] for story in common]
                )
                found = difference_bounds(change_PC, RESAMPLES, seed_of(f"stories of {subjects}", 0)).bounds
                lines.append([str(subjects), f"{arm} - {base}", str(len(common)), *_cells(found, signed=True)])
    return _text(["subjects", "difference", "stories", *(MEASURES[name] for name in COLUMNS)], lines)


def show(header: Mapping[str, Any], rows: Rows) -> str:
    """Show all tables of a run.

    Args:
        header: its settings.
        rows: of the run.

    Returns:
        Markdown.
    """
    how = ", ".join(f"{key} {value}" for key, value in header.items())
    seconds: dict[str, list[float]] = {}
    for row in rows:
        seconds.setdefault(f"{len(row['reading']['portraits'])} subjects, {row['arm']}", []).append(row["seconds"])
    cost = "; ".join(f"{name}: {np.mean(each):.2f}" for name, each in sorted(seconds.items()))
    parts = [how, share_table(rows), difference_table(rows), NOTES, f"Seconds a story: {cost}."]
    return "\n\n".join(parts)

"""The data of ``index.html``: every image of the run with what was said of it, arms beside each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from t2ictl.benchmarks.results.report.scores import Scored
from t2ictl.benchmarks.runs.summary import shown_name

__all__ = ["page_data"]


def page_data(
    run: Path, out: Path, rows: pd.DataFrame, arms: Sequence[str], outcomes: Sequence[str], scored: Sequence[Scored]
) -> dict[str, Any]:
    """Lay out images for the page's script.

    Args:
        run: folder of the run.
        out: folder of the page; images are referred to from there, and not copied.
        rows: rows of the run.
        arms: columns.
        outcomes: names of outcomes, each of which can be sorted by.
        scored: metrics, each of which can be sorted by.

    Returns:
        ``arms``, ``measures`` (name, and whether it is yes or no), ``base`` (address of the run) and ``lines``:
        category, prompt, seed and one cell an arm, ``[image, failure, values of the measures]`` or null.
    """
    measures = [{"name": name, "yes": True} for name in outcomes]
    measures += [{"name": each.name, "yes": False} for each in scored]
    scores = [each.values.set_index(["arm", "prompt_id", "seed"])["score"].to_dict() for each in scored]
    cells: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        key = (row["category"], row["prompt_id"], row["prompt"], int(row["seed"]))
        values = [None if pd.isna(row[name]) else int(row[name]) for name in outcomes]
        values += [round(each[row["arm"], row["prompt_id"], row["seed"]], 4) for each in scores]
        failure = row.get("failure")
        said = "" if failure is None or pd.isna(failure) else str(failure)
        made = row["status"] == "ok"
        cells.setdefault(key, {})[row["arm"]] = [row["image"], said, values] if made else None
    lines = [
        {"category": category, "prompt": prompt, "seed": seed, "cells": [own.get(arm) for arm in arms]}
        for (category, _, prompt, seed), own in sorted(cells.items())
    ]
    base = quote(Path(os.path.relpath(run, out)).as_posix())
    return {"arms": [shown_name(arm) for arm in arms], "measures": measures, "base": base, "lines": lines}

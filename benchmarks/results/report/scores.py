"""Scores of learned judges that belong to a run, as the report reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from t2ictl.benchmarks.scoring.run import score_table
from t2ictl.errors import BadSetting

__all__ = ["Scored", "read_scores"]

KEY = ["arm", "prompt_id", "seed"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """All images of a run, scored by one metric.

    Args:
        name: of the metric, with its variant.
        values: one row an image: ``arm``, ``category``, ``prompt_id``, ``seed``, ``score``.
        table: arms compared, as :func:`t2ictl.benchmarks.scoring.run.score_table` gives it.
    """

    name: str
    values: pd.DataFrame
    table: list[dict[str, Any]]


def read_scores(run: Path, rows: pd.DataFrame, against: str) -> list[Scored]:
    """Read what ``t2ictl bench score`` left in a run.

    Args:
        run: folder of the run.
        rows: its rows.
        against: the arm that the others are compared with.

    Returns:
        One entry a metric, by name.

    Raises:
        BadSetting: if scores belong to other images than those of the run.
    """
    found = []
    for file in sorted((run / "scores").glob("*.csv")):
        name = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["name"]
        scores = pd.read_csv(file)
        joined = rows[[*KEY, "category", "sha256"]].merge(
            scores[[*KEY, "sha256", "score"]], on=[*KEY, "sha256"], how="left"
        )
        lacking = int(joined["score"].isna().sum())
        if lacking:
            raise BadSetting(
                f"{lacking} images of {str(run)!r} have no score of {name}.", "Score again: t2ictl bench score."
            )
        values = joined[["arm", "category", "prompt_id", "seed", "score"]]
        found.append(Scored(name=name, values=values, table=score_table(values, against)))
    return sorted(found, key=lambda each: each.name)

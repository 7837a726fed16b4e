"""Runs of several models as one page: a row a method, a column a model; then the rank correlations.

Legend: a *method* is an arm that is neither the untouched model, nor random moves, nor a selection among images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from t2ictl.benchmarks.results.statistics.comparison import MACRO, compare_run
from t2ictl.benchmarks.results.statistics.ranking import check_same_prompts, rank_methods
from t2ictl.benchmarks.results.statistics.reading import Run
from t2ictl.benchmarks.results.tables import INCOMPLETE, INTERVALS, LIMITED, Table, header_line, interval_cell
from t2ictl.benchmarks.runs.summary import shown_name
from t2ictl.errors import BadSetting

__all__ = ["SideBySide", "page", "page_json", "side_by_side"]

DIFFERENCE_NOTE = (
    f"{INTERVALS} First row: percent of images. 't', '=', 'm': intervals made as `t2ictl bench compare` says. "
    "A dash: the run has no such arm."
)
RANK_NOTE = (
    "Spearman's rank correlation of the methods that both models have, with the interval of a bootstrap over prompts, "
    "the same in both; 1: the same ranking, -1: the reverse. A dash: fewer than three methods, or all equal. "
    "Methods that differ little change places by chance, so intervals lie rather too low."
)


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """What several models have in common.

    Args:
        headers: by name of the model, what produced its run.
        against: the arm that the others are compared with.
        outcome: which outcome is compared.
        shares: percent of the arm that the others are compared with, by ``model`` and ``category``.
        differences: one row a ``model``, ``arm`` and ``category``.
        ranking: one row for each two models and each category.
    """

    headers: Mapping[str, Mapping[str, Any]]
    against: str
    outcome: str
    shares: pd.DataFrame
    differences: pd.DataFrame
    ranking: pd.DataFrame

    @property
    def warnings(self) -> list[str]:
        """What keeps the figures from being a result."""
        headers = self.headers.values()
        missing = [str(each["missing"]) for each in headers if each["missing"]]
        return [LIMITED] * any(each["limited"] for each in headers) + [f"{INCOMPLETE} ({each})" for each in missing]


def side_by_side(
    runs: Sequence[tuple[Path, Run]],
    *,
    against: str = "plain",
    outcome: str = "is_strict",
    resamples: int = 9999,
    seed: int = 0,
    allow_missing: bool = False,
) -> SideBySide:
    """Compute the differences of every run, and the rank correlations of each two.

    Args:
        runs: each with its folder, which names it where two have the same model.
        against: the arm that the others are compared with.
        outcome: which outcome is compared.
        resamples: bootstrap samples, at least 999.
        seed: of the resamples.
        allow_missing: analyse what is there although something is missing.

    Returns:
        The figures.

    Raises:
        BadSetting: there are fewer than two runs, their prompts differ, an arm or outcome is unknown, or results are
            missing.
    """
    if len(runs) < 2:
        raise BadSetting(f"{len(runs)} run has nothing to be compared with.", "Name the runs of two models or more.")
    named = dict(zip(_names(runs), (run for _, run in runs), strict=True))
    check_same_prompts(named)
    headers, shares, differences = {}, [], []
    for name, run in named.items():
        found = compare_run(
            run,
            against=(against,),
            outcomes=(outcome,),
            resamples=resamples,
            seed=seed,
            allow_missing=allow_missing,
        )
        headers[name] = found.header
        shares.append(found.shares[found.shares["arm"] == against].assign(model=name))
        differences.append(found.differences.assign(model=name))
    return SideBySide(
        headers=headers,
        against=against,
        outcome=outcome,
        shares=pd.concat(shares, ignore_index=True),
        differences=pd.concat(differences, ignore_index=True),
        ranking=rank_methods(named, outcome=outcome, resamples=resamples, seed=seed),
    )


def _names(runs: Sequence[tuple[Path, Run]]) -> list[str]:
    """The model of each run; where two have one of the same name, with the folder of the run."""
    models = [Path(str(run.plan.get("model") or "unknown")).name for _, run in runs]
    names = [
        f"{model} ({folder.name})" if models.count(model) > 1 else model
        for model, (folder, _) in zip(models, runs, strict=True)
    ]
    if len(set(names)) < len(names):
        raise BadSetting("Two runs have the same model and the same name.", "Give each run once.")
    return names


def page(found: SideBySide) -> str:
    """Write the page.

    Args:
        found: the figures.

    Returns:
        Markdown.
    """
    facts = [f"- **{name}**: `{header_line(header, 'paired')}`" for name, header in found.headers.items()]
    tables = [_difference_table(found, category) for category in _categories(found)] + [_ranking_table(found)]
    return "\n".join(["\n".join(facts), "", *(table.to_markdown() for table in tables)])


def page_json(found: SideBySide) -> str:
    """Write all figures as JSON.

    Args:
        found: the figures.

    Returns:
        Text; a figure that does not exist is null.
    """
    frames = {name: getattr(found, name) for name in ("shares", "differences", "ranking")}
    data: dict[str, Any] = {"headers": found.headers, "against": found.against, "outcome": found.outcome}
    data |= {name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()}
    return json.dumps(data, indent=2, ensure_ascii=False)


def _categories(found: SideBySide) -> list[str]:
    """The mean of all first."""
    names = list(dict.fromkeys(found.differences["category"]))
    return sorted(names, key=lambda name: name != MACRO)


def _difference_table(found: SideBySide, category: str) -> Table:
    own = found.differences[found.differences["category"] == category]
    cells = {(row["arm"], row["model"]): interval_cell(row, signed=True) for row in own.to_dict("records")}
    shares = found.shares[found.shares["category"] == category].to_dict("records")
    cells |= {(found.against, row["model"]): interval_cell(row) for row in shares}
    arms = [found.against, *dict.fromkeys(own["arm"])]
    rows = [{"arm": shown_name(arm), **{name: cells.get((arm, name), "-") for name in found.headers}} for arm in arms]
    where = "mean of the categories" if category == MACRO else category
    return Table(
        title=f"{found.outcome}: difference from {found.against} in points, {where}",
        header=" | ".join([*found.warnings, "expanded percentile intervals of a bootstrap over prompts"]),
        rows=pd.DataFrame(rows),
        notes=(DIFFERENCE_NOTE,),
    )


def _ranking_table(found: SideBySide) -> Table:
    rows: dict[str, dict[str, str]] = {}
    for row in found.ranking.to_dict("records"):
        label = f"{row['one']}, {row['other']}"
        rows.setdefault(label, {"models": label, "methods": str(row["methods"])})[row["category"]] = _correlation(row)
    header = next(iter(found.headers.values()))
    return Table(
        title="Does the ranking of the methods carry over?",
        header=" | ".join([*found.warnings, f"{header['resamples']} resamples, seed {header['seed']}"]),
        rows=pd.DataFrame(list(rows.values())),
        notes=(RANK_NOTE,),
    )


def _correlation(row: Mapping[str, Any]) -> str:
    if math.isnan(row["estimate"]):
        return "-"
    return f"{row['estimate']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"

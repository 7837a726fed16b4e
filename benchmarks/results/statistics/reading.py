"""Run folders: rows and plans, checked before anything is computed from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from t2ictl.benchmarks.runs.table import RESULTS, read_table
from t2ictl.errors import BadSetting

PLAN_FILE = "plan.json"
#: The arm that is the untouched model.
PLAIN = "plain"
COLUMNS = ("arm", "category", "prompt_id", "seed", "status")
#: Plans of folders that are analysed together agree on everything else.
MAY_DIFFER = ("arms", "hash")
IMAGE = ["category", "prompt_id", "seed"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the folders hold.

    Args:
        rows: one an image; sorted, so that the order in the files changes nothing.
        plan: of the first folder, with the arms of all.
        arms: names, planned and found, in the order of the plans.

    Example:
        >>> row = {"arm": "plain", "category": "pair", "prompt_id": "pair-0", "seed": 0, "status": "ok"}
        >>> check_rows(pd.DataFrame([row]), {"instrument": "0a1b"}).arms
        ('plain',)
    """

    rows: pd.DataFrame
    plan: Mapping[str, Any]
    arms: tuple[str, ...]

    @property
    def done(self) -> pd.DataFrame:
        """The rows of images that were made and judged."""
        return self.rows[self.rows["status"] == "ok"]


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Counts of what an analysis lacks.

    Args:
        expected: images there should be.
        absent: images without a row.
        errors: rows of images that failed.
        unjudged: outcomes that an image lacks though others of its prompt have it.

    Example:
        >>> print(Missing(expected=800, absent=8, errors=3, unjudged=1))
        12 of 800 results are missing: 8 not made, 3 failed, 1 without an outcome
    """

    expected: int
    absent: int
    errors: int
    unjudged: int

    @property
    def total(self) -> int:
        """All that is missing."""
        return self.absent + self.errors + self.unjudged

    def __str__(self) -> str:
        parts = ((self.absent, "not made"), (self.errors, "failed"), (self.unjudged, "without an outcome"))
        words = ", ".join(f"{count} {word}" for count, word in parts if count)
        return f"{self.total} of {self.expected} results are missing" + (f": {words}" if words else "")


def read_runs(folders: Sequence[Path]) -> Run:
    """Read one run, or several that were made by the same plan.

    Args:
        folders: each with ``results.parquet`` and ``plan.json``.

    Returns:
        The run.

    Raises:
        BadSetting: a file is missing or unreadable, the plans differ, or an image comes twice.
    """
    if not folders:
        raise BadSetting("No run folder was given.", "Name at least one.")
    tables, plans = [], []
    for folder in folders:
        for name in (RESULTS, PLAN_FILE):
            if not (folder / name).is_file():
                raise BadSetting(
                    f"{folder} has no {name}.", "Name the folder of a run; shards have to be merged first."
                )
        try:
            plans.append(json.loads((folder / PLAN_FILE).read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:
            raise BadSetting(f"{folder} cannot be read: {error}.", "Make the run again.") from None
        tables.append(read_table(folder))
    for folder, plan in zip(folders, plans, strict=True):
        for key in sorted({*plan, *plans[0]}):
            if key not in MAY_DIFFER and plan.get(key) != plans[0].get(key):
                raise BadSetting(
                    f"{folders[0]} and {folder} differ in {key!r}: {plans[0].get(key)!r} and {plan.get(key)!r}.",
                    "Compare only runs of one plan.",
                )
    names = [name for plan in plans for name in _arm_names(plan)]
    return check_rows(pd.concat(tables, ignore_index=True), {**plans[0], "arms": list(dict.fromkeys(names))})


def check_rows(rows: pd.DataFrame, plan: Mapping[str, Any]) -> Run:
    """Refuse rows that cannot be analysed.

    Args:
        rows: one an image.
        plan: what was to be done.

    Returns:
        The run, with sorted rows.

    Raises:
        BadSetting: a column is missing, an image comes twice, or a prompt is in two categories.
    """
    lacking = [name for name in COLUMNS if name not in rows]
    if lacking:
        raise BadSetting(f"The rows have no column {', '.join(lacking)}.", "Make the run again with this version.")
    if rows.empty:
        raise BadSetting("The run has no rows.", "Make images first.")
    key = ["arm", "prompt_id", "seed"]
    twice = rows[rows.duplicated(key)]
    if len(twice):
        first = twice.iloc[0]
        which = f"{first['arm']}, prompt {first['prompt_id']}, seed {first['seed']}"
        raise BadSetting(f"{len(twice)} images come twice, first {which}.", "Give each folder once.")
    if (rows.groupby("prompt_id")["category"].nunique() > 1).any():
        raise BadSetting("A prompt is in two categories.", "Give every prompt an id of its own.")
    found = sorted(rows["arm"].unique())
    arms = tuple(dict.fromkeys([*_arm_names(plan), *found]))
    return Run(rows=rows.sort_values(["category", *key], ignore_index=True), plan=plan, arms=arms)


def outcome_columns(rows: pd.DataFrame, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Find the outcomes: columns of yes and no whose names begin with ``has_`` or ``is_``.

    Args:
        rows: one an image.
        asked: take these; empty: all.

    Returns:
        Names, in the order of the columns.

    Raises:
        BadSetting: an outcome that was asked for is not there, or there is none at all.

    Example:
        >>> outcome_columns(pd.DataFrame({"arm": ["plain"], "has_all": [True], "is_bound": [None]}))
        ('has_all', 'is_bound')
    """
    there = tuple(str(name) for name in rows if str(name).startswith(("has_", "is_")) and _is_boolean(rows[name]))
    unknown = [name for name in asked if name not in there]
    if unknown or not there:
        cause = f"There is no outcome {', '.join(unknown)}." if unknown else "The rows have no outcomes."
        raise BadSetting(cause, f"Use some of: {', '.join(there)}." if there else "Judge the images first.")
    return tuple(name for name in there if name in asked) if asked else there


def outcome_table(run: Run, outcomes: Sequence[str]) -> pd.DataFrame:
    """Lay out outcomes as numbers: a row an image (category, prompt, seed), a column an outcome and arm.

    Args:
        run: the run.
        outcomes: names.

    Returns:
        1.0, 0.0 or NaN.
    """
    done = run.done
    values = {name: done[name].astype("boolean").astype("Float64").astype(float) for name in outcomes}
    table = pd.concat([done[["arm", *IMAGE]], pd.DataFrame(values)], axis=1)
    wide = table.pivot(index=IMAGE, columns="arm", values=list(outcomes))
    columns = pd.MultiIndex.from_product([list(outcomes), list(run.arms)], names=["outcome", "arm"])
    return wide.reindex(columns=columns).sort_index()


def count_missing(run: Run, outcomes: Sequence[str]) -> Missing:
    """Count images and outcomes that should be there and are not.

    Every arm should have every image (prompt and seed) that any arm has, every prompt as many seeds as the plan
    says, and every category as many prompts. An outcome that no image of a prompt has
    does not apply to it, and is not missing.

    Args:
        run: the run.
        outcomes: those that are analysed.

    Returns:
        The counts.
    """
    images = run.rows[IMAGE].drop_duplicates()
    planned = run.plan.get("seeds")
    seeds = len(planned) if isinstance(planned, list | tuple) else planned if isinstance(planned, int) else 0
    per_prompt = images.groupby(["category", "prompt_id"]).size().clip(lower=seeds)
    found = per_prompt.groupby("category").size()
    unseen = sum(max(0, count - int(found.get(name, 0))) for name, count in _planned_prompts(run.plan).items())
    expected = (int(per_prompt.sum()) + unseen * max(1, seeds)) * len(run.arms)
    done = run.done
    prompt = [done["category"], done["prompt_id"]]
    unjudged = 0
    for name in outcomes:
        known = done[name].notna()
        unjudged += int((~known & known.groupby(prompt).transform("any")).sum())
    return Missing(
        expected=expected, absent=expected - len(run.rows), errors=len(run.rows) - len(done), unjudged=unjudged
    )


def _is_boolean(column: pd.Series) -> bool:
    return bool(column.dropna().map(lambda value: value in (True, False)).all())


def _planned_prompts(plan: Mapping[str, Any]) -> dict[str, int]:
    """Prompts of each category by the plan, as far as it tells."""
    prompts, kinds, items = plan.get("prompts"), plan.get("kinds"), plan.get("items")
    if isinstance(items, list | tuple) and all(isinstance(item, Mapping) and "category" in item for item in items):
        return dict(Counter(str(item["category"]) for item in items))
    if plan.get("limited"):
        return {}
    if isinstance(prompts, int) and isinstance(kinds, list | tuple):
        return {str(kind): prompts for kind in kinds}
    if isinstance(prompts, Mapping):
        return {str(kind): count for kind, count in prompts.items() if isinstance(count, int)}
    return {}


def _arm_names(plan: Mapping[str, Any]) -> list[str]:
    """Names of the arms in a plan: a list of names or of descriptions with a label, or descriptions by name."""
    arms = plan.get("arms") or []
    return [str(arm.get("label", arm.get("name"))) if isinstance(arm, Mapping) else str(arm) for arm in arms]

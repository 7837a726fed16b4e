"""From the rows of a run to shares, paired differences, costs and failure kinds, with intervals and p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from t2ictl.benchmarks.results.statistics.reading import PLAIN, Run, count_missing, outcome_columns, outcome_table
from t2ictl.errors import BadSetting
from t2ictl.evaluation.statistics.intervals import (
    Bounds,
    Differences,
    combine,
    difference_bounds,
    macro_differences,
    share_bounds,
)
from t2ictl.evaluation.statistics.resampling import Array, flipped_means, holm, seed_of, sign_flip_p_values

RANDOM = "random"
MACRO = "macro"
#: Sign flips a test: so many that a family of 100 tests can still reach an adjusted p-value of 0.01.
FEWEST_FLIPS = 9999
FLIPS_PER_TEST = 100
#: More would not fit into memory beside some hundred columns.
MOST_FLIPS = 49_999


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Tables of one run.

    Args:
        header: what produced the run and how it was analysed.
        outcomes: names.
        shares: one row an arm, category and outcome.
        costs: one row an arm and category.
        differences: one row an arm, the arm it is compared with, category and outcome.
        failures: images of every failure kind, one row an arm.

    Example:
        >>> sorted(Comparison.__dataclass_fields__)
        ['costs', 'differences', 'failures', 'header', 'outcomes', 'shares']
    """

    header: Mapping[str, Any]
    outcomes: tuple[str, ...]
    shares: pd.DataFrame
    costs: pd.DataFrame
    differences: pd.DataFrame
    failures: pd.DataFrame


def compare_run(
    run: Run,
    *,
    against: Sequence[str] = (PLAIN,),
    outcomes: Sequence[str] = (),
    resamples: int = 9999,
    seed: int = 0,
    allow_missing: bool = False,
) -> Comparison:
    """Compute all tables.

    Args:
        run: checked rows and their plan.
        against: arms that the others are compared with; ``"random"`` is each arm's own ``random:ARM``.
        outcomes: names; empty: all. They are the family of tests, together with categories and arms.
        resamples: bootstrap samples, at least 999.
        seed: of the resamples.
        allow_missing: analyse what is there although something is missing; the header says how much.

    Returns:
        The tables.

    Raises:
        BadSetting: results are missing, an arm is unknown, or two arms have no image in common.
    """
    if resamples < 999 or seed < 0:
        raise BadSetting(f"{resamples} resamples with seed {seed} are too few or negative.", "Use at least 999, and 0.")
    names = outcome_columns(run.rows, outcomes)
    missing = count_missing(run, names)
    if missing.total and not allow_missing:
        raise BadSetting(f"{missing}.", "Finish the run, or allow missing results; the tables are then marked.")
    pairs = _pairs(run, against)
    table = outcome_table(run, names)
    differences, flips = _differences(table, pairs, names, resamples, seed)
    facts = ("instrument", "commit", "split", "steps", "guidance", "seeds", "versions")
    planned = {key: run.plan.get(key) for key in facts}
    header = {
        **planned,
        "limited": bool(run.plan.get("limited", False)),
        "prompts": int(run.rows.groupby("category")["prompt_id"].nunique().sum()),
        "images": len(run.done),
        "missing": str(missing) if missing.total else "",
        "resamples": resamples,
        "flips": flips,
        "seed": seed,
        "tests": len(differences),
    }
    return Comparison(
        header=header,
        outcomes=names,
        shares=_shares(table, run.arms, names),
        costs=_costs(run),
        differences=differences,
        failures=_failures(run),
    )


def _pairs(run: Run, against: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of an arm and what it is compared with, in the order of the arms."""
    pairs = []
    for base in against:
        if base == RANDOM:
            found = [(arm, f"{RANDOM}:{arm}") for arm in run.arms if f"{RANDOM}:{arm}" in run.arms]
        elif base in run.arms:
            found = [(arm, base) for arm in run.arms if arm != base]
        else:
            raise BadSetting(f"There is no arm {base!r}.", f"Use one of {', '.join(run.arms)}, or {RANDOM}.")
        if not found:
            raise BadSetting(f"No arm can be compared with {base!r}.", f"The run has {', '.join(run.arms)}.")
        pairs += found
    return list(dict.fromkeys(pairs))


def _by_prompt(table: pd.DataFrame) -> dict[str, Array]:
    """``values_PC`` of every category: means over seeds."""
    means = table.groupby(level=["category", "prompt_id"]).mean()
    return {str(name): part.to_numpy(dtype=float) for name, part in means.groupby(level="category")}


def _rows_of(bounds: Bounds, labels: Sequence[Mapping[str, Any]], category: str, **more: Any) -> pd.DataFrame:
    columns = {"prompts": bounds.prompts, "estimate": bounds.estimate, "low": bounds.low, "high": bounds.high}
    rows = pd.DataFrame(labels).assign(category=category, **columns, method=bounds.method, **more)
    return rows[rows["prompts"] > 0]


def _shares(table: pd.DataFrame, arms: Sequence[str], outcomes: Sequence[str]) -> pd.DataFrame:
    labels = [{"arm": arm, "outcome": outcome} for outcome in outcomes for arm in arms]
    counts = {str(name): part.notna().sum().to_numpy() for name, part in table.groupby(level="category")}
    parts = {category: share_bounds(values_PC) for category, values_PC in _by_prompt(table).items()}
    frames = [_rows_of(bounds, labels, name, images=counts[name]) for name, bounds in parts.items()]
    if len(parts) > 1:
        frames.append(_rows_of(combine(list(parts.values())), labels, MACRO, images=sum(counts.values())))
    return _ordered(pd.concat(frames), {"arm": arms, "category": [*parts, MACRO], "outcome": outcomes})


def _differences(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], outcomes: Sequence[str], resamples: int, seed: int
) -> tuple[pd.DataFrame, int]:
    """The table of differences, and how many sign flips its tests used."""
    columns = [(arm, base, outcome) for arm, base in pairs for outcome in outcomes]
    values = {key: table[key[2], key[0]] - table[key[2], key[1]] for key in columns}
    for arm, base in pairs:
        if all(values[arm, base, outcome].isna().all() for outcome in outcomes):
            raise BadSetting(
                f"{arm!r} and {base!r} have no image in common.", "Run both on the same prompts and seeds."
            )
    changes = pd.concat(list(values.values()), axis=1, keys=range(len(columns)))
    labels = [{"arm": arm, "against": base, "outcome": outcome} for arm, base, outcome in columns]
    by_prompt = _by_prompt(changes)
    counts = {str(name): _changed_images(part) for name, part in changes.groupby(level="category")}
    parts: dict[str, Differences] = {}
    flips = max(FEWEST_FLIPS, resamples, min(MOST_FLIPS, FLIPS_PER_TEST * len(columns) * (len(by_prompt) + 1)))
    flipped = []
    frames = []
    for name, values_PC in by_prompt.items():
        parts[name] = difference_bounds(values_PC, resamples, seed_of(name, seed))
        flipped.append(flipped_means(values_PC, flips, seed_of(name, seed)))
        p = sign_flip_p_values(parts[name].bounds.estimate, flipped[-1])
        frames.append(_rows_of(parts[name].bounds, labels, name, p=p, **counts[name]))
    if len(parts) > 1:
        bounds = macro_differences(list(parts.values()))
        there_KC = np.stack([~np.isnan(part.bounds.estimate) for part in parts.values()])
        flipped_RC = np.sum(flipped, axis=0) / np.maximum(1, there_KC.sum(axis=0))
        totals = {
            key: np.sum([count[key] for count in counts.values()], axis=0) for key in ("images", "fixed", "broke")
        }
        frames.append(_rows_of(bounds, labels, MACRO, p=sign_flip_p_values(bounds.estimate, flipped_RC), **totals))
    rows = pd.concat(frames, ignore_index=True)
    rows["p_holm"] = holm(rows["p"].to_numpy(dtype=float))
    arms, bases = ([pair[i] for pair in pairs] for i in (0, 1))
    rows["against_kind"] = [
        "its random arm" if base == f"{RANDOM}:{arm}" else base
        for arm, base in zip(rows["arm"], rows["against"], strict=True)
    ]
    kinds = rows["against_kind"].unique()
    order = {"against_kind": kinds, "arm": arms, "against": bases, "category": [*parts, MACRO], "outcome": outcomes}
    return _ordered(rows, order), flips


def _changed_images(changes: pd.DataFrame) -> dict[str, Any]:
    return {
        "images": changes.notna().sum().to_numpy(),
        "fixed": (changes > 0).sum().to_numpy(),
        "broke": (changes < 0).sum().to_numpy(),
    }


def _costs(run: Run) -> pd.DataFrame:
    """Denoiser passes an image; the ratio counts a forward and a backward pass as one each."""
    done = run.done
    columns = [name for name in ("forwards", "backwards") if name in done]
    if len(columns) < 2:
        return pd.DataFrame(columns=["arm", "category", "prompts", "images", "forwards", "backwards", "ratio"])
    groups = done.groupby(["arm", "category"])
    costs = groups[columns].mean().astype(float)
    costs = costs.assign(prompts=groups["prompt_id"].nunique(), images=groups.size()).reset_index()
    categories = sorted(costs["category"].unique())
    if len(categories) > 1:
        macro = costs.groupby("arm").agg({"forwards": "mean", "backwards": "mean", "prompts": "sum", "images": "sum"})
        costs = pd.concat([costs, macro.reset_index().assign(category=MACRO)], ignore_index=True)
    passes = costs["forwards"] + costs["backwards"]
    plain = passes[costs["arm"] == PLAIN].set_axis(costs.loc[costs["arm"] == PLAIN, "category"])
    costs["ratio"] = passes / costs["category"].map(plain).astype(float)
    return _ordered(costs, {"arm": run.arms, "category": [*categories, MACRO]})


def _failures(run: Run) -> pd.DataFrame:
    """Counts of failure kinds; ``right`` are the images without one."""
    done = run.done
    if "failure" not in done:
        return pd.DataFrame(columns=["arm", "images"])
    kinds = done["failure"].astype(object).where(done["failure"].notna(), "right")
    counts = pd.crosstab(done["arm"], kinds)
    order = counts.drop(columns="right", errors="ignore").sum().sort_values(ascending=False, kind="stable").index
    counts = counts.reindex(columns=["right", *order], fill_value=0).reindex(list(run.arms), fill_value=0)
    counts.insert(0, "images", counts.sum(axis=1))
    counts.columns.name = None
    return counts.rename_axis("arm").reset_index()


def _ordered(rows: pd.DataFrame, order: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Rows in the order that is given for each column, and columns with those first."""
    places = {name: {value: i for i, value in enumerate(dict.fromkeys(values))} for name, values in order.items()}
    keys = pd.DataFrame({name: rows[name].map(place).to_numpy() for name, place in places.items()})
    positions = keys.sort_values(list(order), kind="stable").index
    rest = [name for name in rows if name not in order]
    return rows.iloc[positions][[*order, *rest]].reset_index(drop=True)

"""Small runs with rows written by hand or drawn, and folders that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PLAN: dict[str, Any] = {
    "limited": False,
    "instrument": "0123456789abcdef" * 4,
    "commit": "1a2b3c4",
    "split": "report",
    "steps": 20,
    "seeds": 2,
    "versions": {"torch": "2.13.0"},
}
#: (category, prompt) -> arm -> outcome of each seed. Worked by hand in the tests.
TINY: dict[tuple[str, str], dict[str, list[int]]] = {
    ("pair", "pair-0"): {"plain": [1, 0], "segregation": [1, 1]},
    ("pair", "pair-1"): {"plain": [0, 0], "segregation": [1, 0]},
    ("triple", "triple-0"): {"plain": [1, 1], "segregation": [1, 0]},
}


def rows_of(
    values: Mapping[tuple[str, str], Mapping[str, Sequence[int]]], outcomes: Sequence[str] = ("is_strict",)
) -> pd.DataFrame:
    """Rows in which all outcomes have the given values."""
    rows = []
    for (category, prompt), arms in values.items():
        for arm, images in arms.items():
            for seed, right in enumerate(images):
                row = {"arm": arm, "category": category, "prompt_id": prompt, "prompt": "a red circle", "seed": seed}
                passes = {"forwards": 20, "backwards": 0 if arm == "plain" else 5}
                failure = None if right else "missing"
                rows.append(
                    {**row, "status": "ok", **passes, "failure": failure, **dict.fromkeys(outcomes, bool(right))}
                )
    return pd.DataFrame(rows)


def drawn_rows(
    prompts: int = 30, seeds: int = 2, arms: Mapping[str, float] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Two categories; arms with shares; outcomes of a prompt's images depend on each other, as do those of arms."""
    generator = np.random.default_rng(seed)
    shares = arms or {"plain": 0.4, "segregation": 0.6, "random:segregation": 0.4, "best-of-2": 0.6}
    parts = []
    for outcome in ("has_all", "is_strict"):
        values = {}
        for category in ("pair", "triple"):
            for number in range(prompts):
                ease, luck = generator.normal(), generator.normal(size=seeds)
                values[category, f"{category}-{number}"] = {
                    arm: (0.7 * ease + 0.5 * luck + 0.5 * generator.normal(size=seeds) < 2 * share - 1)
                    .astype(int)
                    .tolist()
                    for arm, share in shares.items()
                }
        parts.append(rows_of(values, [outcome]))
    return parts[0].merge(parts[1][["arm", "prompt_id", "seed", "is_strict"]], on=["arm", "prompt_id", "seed"])


def write_run(folder: Path, rows: pd.DataFrame, **plan: Any) -> Path:
    """A run folder with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / "results.parquet")
    text = json.dumps({**PLAN, "arms": list(rows["arm"].unique()), **plan})
    (folder / "plan.json").write_text(text, encoding="utf-8")
    return folder

"""results.parquet: the rows of all workers in one table, the same bytes whoever made them and in whatever order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ictl.benchmarks.extras import need
from t2ictl.errors import BadSetting
from t2ictl.settings.files import write_bytes

__all__ = ["flat_rows", "read_results", "write_results"]

#: Fields before and after the outcomes, which are the judge's; with the type each has in the table.
_BEFORE = {
    "arm": "string",
    "category": "string",
    "prompt_id": "string",
    "prompt": "string",
    "seed": "int64",
    "noise_seed": "int64",
    "status": "string",
    "error": "string",
}
_AFTER = {
    "failure": "string",
    "image": "string",
    "sha256": "string",
    "file_sha256": "string",
    "forwards": "int64",
    "backwards": "int64",
    "chosen_seed": "int64",
    "lengths": "list<double>",
    "length_steps": "list<int64>",
    "moved": "list<string>",
    "loss": "float64",
}
#: What a reader of the table alone must know; the rest is in plan.json.
_FACTS = ("hash", "limited", "instrument", "commit", "suite", "model", "split")


def flat_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows, and give each outcome a column of its own.

    Args:
        rows: as they were written.

    Returns:
        The rows by arm, category, prompt id and seed, all with the same fields.

    Example:
        >>> row = {"arm": "plain", "category": "pair", "prompt_id": "a", "seed": 0, "outcomes": {"has_all": True}}
        >>> flat_rows([row])[0]["has_all"]
        True
    """
    names = sorted({name for row in rows for name in row.get("outcomes", {})})
    ordered = sorted(rows, key=lambda row: (row["arm"], row["category"], row["prompt_id"], row["seed"]))
    return [
        {key: row.get(key) for key in _BEFORE}
        | {name: row.get("outcomes", {}).get(name) for name in names}
        | {key: row.get(key) for key in _AFTER}
        for row in ordered
    ]


def write_results(rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any], path: Path) -> None:
    """Write the table, all of it or nothing.

    Args:
        rows: as they were written.
        manifest: data of plan.json; what a reader must know of it goes into the file.
        path: the file.

    Raises:
        MissingExtra: if pyarrow is not installed.
    """
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    flat = flat_rows(rows)
    types = {"string": arrow.string(), "int64": arrow.int64(), "float64": arrow.float64(), "bool": arrow.bool_()}
    lists = {"list<double>": arrow.float64(), "list<int64>": arrow.int64(), "list<string>": arrow.string()}
    types |= {name: arrow.list_(kind) for name, kind in lists.items()}
    known = _BEFORE | _AFTER
    names = list(flat[0]) if flat else list(known)
    schema = arrow.schema([(name, types[known.get(name, "bool")]) for name in names])
    facts = {key: manifest[key] for key in _FACTS}
    schema = schema.with_metadata({"t2ictl": json.dumps(facts, sort_keys=True)})
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.Table.from_pylist(flat, schema=schema), sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_results(run: Path, arm: str | None = None) -> Any:
    """Read the table of a run that is done, all images of which were made.

    Args:
        run: the folder of the run.
        arm: read the rows of this arm alone; None for all arms.

    Returns:
        A data frame with the rows in the order of the table.

    Raises:
        BadSetting: if the run is not done or has no such arm, or if images failed.
        MissingExtra: if pandas is not installed.
    """
    path = run / "results.parquet"
    if not path.is_file():
        raise BadSetting(f"{str(run)!r} has no results.parquet.", "Finish the run: t2ictl bench run, or bench merge.")
    rows = need("pandas").read_parquet(path)
    if arm is not None:
        arms = list(rows["arm"].unique())
        if arm not in arms:
            raise BadSetting(f"The run has no arm {arm!r}.", f"Arms: {', '.join(arms)}.")
        rows = rows[rows["arm"] == arm]
    failed = int((rows["status"] != "ok").sum())
    if failed:
        whose = "the run" if arm is None else repr(arm)
        raise BadSetting(f"{failed} images of {whose} failed.", "Make them again: --retry-failed.")
    return rows

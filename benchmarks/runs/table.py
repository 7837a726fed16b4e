"""results.parquet: the rows of all workers in one table, the same bytes whoever made them and in whatever order.

The table carries a checksum of its own content, and readers compare it; those of images are in its rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ictl.benchmarks.extras import need
from t2ictl.errors import BadSetting
from t2ictl.settings.files import write_bytes
from t2ictl.settings.store import file_hash

__all__ = ["RESULTS", "checked_image", "flat_rows", "read_results", "read_table", "write_results"]

RESULTS = "results.parquet"

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
    facts = json.dumps({key: manifest[key] for key in _FACTS}, sort_keys=True)
    table = arrow.Table.from_pylist(flat, schema=schema)
    table = table.replace_schema_metadata({"t2ictl": facts, "t2ictl.checksum": _checksum(table, facts)})
    sink = arrow.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_bytes(path, sink.getvalue().to_pybytes())


def _checksum(table: Any, facts: str) -> str:
    """Hash what a table says: names, types, values and facts."""
    # Arrow calls the items of a list by another name after they were in a file.
    types = [(field.name, str(field.type).replace("element:", "item:")) for field in table.schema]
    return hashlib.sha256(json.dumps([types, table.to_pylist(), facts], default=repr).encode()).hexdigest()


def read_table(run: Path) -> Any:
    """Read the table of a run, and compare it with its checksum.

    Args:
        run: the folder of the run.

    Returns:
        A data frame with the rows in the order of the table, also those of failures. Tables without a checksum were
        written before there was one; they are read as they are.

    Raises:
        BadSetting: if the run is not done, or its table is damaged.
        MissingExtra: if pandas is not installed.
    """
    path = run / RESULTS
    if not path.is_file():
        raise BadSetting(f"{str(run)!r} has no {RESULTS}.", "Finish the run: t2ictl bench run, or bench merge.")
    pandas, parquet = need("pandas"), need("pyarrow.parquet")
    try:
        table = parquet.read_table(path, page_checksum_verification=True)
        known = table.schema.metadata or {}
        written = known.get(b"t2ictl.checksum")
        is_whole = written is None or written.decode() == _checksum(table, known[b"t2ictl"].decode())
        rows = pandas.read_parquet(path) if is_whole else None
    # A reader of damaged bytes fails in whatever way they lead it to.
    except Exception as error:
        raise _damaged(path, str(error)) from None
    if rows is None:
        raise _damaged(path, "it says something else than what was written")
    return rows


def _damaged(path: Path, reason: str) -> BadSetting:
    return BadSetting(
        f"{str(path)!r} is damaged: {' '.join(reason.split())[:200]}.",
        "`t2ictl bench merge` writes it again from the rows.",
    )


def checked_image(run: Path, row: Mapping[str, Any]) -> Path:
    """Find the image of a row, and compare it with the row.

    Args:
        run: the folder of the run.
        row: of the table; without ``file_sha256`` the image is not compared.

    Returns:
        Its file.

    Raises:
        BadSetting: if the image is lost, or is another one than the row describes.
    """
    path = run / row["image"]
    if not path.is_file():
        raise BadSetting(f"The image {row['image']!r} is not there.", "Run again: it is made anew.")
    known = row.get("file_sha256")
    if isinstance(known, str) and file_hash(path) != known:
        raise BadSetting(
            f"The image {row['image']!r} is not the one that its row describes.", "Run again: it is made anew."
        )
    return path


def read_results(run: Path, arm: str | None = None) -> Any:
    """Read the table of a run that is done, all images of which were made.

    Args:
        run: the folder of the run.
        arm: read the rows of this arm alone; None for all arms.

    Returns:
        A data frame with the rows in the order of the table.

    Raises:
        BadSetting: if the run is not done or has no such arm, its table is damaged, or images failed.
        MissingExtra: if pandas is not installed.
    """
    rows = read_table(run)
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

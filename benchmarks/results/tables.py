"""Results as tables to read: text for terminals and pipes, Markdown, CSV, JSON."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import tabulate

from t2ictl.benchmarks.results.statistics.comparison import Comparison
from t2ictl.benchmarks.runs.summary import is_oracle
from t2ictl.evaluation.statistics.intervals import ALL_ALIKE, COMBINED, FEW_CHANGED, STUDENT

LIMITED = "LIMITED RUN: not a result"
INCOMPLETE = "INCOMPLETE RUN: not a result"
#: Marks of intervals that were not made by the method of the header.
MARKS = {ALL_ALIKE: "=", STUDENT: "t", COMBINED: "m"}
INTERVALS = "Intervals: 95 %, two-sided, for other prompts with the same seeds."
ALIKE_NOTE = "'=': all prompts alike; Wilson's interval with every prompt as one image."
SHARE_NOTES = (
    INTERVALS + " macro: mean of the categories, their intervals combined (MOVER). " + ALIKE_NOTE,
    "forwards, backwards: denoiser passes per image; x plain: their sum over that of the plain arm.",
)
DIFFERENCE_NOTES = (
    f"{INTERVALS} 't': Student's interval, fewer than {FEW_CHANGED} prompts changed. {ALIKE_NOTE} "
    "'m': intervals of the categories combined (MOVER), one of them being 't' or '='.",
    "fixed, broke: images of the same prompt and seed that became right, and that became wrong.",
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table, all cells text.

    Args:
        title: what it shows.
        header: what produced it.
        rows: cells.
        notes: lines below it.

    Example:
        >>> print(Table(title="Shares", header="LIMITED", rows=pd.DataFrame({"arm": ["plain"]})).to_text())
        Shares
        LIMITED
        arm
        -----
        plain
    """

    title: str
    header: str
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return plain text."""
        return "\n".join([self.title, self.header, self._cells("simple"), *self.notes])

    def to_markdown(self) -> str:
        """Return Markdown."""
        notes = "\n\n".join(self.notes)
        return f"### {self.title}\n\n`{self.header}`\n\n{self._cells('github')}\n" + (f"\n{notes}\n" if notes else "")

    def _cells(self, style: str) -> str:
        return tabulate.tabulate(
            self.rows.to_numpy().tolist(), headers=list(self.rows), tablefmt=style, disable_numparse=True
        )


def header_line(header: Mapping[str, Any], method: str, *, resampled: bool = True) -> str:
    """Write what produced a table in one line; it stands on every table.

    Args:
        header: of a comparison.
        method: how the intervals were made.
        resampled: whether resamples were used.

    Returns:
        The line; it begins with a warning if the figures are no result.
    """
    warnings = [LIMITED] if header["limited"] else []
    warnings += [f"{INCOMPLETE} ({header['missing']})"] if header["missing"] else []
    facts = [f"{key} {_short(header[key])}" for key in ("instrument", "commit", "split", "steps", "guidance", "seeds")]
    facts += [f"n = {header['prompts']} prompts, {header['images']} images", method]
    facts += [f"{header['resamples']} resamples, seed {header['seed']}"] if resampled else []
    return " | ".join([*warnings, *facts])


def tables_of(comparison: Comparison) -> list[Table]:
    """Lay out a comparison for reading.

    Args:
        comparison: the figures.

    Returns:
        Shares with costs, one table of differences for each arm or kind of arm that is compared with, failure kinds.
    """
    header = comparison.header
    oracle = [arm for arm in comparison.failures["arm"] if is_oracle(arm)]
    notes = [f"Oracle, chosen by the judge that reports: {', '.join(oracle)}."] if oracle else []
    tables = [
        Table(
            title="Shares in percent, passes per image",
            header=header_line(header, "Wilson intervals with effective sample size", resampled=False),
            rows=_share_cells(comparison),
            notes=(*SHARE_NOTES, *notes),
        )
    ]
    tests = f"p: {header['flips']} sign flips of prompts, Holm over {header['tests']} tests"
    for base, rows in comparison.differences.groupby("against_kind", sort=False):
        tables.append(
            Table(
                title=f"Differences from {base} in points",
                header=header_line(header, f"expanded percentile intervals of a bootstrap over prompts | {tests}"),
                rows=_difference_cells(rows),
                notes=(*DIFFERENCE_NOTES, *notes),
            )
        )
    failures = comparison.failures.astype(str)
    tables.append(
        Table(title="Failure kinds, images", header=header_line(header, "counts", resampled=False), rows=failures)
    )
    return tables


def to_json(comparison: Comparison) -> str:
    """Write all figures as JSON.

    Args:
        comparison: the figures.

    Returns:
        Text; a figure that does not exist is null.
    """
    frames = {name: getattr(comparison, name) for name in ("shares", "costs", "differences", "failures")}
    data: dict[str, Any] = {"header": dict(comparison.header), "outcomes": list(comparison.outcomes)}
    data |= {name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()}
    return json.dumps(data, indent=2, ensure_ascii=False)


def to_csv(comparison: Comparison) -> str:
    """Write all figures as one long table, every row with what produced it.

    Args:
        comparison: the figures.

    Returns:
        Text; the column ``table`` says what a row is.
    """
    parts = {"share": comparison.shares, "cost": comparison.costs, "difference": comparison.differences}
    counted = comparison.failures.drop(columns="images").melt("arm", var_name="failure", value_name="images")
    parts["failure"] = counted
    frames = [frame.assign(table=name) for name, frame in parts.items() if len(frame)]
    rows = pd.concat(frames, ignore_index=True)
    for key in ("instrument", "commit", "split", "steps", "guidance", "limited", "missing"):
        rows[key] = comparison.header[key]
    buffer = io.StringIO()
    rows[["table", *[name for name in rows if name != "table"]]].to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def power_text(rows: pd.DataFrame, header: str) -> str:
    """Lay out what a design can be expected to show.

    Args:
        rows: with shares and deviations as numbers.
        header: the design.

    Returns:
        Text, numbers in points.
    """
    cells = rows.copy()
    for name in ("pilot", "between", "within", "half_width", "detectable"):
        if name in cells:
            cells[name] = [_points(value, digits=2) for value in cells[name]]
    return Table(title="Expected precision in points", header=header, rows=cells.astype(str)).to_text()


def _share_cells(comparison: Comparison) -> pd.DataFrame:
    keys = ["arm", "category"]
    shares = comparison.shares
    cells = shares.assign(cell=[interval_cell(row) for row in shares.to_dict("records")])
    wide = cells.pivot(index=keys, columns="outcome", values="cell").reindex(columns=list(comparison.outcomes))
    counts = shares.groupby(keys, sort=False)[["prompts", "images"]].max()
    table = counts.join(wide).fillna("-").astype(str).reset_index()
    costs = comparison.costs.set_index(keys)
    for name, title in (("forwards", "forwards"), ("backwards", "backwards"), ("ratio", "x plain")):
        values = costs[name].to_dict() if name in costs else {}
        places = zip(table["arm"], table["category"], strict=True)
        table[title] = [_number(values.get(place, math.nan)) for place in places]
    return table


def _difference_cells(rows: pd.DataFrame) -> pd.DataFrame:
    names = ["arm", "category", "outcome", "prompts", "images"]
    table = rows[names].astype(str).rename(columns={"images": "pairs"})
    table["difference"] = [interval_cell(row, signed=True) for row in rows.to_dict("records")]
    for name, title in (("p", "p"), ("p_holm", "p (Holm)")):
        table[title] = [f"{value:.4f}" for value in rows[name]]
    return table.assign(fixed=rows["fixed"].astype(str), broke=rows["broke"].astype(str))


def interval_cell(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """Write an estimate with its interval in percent or points, and the mark of its method.

    Args:
        row: ``estimate``, ``low``, ``high`` and ``method``.
        signed: for differences, which show their sign.

    Returns:
        A cell of a table.

    Example:
        >>> interval_cell({"estimate": 0.5, "low": 0.4, "high": 0.6, "method": STUDENT}, signed=True)
        '+50.0 [+40.0, +60.0] t'
    """
    low, value, high = (_points(row[name], signed=signed) for name in ("low", "estimate", "high"))
    mark = "" if row["method"] == COMBINED and not signed else MARKS.get(row["method"], "")
    return f"{value} [{low}, {high}] {mark}".rstrip()


def _points(value: float, *, digits: int = 1, signed: bool = False) -> str:
    if math.isnan(value):
        return "-"
    points = round(100 * value, digits) + 0.0  # no negative zero
    return f"{points:+.{digits}f}" if signed and points else f"{points:.{digits}f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _short(value: Any) -> str:
    """A hash by its first twelve characters, a list by its length."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return str(len(value))
    text = "unknown" if value is None else str(value)
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]{20,}", r"\1", text)

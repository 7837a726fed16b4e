"""``t2ictl bench report``: everything of a run that a person reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from t2ictl.benchmarks.extras import need
from t2ictl.benchmarks.results.report.page import page_data
from t2ictl.benchmarks.results.report.plots import plot_differences, plot_shares
from t2ictl.benchmarks.results.report.scores import Scored, read_scores
from t2ictl.benchmarks.results.report.sheets import contact_sheet
from t2ictl.benchmarks.results.report.tensorboard import write_events
from t2ictl.benchmarks.results.statistics.comparison import Comparison, compare_run
from t2ictl.benchmarks.results.statistics.reading import Run, read_runs
from t2ictl.benchmarks.results.tables import Table, tables_of, to_csv, to_json
from t2ictl.benchmarks.runs.manifest import limited_note
from t2ictl.benchmarks.scoring.run import table_text
from t2ictl.errors import BadSetting
from t2ictl.maps.pages import render
from t2ictl.settings.files import write_text
from t2ictl.settings.store import file_name
from t2ictl.shapes.embedded import MODELS

__all__ = ["write_report"]


def write_report(
    run: Path,
    out: Path,
    *,
    against: Sequence[str] = ("plain",),
    allow_missing: bool = False,
    tensorboard: Path | None = None,
) -> Path:
    """Write tables, plots, contact sheets and a page with the images of all arms side by side.

    Args:
        run: folder of a run that is done, and judged while it was made or scored afterwards.
        out: folder to write; made if it is not there. The page refers to images in ``run`` by relative addresses.
        against: arms that the others are compared with; the first one is that of the plots.
        allow_missing: report what is there, marked as incomplete.
        tensorboard: also write events for TensorBoard to this folder.

    Returns:
        ``index.html``.

    Raises:
        BadSetting: if the run is not done, was neither judged nor scored, or has no such arm.
    """
    if tensorboard is not None:
        need("tensorboard", extra="tensorboard")
    read = read_runs([run])
    scored = read_scores(run, read.done, against[0])
    compared = _comparison(read, against, allow_missing=allow_missing)
    if compared is None and not scored:
        raise BadSetting(
            f"Nobody has judged the images of {str(run)!r}.", "Score them first: t2ictl bench score RUN --metric ..."
        )
    out.mkdir(parents=True, exist_ok=True)
    tables = [] if compared is None else tables_of(compared)
    plots = [] if compared is None else _plots(compared, against[0], out)
    _write_tables(out, compared, tables, scored)
    sheets = []
    for category, rows in read.rows.groupby("category"):
        sheets.append(contact_sheet(run, rows, read.arms, out / f"sheet-{file_name(str(category))}.png"))
    if tensorboard is not None:
        write_events(tensorboard, compared, scored, sheets)
    outcomes = () if compared is None else compared.outcomes
    page = render(
        "report.html.j2",
        [Path(__file__).parent],
        title=f"{read.plan.get('suite', 'run')}: {len(read.arms)} arms",
        notes=_notes(read, compared),
        data=page_data(run, out, read.rows, read.arms, outcomes, scored),
        base=read.arms.index(against[0]) if against[0] in read.arms else 0,
        tables=tables,
        scored=scored,
        plots=plots,
        sheets=[path.name for path in sheets],
        plan=json.dumps({key: read.plan[key] for key in read.plan if key != "items"}, indent=2, ensure_ascii=False),
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _comparison(read: Run, against: Sequence[str], *, allow_missing: bool) -> Comparison | None:
    """The comparison by the suite's own judge; None where images are judged later."""
    judged = any(str(name).startswith(("has_", "is_")) for name in read.rows)
    return compare_run(read, against=against, allow_missing=allow_missing) if judged else None


def _notes(read: Run, compared: Comparison | None) -> list[str]:
    notes = [note] if (note := limited_note(dict(read.plan))) else []
    if compared is not None and compared.header["missing"]:
        notes.append(f"Incomplete, not a result: {compared.header['missing']}.")
    if read.plan.get("model") in MODELS:
        notes.append("Model and judge are a test bench: these figures are not those of Stable Diffusion.")
    return notes


def _plots(compared: Comparison, against: str, out: Path) -> list[tuple[str, str]]:
    """Files and what they show, for readers who do not see them."""
    found = [(plot_shares(compared, out / "shares.png").name, "Shares of every arm, with intervals; as in the table.")]
    differences = plot_differences(compared, against, out / "differences.png")
    if differences is not None:
        found.append((differences.name, f"Differences from {against}, with intervals; as in the table."))
    return found


def _write_tables(out: Path, compared: Comparison | None, tables: Sequence[Table], scored: Sequence[Scored]) -> None:
    """``tables.md``, ``tables.csv``, ``tables.json`` and, of learned judges, ``scores.*``."""
    texts = [table.to_markdown() for table in tables] + [table_text(each.table, each.name) + "\n" for each in scored]
    write_text(out / "tables.md", "\n".join(texts))
    if compared is not None:
        write_text(out / "tables.csv", to_csv(compared))
        write_text(out / "tables.json", to_json(compared))
    if scored:
        entries: list[dict[str, Any]] = [{"metric": each.name, **entry} for each in scored for entry in each.table]
        write_text(out / "scores.json", json.dumps(entries, indent=2))
        table = pd.json_normalize(entries).to_csv(index=False, lineterminator="\n")
        write_text(out / "scores.csv", table)

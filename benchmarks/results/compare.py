"""``t2ictl bench compare`` and ``t2ictl bench power``: what a run shows, and what one could show.

The libraries of statistics are loaded when a command runs, so that help needs none of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2ictl.benchmarks.extras import need
from t2ictl.errors import BadSetting

if TYPE_CHECKING:
    from t2ictl.benchmarks.results.statistics.comparison import Comparison
    from t2ictl.benchmarks.results.tables import Table

__all__ = ["compare", "compare_command", "power_command"]

Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders; several if their plans agree.")]
Against = Annotated[list[str], typer.Option(help="An arm to compare with, or random: each arm's own random arm.")]
Outcomes = Annotated[list[str], typer.Option(help="Outcomes, with commas or several times; default: all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def compare(
    folder: Path | Sequence[Path],
    *,
    against: Sequence[str] = ("plain",),
    outcomes: Sequence[str] = (),
    resamples: int = 9999,
    seed: int = 0,
    allow_missing: bool = False,
) -> Comparison:
    """Compute shares, paired differences, costs and failure kinds of a run.

    Args:
        folder: a run folder, or several that were made by the same plan.
        against: arms that the others are compared with; ``"random"`` is each arm's own ``random:ARM``.
        outcomes: names; empty: all.
        resamples: bootstrap samples, at least 999.
        seed: of the resamples; the same seed gives the same figures to the last bit.
        allow_missing: analyse what is there although something is missing; the tables are then marked.

    Returns:
        Data frames with a header that says what produced them.

    Raises:
        BadSetting: the folder is no run, results are missing, an arm or outcome is unknown, or two arms have no
            image in common.
        MissingExtra: the extra ``bench`` is not installed.
    """
    _need_statistics()
    from t2ictl.benchmarks.results.statistics.comparison import compare_run
    from t2ictl.benchmarks.results.statistics.reading import read_runs

    folders = [folder] if isinstance(folder, Path) else [Path(each) for each in folder]
    return compare_run(
        read_runs(folders),
        against=against,
        outcomes=outcomes,
        resamples=resamples,
        seed=seed,
        allow_missing=allow_missing,
    )


def compare_command(
    folder: Folders,
    against: Against = ["plain"],  # noqa: B006 (typer reads the default and never changes it)
    outcomes: Outcomes = [],  # noqa: B006
    as_json: AsJson = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write all figures to this file.")] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap samples.")] = 9999,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Compare what is there; the tables are then marked.")
    ] = False,
) -> None:
    """Compare the arms of a run: shares, paired differences, costs, failure kinds."""
    found = compare(
        folder,
        against=against,
        outcomes=_listed(outcomes),
        resamples=resamples,
        seed=seed,
        allow_missing=allow_missing,
    )
    from t2ictl.benchmarks.results.tables import tables_of, to_csv, to_json

    tables = tables_of(found)
    if markdown is not None:
        _write(markdown, "\n".join(table.to_markdown() for table in tables))
    if csv is not None:
        _write(csv, to_csv(found))
    if as_json:
        print(to_json(found))
    else:
        _print(tables)


def power_command(
    prompts: Annotated[int, typer.Option(help="Prompts of a category.")] = 400,
    seeds: Annotated[int, typer.Option(help="Images a prompt and arm.")] = 4,
    pilot: Annotated[Path | None, typer.Option(help="A run folder to take the spread from.")] = None,
    share: Annotated[float, typer.Option(help="Expected share, without a pilot.")] = 0.5,
    sd: Annotated[float, typer.Option(help="Standard deviation of the prompts' own shares, without a pilot.")] = 0.3,
    effect_sd: Annotated[
        float, typer.Option(help="Standard deviation between prompts of the effect, without a pilot.")
    ] = 0.1,
    correlation: Annotated[
        float, typer.Option(help="Of two arms' outcomes of one prompt and seed, without a pilot; 0: as independent.")
    ] = 0.0,
    comparisons: Annotated[int, typer.Option(help="Tests to correct for.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Predict how wide the intervals of a run will be, and which difference it can find."""
    _need_statistics()
    import pandas as pd

    from t2ictl.benchmarks.results.statistics import power
    from t2ictl.benchmarks.results.statistics.reading import read_runs
    from t2ictl.benchmarks.results.tables import power_text

    design = power.Design(prompts=prompts, seeds=seeds, comparisons=comparisons)
    if pilot is not None:
        rows = power.pilot_table(read_runs([pilot]), design)
        source = f"spread from the pilot {pilot}"
    else:
        spreads = {
            "share": power.share_spread(share, sd),
            "difference": power.difference_spread(share, sd, effect_sd, correlation),
        }
        expected = {
            "share": power.expect_share(share, sd, design),
            "difference": power.expect_difference(spreads["difference"], design),
        }
        rows = pd.DataFrame([{"quantity": name, **asdict(spreads[name]), **asdict(expected[name])} for name in spreads])
        source = f"assumed: share {share}, sd {sd}, effect sd {effect_sd}, correlation {correlation}"
    if as_json:
        found = {"design": asdict(design), "source": source, "rows": json.loads(rows.to_json(orient="records"))}
        print(json.dumps(found, indent=2))
        return
    text = f"{prompts} prompts x {seeds} seeds | {source} | 95 % intervals, power {power.POWER:.0%}, "
    print(power_text(rows, text + f"level 5 % / {comparisons}"))


def _need_statistics() -> None:
    for name in ("pandas", "pyarrow", "statsmodels", "tabulate"):
        need(name)


def _listed(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadSetting(f"{str(path)!r} cannot be written: {error}.", "Name a file in a folder that exists.") from None


def _print(tables: Sequence[Table]) -> None:
    """Print tables that fold to the width of a terminal, or plain text elsewhere."""
    import rich
    from rich.console import Console

    console: Console = rich.get_console()
    if not console.is_terminal:
        print("\n\n".join(table.to_text() for table in tables))
        return
    for table in tables:
        console.print(_rich_table(table))
        for note in table.notes:
            console.print(note, markup=False, highlight=False)


def _rich_table(table: Table) -> Any:
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(title=escape(table.title), caption=escape(table.header), title_justify="left")
    for name in table.rows:
        shown.add_column(escape(str(name)))
    for row in table.rows.itertuples(index=False):
        shown.add_row(*(escape(str(cell)) for cell in row))
    return shown

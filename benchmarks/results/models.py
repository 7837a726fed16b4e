"""``t2ictl bench models``: runs of several models side by side, and whether the ranking of methods carries over.

The libraries of statistics are loaded when a command runs, so that help needs none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2ictl.benchmarks.extras import need
from t2ictl.errors import BadSetting

if TYPE_CHECKING:
    from t2ictl.benchmarks.results.side_by_side import SideBySide

__all__ = ["compare_models", "models_command"]

Folders = Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder for each model, at least two.")]


def compare_models(
    folders: Sequence[Path],
    *,
    against: str = "plain",
    outcome: str = "is_strict",
    resamples: int = 9999,
    seed: int = 0,
    allow_missing: bool = False,
) -> SideBySide:
    """Compare what controls do on several models, on the same prompts.

    Args:
        folders: a run folder for each model.
        against: the arm that the others are compared with, within each model.
        outcome: which outcome.
        resamples: bootstrap samples, at least 999.
        seed: of the resamples.
        allow_missing: analyse what is there although something is missing; the tables are then marked.

    Returns:
        Differences by model, and rank correlations of each two models.

    Raises:
        BadSetting: a folder is no run, there are fewer than two, prompts differ, or results are missing.
        MissingExtra: the extra ``bench`` is not installed.
    """
    for name in ("pandas", "pyarrow", "statsmodels", "tabulate"):
        need(name)
    from t2ictl.benchmarks.results.side_by_side import side_by_side
    from t2ictl.benchmarks.results.statistics.reading import read_runs

    runs = [(folder, read_runs([folder])) for folder in folders]
    options: dict[str, Any] = {"against": against, "outcome": outcome, "resamples": resamples, "seed": seed}
    return side_by_side(runs, allow_missing=allow_missing, **options)


def models_command(
    folders: Folders,
    out: Annotated[Path | None, typer.Option(help="Also write the page to this file, in Markdown.")] = None,
    against: Annotated[str, typer.Option(help="The arm that the others are compared with.")] = "plain",
    outcome: Annotated[str, typer.Option(help="Which outcome is compared.")] = "is_strict",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    resamples: Annotated[int, typer.Option(help="Bootstrap samples.")] = 9999,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Compare what is there; the tables are then marked.")
    ] = False,
) -> None:
    """Compare runs of several models: each method's difference on each, and whether their ranking carries over."""
    found = compare_models(
        folders, against=against, outcome=outcome, resamples=resamples, seed=seed, allow_missing=allow_missing
    )
    from t2ictl.benchmarks.results.side_by_side import page, page_json

    text = page(found)
    if out is not None:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise BadSetting(
                f"{str(out)!r} cannot be written: {error}.", "Name a file in a folder that exists."
            ) from None
    print(page_json(found) if as_json else text)

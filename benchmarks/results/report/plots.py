"""Plots of a comparison: every point with its interval, in colors that color-blind readers can tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from t2ictl.benchmarks.extras import need
from t2ictl.benchmarks.results.statistics.comparison import MACRO, Comparison
from t2ictl.benchmarks.runs.summary import shown_name

__all__ = ["plot_differences", "plot_shares"]

# Okabe and Ito's colors.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LEFT, WIDTH, LINE, MARGIN = 2.2, 1.9, 0.3, 1.1  # inches


def plot_shares(comparison: Comparison, path: Path) -> Path:
    """Draw the share of every arm, one panel an outcome, one color a category.

    Args:
        comparison: the figures.
        path: a PNG file.

    Returns:
        The file.
    """
    return _panels(comparison.shares, comparison, path, "percent of images", zero=False)


def plot_differences(comparison: Comparison, against: str, path: Path) -> Path | None:
    """Draw the difference of every arm from another one.

    Args:
        comparison: the figures.
        against: the arm that the others are compared with.
        path: a PNG file.

    Returns:
        The file; None where nothing was compared with that arm.
    """
    rows = comparison.differences
    rows = rows[rows["against"] == against]
    return _panels(rows, comparison, path, f"points more than {against}", zero=True) if len(rows) else None


def _panels(rows: pd.DataFrame, comparison: Comparison, path: Path, label: str, *, zero: bool) -> Path:
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(rows["arm"]))
    categories = list(dict.fromkeys(rows["category"]))
    spread = rows.groupby("outcome")["estimate"].agg(lambda values: values.max() - values.min())
    # What is the same in every arm and category tells nothing apart; the tables have it.
    outcomes = [name for name in comparison.outcomes if spread.get(name, 0) > 0] or list(comparison.outcomes[:1])
    lines = len(arms) * max(1.0, len(categories) / 2.5)
    # A canvas of its own: neither pyplot's state nor the user's backend is touched.
    figure = Figure(figsize=(LEFT + WIDTH * len(outcomes), MARGIN + LINE * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(outcomes), sharey=True, squeeze=False)[0]
    for panel, outcome in zip(axes, outcomes, strict=True):
        _panel(panel, rows[rows["outcome"] == outcome], arms, categories)
        panel.set_title(outcome, fontsize=9)
        if zero:
            panel.axvline(0, color="#888888", linewidth=0.8)
        else:
            panel.set_xlim(-2, 102)
    axes[0].set_yticks(range(len(arms)), [shown_name(arm) for arm in arms], fontsize=8)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    figure.supxlabel(f"{label}, 95 % intervals over prompts", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    return path


def _panel(panel: Any, rows: pd.DataFrame, arms: list[str], categories: list[str]) -> None:
    for number, category in enumerate(categories):
        own = rows[rows["category"] == category]
        # The mean of all categories is black and in the middle of its line.
        color = "#000000" if category == MACRO else COLORS[number % (len(COLORS) - 1)]
        shift = 0.7 * ((number + 0.5) / len(categories) - 0.5)
        places = [arms.index(arm) + shift for arm in own["arm"]]
        middle, low, high = (100 * own[name].to_numpy(dtype=float) for name in ("estimate", "low", "high"))
        marker = "D" if category == MACRO else "o"
        panel.hlines(places, low, high, color=color, linewidth=0.9)
        panel.plot(middle, places, marker, color=color, markersize=3, label=category)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.tick_params(labelsize=8)

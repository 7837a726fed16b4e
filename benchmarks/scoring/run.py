"""Score a finished run: every image once, resumable, and the arms compared.

Letters: ``P`` prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2ictl.benchmarks.markdown import markdown_table
from t2ictl.benchmarks.runs.table import checked_image, read_results
from t2ictl.benchmarks.scoring.base import Metric, Score
from t2ictl.errors import BadSetting
from t2ictl.evaluation.statistics.intervals import difference_bounds, share_bounds
from t2ictl.evaluation.statistics.resampling import seed_of
from t2ictl.settings.store import Store

__all__ = ["score_run", "score_table"]

RESAMPLES = 10_000
MACRO = "macro"


def score_run(run: Path, metric: Metric, *, on_image: Callable[[int, int], Any] | None = None) -> Any:
    """Score all images of a run; what was scored before is taken from the run's folder.

    A score belongs to the image (its pixels), the prompt and the metric with all its facts, so an image that is the
    same in two arms is scored once, and an image that changed is scored anew.

    Args:
        run: folder of a run that is done.
        metric: the metric.
        on_image: gets the number of images done and of all.

    Returns:
        A table with one row an image: ``arm``, ``category``, ``prompt_id``, ``seed``, ``sha256``, ``score``. It is
        also written to the run's folder, where a report finds it.

    Raises:
        BadSetting: if the run is not done, or images of it failed, are not there or are others.
    """
    rows = read_results(run)
    cache = _Cache(run, metric)
    found = []
    for number, row in enumerate(rows.to_dict("records"), start=1):
        key = cache.key(row["sha256"], row["prompt"])
        if key not in cache.scores:
            with Image.open(checked_image(run, row)) as image:
                cache.add(key, metric(image, row["prompt"]))
        found.append(cache.scores[key])
        if on_image is not None:
            on_image(number, len(rows))
    scores = rows[["arm", "category", "prompt_id", "seed", "sha256"]].assign(score=found)
    cache.write_table(scores)
    return scores


class _Cache:
    """Scores of one metric in the folder of a run."""

    def __init__(self, run: Path, metric: Metric) -> None:
        identity = json.dumps({"name": metric.name, **metric.facts}, sort_keys=True, default=str)
        self._name = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self._store = Store(run / "scores")
        self._store.write_file(f"{self._name}.json", (identity + "\n").encode())
        self.scores = {row["key"]: float(row["value"]) for row in self._store.rows(self._name)}

    def key(self, sha256: str, prompt: str) -> str:
        return hashlib.sha256(f"{self._name} {sha256} {prompt}".encode()).hexdigest()[:32]

    def add(self, key: str, score: Score) -> None:
        """Keep a score, on disk before it counts."""
        if not np.isfinite(score.value):
            raise BadSetting(f"The metric gave {score.value}.", "Its model may be damaged, or its precision too low.")
        self._store.append(self._name, [{"key": key, **asdict(score)}])
        self.scores[key] = score.value

    def write_table(self, scores: Any) -> None:
        """Write the scores of all images of the run, by which a report finds them."""
        text = scores.to_csv(index=False, lineterminator="\n")
        self._store.write_file(f"{self._name}.csv", text.encode())


def score_table(scores: Any, against: str) -> list[dict[str, Any]]:
    """Compare arms: means and paired differences, prompts as the independent units.

    Args:
        scores: from :func:`score_run`.
        against: the arm that the others are compared with.

    Returns:
        One entry a category and arm; of several categories also ``macro``, the mean in which each counts the same.

    Raises:
        BadSetting: if there is no such arm, or an arm lacks images that another has.
    """
    arms = list(scores["arm"].unique())
    if against not in arms:
        raise BadSetting(f"The run has no arm {against!r}.", f"Arms: {', '.join(arms)}.")
    parts = list(_entries(scores, [against, *(arm for arm in arms if arm != against)]))
    return parts if scores["category"].nunique() < 2 else [*parts, *_macro(parts)]


def _entries(scores: Any, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    for category, group in scores.groupby("category", sort=False):
        wide = group.pivot(index=["prompt_id", "seed"], columns="arm", values="score")
        if wide.isna().any(axis=None):
            raise BadSetting(f"Some arms have no image for prompts of {category!r}.", "Finish the run first.")
        means = wide.groupby("prompt_id").mean()
        base_P = means[arms[0]].to_numpy(dtype=float)
        for arm in arms:
            own_P = means[arm].to_numpy(dtype=float)
            entry: dict[str, Any] = {"category": category, "arm": arm, "prompts": len(means), "pictures": len(wide)}
            entry |= {"mean": float(own_P.mean()), "interval": _interval(own_P)}
            if arm != arms[0]:
                made = difference_bounds((own_P - base_P)[:, None], RESAMPLES, seed_of(str(category), 0)).bounds
                entry |= {"difference": float(made.estimate[0]), "between": [float(made.low[0]), float(made.high[0])]}
            yield entry


def _macro(parts: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Means over categories, all of which count the same."""
    for arm in dict.fromkeys(part["arm"] for part in parts):
        own = [part for part in parts if part["arm"] == arm]
        counts = {key: sum(part[key] for part in own) for key in ("prompts", "pictures")}
        entry: dict[str, Any] = {"category": MACRO, "arm": arm, **counts}
        entry |= {"mean": _mean([part["mean"] for part in own]), "interval": _mean_bounds(own, "mean", "interval")}
        if "difference" in own[0]:
            entry |= {"difference": _mean([part["difference"] for part in own])}
            entry |= {"between": _mean_bounds(own, "difference", "between")}
        yield entry


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_bounds(parts: Sequence[Mapping[str, Any]], key: str, bounds: str) -> list[float]:
    """Distances from the estimates, squared and added (MOVER), as for shares."""
    below, above = (sum((part[bounds][side] - part[key]) ** 2 for part in parts) ** 0.5 / len(parts) for side in (0, 1))
    middle = _mean([part[key] for part in parts])
    return [middle - below, middle + above]


def _interval(values_P: np.ndarray) -> list[float]:
    """Of scores in [0, 1] that of a share; of others Student's."""
    if ((values_P >= 0) & (values_P <= 1)).all():
        made = share_bounds(values_P[:, None])
        return [float(made.low[0]), float(made.high[0])]
    if len(values_P) < 2:
        return [float("-inf"), float("inf")]
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values_P) - 1) * values_P.std(ddof=1) / len(values_P) ** 0.5)
    return [float(values_P.mean()) - half, float(values_P.mean()) + half]


def table_text(table: Sequence[Mapping[str, Any]], name: str) -> str:
    """Write the table for a terminal.

    Args:
        table: from :func:`score_table`.
        name: of the metric.

    Returns:
        Markdown.
    """
    head = ("category", "arm", "prompts", "pictures", "mean", "difference")
    return "\n".join([f"{name}, 95 % intervals over prompts", "", *markdown_table(head, map(_cells, table))])


def _cells(entry: Mapping[str, Any]) -> tuple[object, ...]:
    low, high = entry["interval"]
    mean, change = f"{entry['mean']:.4f} [{low:.4f}, {high:.4f}]", ""
    if "difference" in entry:
        below, above = entry["between"]
        change = f"{entry['difference']:+.4f} [{below:+.4f}, {above:+.4f}]"
    return entry["category"], entry["arm"], entry["prompts"], entry["pictures"], mean, change

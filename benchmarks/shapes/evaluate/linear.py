"""Linear probes: which of some classes a row belongs to, by ridge regression in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Strengths of the penalty, as parts of the number of rows; the best on a fifth of the rows is taken.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe.

    Args:
        mean: of the rows it was fitted on, shape ``(C,)``.
        scale: their deviations, shape ``(C,)``.
        weight: shape ``(C + 1, classes)``, the constant last.

    Example:
        >>> probe = Probe(mean=np.zeros(1), scale=np.ones(1), weight=np.array([[1.0, -1.0], [0.0, 0.0]]))
        >>> probe.scores(np.array([[3.0]])).argmax(1).tolist()
        [0]
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray

    def scores(self, rows_NC: np.ndarray) -> np.ndarray:
        """Score rows of shape ``(N, C)``; returns shape ``(N, classes)``, the highest of which is the answer."""
        return with_constant((rows_NC - self.mean) / self.scale) @ self.weight


def with_constant(rows_NC: np.ndarray) -> np.ndarray:
    """Append a column of ones.

    Args:
        rows_NC: shape ``(N, C)``.

    Returns:
        Shape ``(N, C + 1)``.

    Example:
        >>> with_constant(np.zeros((1, 2))).tolist()
        [[0.0, 0.0, 1.0]]
    """
    return np.concatenate([rows_NC, np.ones((len(rows_NC), 1))], axis=1)


def _solve(rows_NC: np.ndarray, targets_NK: np.ndarray, penalty: float) -> np.ndarray:
    """Solve the ridge equations; the constant is not penalized."""
    design = with_constant(rows_NC)
    ridge = np.full(design.shape[1], penalty * len(design))
    ridge[-1] = 1e-9
    return np.linalg.solve(design.T @ design + np.diag(ridge), design.T @ targets_NK)


def fit_probe(rows_NC: np.ndarray, labels_N: np.ndarray, classes: int) -> Probe:
    """Fit a probe; the last fifth of the rows chooses the penalty, then all rows are used.

    Args:
        rows_NC: shape ``(N, C)``, at least 10 rows.
        labels_N: integers from 0 to ``classes - 1``.
        classes: how many there are.

    Returns:
        The probe.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(200, 3))
        >>> probe = fit_probe(rows, (rows[:, 0] > 0).astype(int), 2)
        >>> bool((probe.scores(rows).argmax(1) == (rows[:, 0] > 0)).mean() > 0.9)
        True
    """
    mean, scale = rows_NC.mean(0), rows_NC.std(0) + 1e-6
    rows, targets = (rows_NC - mean) / scale, np.eye(classes)[labels_N]
    cut = len(rows) - max(1, len(rows) // 5)

    def right(penalty: float) -> float:
        """Measure the share of the last fifth that is right."""
        weight = _solve(rows[:cut], targets[:cut], penalty)
        answers = (with_constant(rows[cut:]) @ weight).argmax(1)
        return float((answers == labels_N[cut:]).mean())

    best = max(PENALTIES, key=right)
    return Probe(mean=mean, scale=scale, weight=_solve(rows, targets, best))

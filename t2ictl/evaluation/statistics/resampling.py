"""Resampling whole prompts: bootstrap means, sign-flip tests, and Holm's correction.

Dimension letters: ``P`` prompt, ``C`` column (one arm or pair of arms and one outcome), ``R`` resample.
A value is what one prompt contributes, already averaged over its seeds; NaN: the prompt does not take part.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: Rows of sign flips made at a time; 4000 rows of 1000 prompts are 32 MB.
CHUNK = 4000
#: Sums of the same differences in another order may differ in the last digits and still be equal.
TOLERANCE = 1e-9


def seed_of(category: str, seed: int) -> list[int]:
    """Return the seed of a category's resamples: it does not depend on which other categories there are.

    Args:
        category: its name.
        seed: of the whole analysis, at least 0.

    Returns:
        Entropy for ``numpy.random.default_rng``.

    Example:
        >>> seed_of("pair", 0)
        [0, 156900969]
    """
    return [seed, zlib.crc32(category.encode())]


def resampled_means(values_PC: Array, resamples: int, entropy: list[int]) -> Array:
    """Return the means of bootstrap samples of prompts; all columns of the same prompts share the samples.

    Args:
        values_PC: one value a prompt and column, NaN where the prompt does not take part.
        resamples: how many samples, at least 1.
        entropy: seed; the same seed gives the same samples.

    Returns:
        ``means_RC``; NaN in a column that has no prompt.

    Example:
        >>> resampled_means(np.ones((3, 1)), 2, [0]).ravel().tolist()
        [1.0, 1.0]

    Reference:
        A. C. Cameron, J. B. Gelbach, D. L. Miller, Bootstrap-based improvements for inference with clustered
        errors, Review of Economics and Statistics 90 (2008), 414-427: clusters are drawn whole.
    """
    means_RC = np.full((resamples, values_PC.shape[1]), np.nan)
    for rows, columns in _same_prompts(values_PC):
        count = int(rows.sum())
        draws_RP = np.random.default_rng(entropy).multinomial(count, np.full(count, 1 / count), size=resamples)
        means_RC[:, columns] = draws_RP.astype(float) @ values_PC[np.ix_(rows, columns)] / count
    return means_RC


def flipped_means(values_PC: Array, resamples: int, entropy: list[int]) -> Array:
    """Return means after the sign of every prompt's difference was drawn anew; all columns share the signs.

    Args:
        values_PC: one difference a prompt and column, NaN where the prompt does not take part.
        resamples: how many times.
        entropy: seed.

    Returns:
        ``means_RC``.

    Example:
        >>> sorted(set(flipped_means(np.array([[1.0], [0.0]]), 50, [0]).ravel().tolist()))
        [-0.5, 0.5]
    """
    generator = np.random.default_rng(entropy)
    count_C = np.maximum(1, (~np.isnan(values_PC)).sum(axis=0))
    known_PC = np.nan_to_num(values_PC) / count_C
    parts = []
    for start in range(0, resamples, CHUNK):
        size = (min(CHUNK, resamples - start), len(values_PC))
        parts.append((2.0 * generator.integers(0, 2, size=size, dtype=np.int8) - 1) @ known_PC)
    return np.concatenate(parts)


def sign_flip_p_values(estimate_C: Array, flipped_RC: Array) -> Array:
    """Return two-sided p-values: how often a mean with random signs is as far from 0 as the one that was seen.

    If an arm makes no difference, both outcomes of a prompt could as well have been the other arm's, so every
    sign is equally probable and the test is exact. The seen signs count as one draw, so p is never 0.

    Args:
        estimate_C: the means that were seen.
        flipped_RC: from :func:`flipped_means`.

    Returns:
        One p-value a column, above 0.

    Example:
        >>> sign_flip_p_values(np.array([1.0]), np.array([[1.0], [-1.0], [0.0]])).tolist()
        [0.75]

    Reference:
        B. Phipson, G. K. Smyth, Permutation p-values should never be zero, Statistical Applications in Genetics
        and Molecular Biology 9 (2010), article 39.
    """
    hits_C = (np.abs(flipped_RC) >= np.abs(estimate_C) - TOLERANCE).sum(axis=0)
    p_C: Array = (hits_C + 1) / (len(flipped_RC) + 1)
    return p_C


def holm(p_values: Array) -> Array:
    """Adjust p-values for the number of tests in their family.

    Args:
        p_values: of the whole family, in any order; NaN: no test.

    Returns:
        Adjusted p-values in the same order; below 0.05 they hold together at a family-wise error rate of 5 %.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
        [0.03, 0.06, 0.06]

    Reference:
        S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6
        (1979), 65-70.
    """
    adjusted = np.full(len(p_values), np.nan)
    known = ~np.isnan(p_values)
    order = np.argsort(p_values[known], kind="stable")
    steps = p_values[known][order] * np.arange(len(order), 0, -1)
    made = np.empty(len(order))
    made[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    adjusted[known] = made
    return adjusted


def _same_prompts(values_PC: Array) -> list[tuple[NDArray[np.bool_], NDArray[np.intp]]]:
    """Columns that have the same prompts, as pairs of a row mask and column numbers."""
    patterns, which = np.unique(~np.isnan(values_PC), axis=1, return_inverse=True)
    groups = [(patterns[:, i], np.flatnonzero(which.ravel() == i)) for i in range(patterns.shape[1])]
    return [(rows, columns) for rows, columns in groups if rows.any()]

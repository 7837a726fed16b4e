"""Soft overlap of concept maps: the segregation loss of A-STAR.

Two concepts with attention at the same position overlap. The overlap of two maps is the attention that they share,
divided by the mass that they have together. That denominator is a sum and not a union, so a pair lies in [0, 0.5], and
a threshold made for an intersection-over-union is wrong by a factor of two.

The two checks at the end are shared by all losses on concept maps.

Legend: B batch row, N concept, P pair of concepts, Y X map rows and columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from t2ictl.errors import BadSetting, ShapeMismatch

Reduction = Literal["sum", "mean"]


def soft_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the shared mass of two maps divided by their total mass.

    ``sum(min(a, b)) / sum(a + b)`` over rows and columns. Multiplying both maps by one number changes nothing. Where
    both maps are empty the value and its gradient are 0. Where a cell is tied, each map gets half of its gradient.

    Args:
        first: maps of shape (..., Y, X), not negative.
        second: maps of the same shape, not negative.

    Returns:
        Overlaps of shape (...), each in [0, 0.5]; float32, or float64 if an argument is float64.

    Raises:
        ShapeMismatch: the shapes differ, or a map has no rows and columns.

    Example:
        >>> first, second = torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 1.0]])
        >>> soft_overlap(first, second).item()
        0.25

    Reference:
        Agarwal, Karanam, Joseph, Saxena, Goswami, Srinivasan: "A-STAR: Test-time Attention Segregation and Retention
        for Text-to-image Synthesis", 2023, arXiv 2306.14544, the fraction in equations 2 and 3.
    """
    if first.dim() < 2 or first.shape != second.shape:
        raise ShapeMismatch(
            f"`second` has shape {tuple(second.shape)}, expected {tuple(first.shape)} as `first`, (..., Y, X).",
            "Give two maps of the same size.",
        )
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    first, second = first.to(dtype), second.to(dtype)
    shared = torch.minimum(first, second).sum((-2, -1))
    total = (first + second).sum((-2, -1))
    filled = total > torch.finfo(dtype).tiny
    # The division happens where it is defined only: a 0/0 that is selected away afterwards still has a NaN gradient.
    return torch.where(filled, shared / torch.where(filled, total, 1.0), 0.0)


def overlap_loss(maps_BNYX: Tensor, mask_BN: Tensor | None = None, reduction: Reduction = "sum") -> Tensor:
    """Return, for each row, how much its concepts overlap, over all unordered pairs.

    ``sum over m > n of sum(min(A_m, A_n)) / sum(A_m + A_n)``. The paper sums; a mean makes the size of the gradient
    independent of the number of concepts. Rows do not influence each other.

    Args:
        maps_BNYX: one map for each concept, not negative.
        mask_BN: true where a concept is real; None if all are. Padded concepts add nothing and get no gradient.
        reduction: "sum" over the pairs, or "mean" over the real pairs of each row.

    Returns:
        loss_B, in [0, 0.5 * pairs] for "sum" and [0, 0.5] for "mean"; 0 for a row with fewer than two concepts.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or the mask does not fit them.
        BadSetting: the reduction is unknown, or the mask is not boolean.

    Example:
        >>> maps_BNYX = torch.tensor([[[[1.0, 3.0]], [[3.0, 1.0]], [[0.0, 4.0]]]])
        >>> overlap_loss(maps_BNYX)
        tensor([0.7500])

    Reference:
        Agarwal, Karanam, Joseph, Saxena, Goswami, Srinivasan: "A-STAR: Test-time Attention Segregation and Retention
        for Text-to-image Synthesis", 2023, arXiv 2306.14544, equation 2.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    concepts = maps_BNYX.shape[1]
    first_P, second_P = torch.triu_indices(concepts, concepts, 1, device=maps_BNYX.device)
    pair_BP = mask_BN[:, first_P] & mask_BN[:, second_P]
    overlap_BP = soft_overlap(maps_BNYX[:, first_P], maps_BNYX[:, second_P])
    return reduced(overlap_BP, pair_BP, reduction)


def checked_maps(maps_BNYX: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return maps of at least float32 whose padded concepts are 0 and get no gradient, and a mask that always exists.

    Args:
        maps_BNYX: one map for each concept; half precision is promoted.
        mask_BN: true where a concept is real; None if all are.

    Returns:
        maps_BNYX and mask_BN.

    Raises:
        ShapeMismatch: the maps are not four-dimensional or have no cells, or the mask does not fit them.
        BadSetting: the mask is not boolean.

    Example:
        >>> maps_BNYX, mask_BN = checked_maps(torch.ones(1, 2, 1, 1), torch.tensor([[True, False]]))
        >>> maps_BNYX.flatten().tolist()
        [1.0, 0.0]
    """
    if maps_BNYX.dim() != 4 or 0 in maps_BNYX.shape[2:]:
        raise ShapeMismatch(
            f"`maps_BNYX` has shape {tuple(maps_BNYX.shape)}, expected (B, N, Y, X) with at least one cell.",
            "Give one map of rows and columns for each concept of each batch row.",
        )
    expected = tuple(maps_BNYX.shape[:2])
    maps_BNYX = maps_BNYX.to(torch.promote_types(maps_BNYX.dtype, torch.float32))
    if mask_BN is None:
        return maps_BNYX, torch.ones(expected, dtype=torch.bool, device=maps_BNYX.device)
    if tuple(mask_BN.shape) != expected:
        raise ShapeMismatch(
            f"`mask_BN` has shape {tuple(mask_BN.shape)}, expected {expected}.",
            "Mark every concept of every batch row.",
        )
    if mask_BN.dtype != torch.bool:
        raise BadSetting(f"`mask_BN` has dtype {mask_BN.dtype}, expected torch.bool.", "Convert it with .bool().")
    return maps_BNYX.masked_fill(~mask_BN[:, :, None, None], 0.0), mask_BN


def reduced(value_BP: Tensor, counts_BP: Tensor, reduction: Reduction) -> Tensor:
    """Return the sum or the mean of the values that count, row by row.

    Args:
        value_BP: values, one for each concept or pair.
        counts_BP: boolean, true where a value counts.
        reduction: "sum" or "mean".

    Returns:
        loss_B; 0 where nothing counts.

    Raises:
        BadSetting: the reduction is unknown.

    Example:
        >>> reduced(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]), "mean")
        tensor([2.])
    """
    if reduction not in ("sum", "mean"):
        raise BadSetting(f"The reduction is {reduction!r}.", 'Use "sum" or "mean".')
    sum_B = torch.where(counts_BP, value_BP, 0.0).sum(1)
    return sum_B if reduction == "sum" else sum_B / counts_BP.sum(1).clamp(min=1)

"""Variation of maps and divergence of pairs: the losses of Divide and Bind.

A concept that is there has a map with edges; the total variation of a map counts them all, where Attend-and-Excite
reads one cell. The mean of differences, as in the published code: their sum would grow with the resolution of the maps
and be out of proportion to the published step and thresholds.

Legend: B batch row, N word, Y X map rows and columns, P place.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from t2ictl.errors import BadSetting
from t2ictl.losses.distances import jensen_shannon, shares
from t2ictl.losses.groups import checked_groups, described
from t2ictl.losses.overlap import checked_maps

Rows = Literal["neighbors", "last"]


def total_variation(maps_BNYX: Tensor, rows: Rows = "neighbors") -> Tensor:
    """Return the mean absolute difference of cells side by side, plus that of cells one below the other.

    ``mean |A[i, j+1] - A[i, j]| + mean |A[i+1, j] - A[i, j]|``.

    Args:
        maps_BNYX: one map for each concept.
        rows: rows that are compared: ``"neighbors"``, as in the paper; or each with the ``"last"``, as in the
            published code.

    Returns:
        variation_BN, not negative; a direction with a single cell adds nothing.

    Raises:
        BadSetting: the choice of rows is unknown.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]]))  # (1 + 3) / 2, and (0 + 2) / 2
        tensor([[3.]])
    """
    if rows not in ("neighbors", "last"):
        raise BadSetting(f"The rows to compare are {rows!r}.", 'Use "neighbors" or "last".')
    other = maps_BNYX[..., :-1, :] if rows == "neighbors" else maps_BNYX[..., -1:, :]
    down = maps_BNYX[..., 1:, :] - other
    across = maps_BNYX[..., :, 1:] - maps_BNYX[..., :, :-1]
    # Divided by at least 1: the mean over no cell would be 0 / 0.
    return sum(each.abs().sum((-2, -1)) / max(each.shape[-2] * each.shape[-1], 1) for each in (down, across))  # type: ignore[return-value]


def attendance_loss(maps_BNYX: Tensor, mask_BN: Tensor | None = None, rows: Rows = "neighbors") -> Tensor:
    """Return, for each row, minus the total variation of its flattest map.

    ``-min over n of TV(A_n)``.

    Args:
        maps_BNYX: one map for each concept.
        mask_BN: true where a concept is real; None if all are. Padded concepts are ignored and get no gradient.
        rows: as for :func:`total_variation`.

    Returns:
        loss_B, not positive; 0 for a row without concepts.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or the mask does not fit them.
        BadSetting: the mask is not boolean, or the choice of rows is unknown.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.25]]]])
        >>> attendance_loss(maps_BNYX)
        tensor([-0.2500])

    Reference:
        Li, Keuper, Zhang, Khoreva: "Divide & Bind Your Attention for Improved Generative Semantic Nursing", BMVC 2023,
        arXiv 2307.10864, the attendance loss.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    if maps_BNYX.shape[1] == 0:
        return maps_BNYX.sum((1, 2, 3))
    least_B = torch.where(mask_BN, total_variation(maps_BNYX, rows), torch.inf).amin(1)
    return torch.where(mask_BN.any(1), -least_B, 0.0)


def binding_loss(maps_BNYX: Tensor, owner_BN: Tensor, noun_BN: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Return, for each row, how far modifiers are from their nouns.

    ``sum over (n, m) of JSD(A_n, A_m)`` over pairs of a noun and one of its modifiers, of maps that sum to 1.

    Args:
        maps_BNYX: one map for each word, not negative.
        owner_BN: number of the object that a word belongs to.
        noun_BN: true where a word is the noun of its object.
        mask_BN: true where a word is real; None if all are. Padded words add nothing and get no gradient.

    Returns:
        loss_B, in [0, pairs ln 2]; 0 for a row without modifiers.

    Raises:
        ShapeMismatch: maps, numbers, nouns and mask do not fit each other.
        BadSetting: one of them has another type.

    Example:
        >>> maps_BNYX = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> binding_loss(maps_BNYX, torch.tensor([[0, 0]]), torch.tensor([[True, False]]))  # ln 2
        tensor([0.6931])

    Reference:
        Li, Keuper, Zhang, Khoreva: "Divide & Bind Your Attention for Improved Generative Semantic Nursing", BMVC 2023,
        arXiv 2307.10864, the binding loss.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    checked_groups(maps_BNYX, owner_BN, noun_BN)
    pair_BNN = described(owner_BN, noun_BN, mask_BN)
    return torch.where(pair_BNN, jensen_shannon(shares(maps_BNYX)), 0.0).sum((1, 2))


def attend_and_bind_loss(
    maps_BNYX: Tensor, colors_BNYX: Tensor, has_color_BN: Tensor, weight: float, mask_BN: Tensor | None = None
) -> Tensor:
    """Return, for each row, the joint loss of the published code: one noun alone moves, by its edges and its color.

    ``max over n of -(TV(A_n) - weight J(a_n, b_n))``. ``b`` is the map of the color, scaled to the largest cell of
    ``A``. Both go through a softmax over places; what lies below 0.2 of the largest ``a`` (0.3 where ``TV < 0.1``) is
    cut off, 1e-5 added. ``J = sum(a ln(a/m) + b ln(b/m)) / 2`` with ``m = (a + b) / 2``, of masses that are not
    normalized.

    Args:
        maps_BNYX: one map for each noun.
        colors_BNYX: the map of its color; any where it has none.
        has_color_BN: true where a noun has a color.
        weight: of the divergence: 1 in the first 10 of 50 steps, 5 in the next 10, then 10 in the published code.
        mask_BN: true where a noun is real; None if all are.

    Returns:
        loss_B; 0 for a row without nouns.

    Raises:
        ShapeMismatch: maps and mask do not fit each other.
        BadSetting: the mask is not boolean.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.0, 0.5], [0.0, 0.5]]]])
        >>> attend_and_bind_loss(maps_BNYX, maps_BNYX, torch.tensor([[True]]), weight=5.0)  # equal maps: -TV
        tensor([-0.5000])

    Reference:
        Li, Keuper, Zhang, Khoreva: "Divide & Bind Your Attention for Improved Generative Semantic Nursing", BMVC 2023,
        arXiv 2307.10864, as published in code.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    colors_BNYX, _ = checked_maps(colors_BNYX, mask_BN)
    if maps_BNYX.shape[1] == 0:
        return maps_BNYX.sum((1, 2, 3))
    variation_BN = total_variation(maps_BNYX, "last")
    apart_BN = _cut_divergence(maps_BNYX, colors_BNYX, 0.2 + 0.1 * (variation_BN < 0.1).to(variation_BN))
    value_BN = torch.where(has_color_BN & mask_BN, variation_BN - weight * apart_BN, variation_BN)
    worst_B = torch.where(mask_BN, -value_BN, -torch.inf).amax(1)
    return torch.where(mask_BN.any(1), worst_B, 0.0)


def _cut_divergence(maps_BNYX: Tensor, colors_BNYX: Tensor, cut_BN: Tensor) -> Tensor:
    peak_BN11, other_BN11 = (each.amax((-2, -1), keepdim=True) for each in (maps_BNYX, colors_BNYX))
    scaled_BNYX = colors_BNYX / torch.where(other_BN11 > 0, other_BN11, 1.0) * peak_BN11
    a_BNP, b_BNP = maps_BNYX.flatten(2).softmax(-1), scaled_BNYX.flatten(2).softmax(-1)
    least_BN1 = cut_BN[..., None] * a_BNP.amax(-1, keepdim=True)
    a_BNP, b_BNP = ((each - least_BN1).relu() + 1e-5 for each in (a_BNP, b_BNP))
    log_BNP = ((a_BNP + b_BNP) / 2).log()
    return ((a_BNP * (a_BNP.log() - log_BNP)).sum(-1) + (b_BNP * (b_BNP.log() - log_BNP)).sum(-1)) / 2

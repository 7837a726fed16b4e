"""Variation of maps and divergence of pairs: the losses of Divide and Bind.

A concept that is there has a map with edges; the total variation of a map counts them all, where Attend-and-Excite
reads one cell. Differences run over all neighboring rows and all neighboring columns.

Legend: B batch row, N word, Y X map rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.losses.distances import jensen_shannon, shares
from t2ictl.losses.groups import checked_groups, described
from t2ictl.losses.overlap import checked_maps


def total_variation(maps_BNYX: Tensor) -> Tensor:
    """Return the sum of absolute differences of neighboring cells of each map.

    ``sum |A[i+1, j] - A[i, j]| + sum |A[i, j+1] - A[i, j]|``.

    Args:
        maps_BNYX: one map for each concept.

    Returns:
        variation_BN, not negative.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]]))  # 0 + 2, and 1 + 3
        tensor([[6.]])
    """
    down = (maps_BNYX[..., 1:, :] - maps_BNYX[..., :-1, :]).abs().sum((-2, -1))
    across = (maps_BNYX[..., :, 1:] - maps_BNYX[..., :, :-1]).abs().sum((-2, -1))
    return down + across


def attendance_loss(maps_BNYX: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Return, for each row, minus the total variation of its flattest map.

    ``-min over n of TV(A_n)``.

    Args:
        maps_BNYX: one map for each concept.
        mask_BN: true where a concept is real; None if all are. Padded concepts are ignored and get no gradient.

    Returns:
        loss_B, not positive; 0 for a row without concepts.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or the mask does not fit them.
        BadSetting: the mask is not boolean.

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
    least_B = torch.where(mask_BN, total_variation(maps_BNYX), torch.inf).amin(1)
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

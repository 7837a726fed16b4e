"""Distances between concept maps, all pairs at once: what several losses of the catalogue are made of.

Legend: B batch row, N M concept (word), Y X map rows and columns, P place.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Ours: the share below which a cell counts as empty in a logarithm. Below the smallest share that float32 maps of
# 128 x 128 places hold, and far enough from 0 that slopes stay finite.
FLOOR = 1e-10


def shares(maps_BNYX: Tensor) -> Tensor:
    """Return maps as distributions over their places.

    Args:
        maps_BNYX: one map for each word, not negative.

    Returns:
        share_BNP, each summing to 1; an empty map is even.

    Example:
        >>> shares(torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]]))[0]
        tensor([[0.2500, 0.7500],
                [0.5000, 0.5000]])
    """
    flat_BNP = maps_BNYX.flatten(2).clamp(min=0)
    sum_BN1 = flat_BNP.sum(-1, keepdim=True)
    is_empty_BN1 = sum_BN1 <= FLOOR
    even_BNP = torch.full_like(flat_BNP, 1 / flat_BNP.shape[-1])
    return torch.where(is_empty_BN1, even_BNP, flat_BNP / torch.where(is_empty_BN1, 1.0, sum_BN1))


def symmetric_divergence(share_BNP: Tensor, floor: float = FLOOR) -> Tensor:
    """Return the symmetric Kullback-Leibler divergence of each two distributions, in nats.

    ``(KL(p, q) + KL(q, p)) / 2``; logarithms of cells below a floor are held there, so that it stays finite.

    Args:
        share_BNP: distributions over places.
        floor: the smallest share in a logarithm.

    Returns:
        distance_BNN, symmetric, 0 on the diagonal, not negative up to rounding.

    Example:
        >>> p = torch.tensor([[[0.25, 0.75], [0.75, 0.25]]])
        >>> symmetric_divergence(p)[0, 0, 1]  # (0.75 - 0.25) ln 3
        tensor(0.5493)
    """
    log_BNP = share_BNP.clamp(min=floor).log()
    cross_BNN = share_BNP @ log_BNP.transpose(1, 2)  # sum p log q
    own_BN = (share_BNP * log_BNP).sum(-1)
    return (own_BN[:, :, None] + own_BN[:, None, :] - cross_BNN - cross_BNN.transpose(1, 2)) / 2


def jensen_shannon(share_BNP: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each two distributions, in nats.

    ``H((p + q) / 2) - (H(p) + H(q)) / 2``.

    Args:
        share_BNP: distributions over places.

    Returns:
        distance_BNN in [0, ln 2], symmetric, 0 on the diagonal.

    Example:
        >>> p = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> jensen_shannon(p)[0, 0, 1]  # ln 2
        tensor(0.6931)
    """
    mean_BNNP = (share_BNP[:, :, None] + share_BNP[:, None]) / 2

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=FLOOR).log()).sum(-1)

    own_BN = entropy(share_BNP)
    return entropy(mean_BNNP) - (own_BN[:, :, None] + own_BN[:, None]) / 2


def cosine(maps_BNYX: Tensor) -> Tensor:
    """Return the cosine of each two maps, taken as vectors of places.

    Args:
        maps_BNYX: one map for each word.

    Returns:
        cosine_BNN in [-1, 1], and in [0, 1] for maps that are not negative; 0 for an empty map.

    Example:
        >>> cosine(torch.tensor([[[[3.0, 4.0]], [[4.0, 3.0]]]]))[0, 0, 1]
        tensor(0.9600)
    """
    flat_BNP = maps_BNYX.flatten(2)
    norm_BN1 = flat_BNP.square().sum(-1, keepdim=True).clamp(min=FLOOR**2).sqrt()
    unit_BNP = flat_BNP / norm_BN1
    return unit_BNP @ unit_BNP.transpose(1, 2)

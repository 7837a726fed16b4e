"""Binding of modifiers to their nouns by divergence: the loss of SynGen.

A modifier shall look where its noun looks, and neither shall look where words outside of the phrase look.

Legend: B batch row, N word, Y X map rows and columns.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.losses.distances import shares, symmetric_divergence
from t2ictl.losses.groups import apart, checked_groups, described, mean_over
from t2ictl.losses.overlap import checked_maps


def linguistic_binding_loss(
    maps_BNYX: Tensor, owner_BN: Tensor, noun_BN: Tensor, mask_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return, for each row, how far modifiers are from their nouns, and minus how far both are from other words.

    ``positive = sum over (n, m) of d(A_n, A_m)`` and
    ``negative = -sum over (n, m) of mean over u outside of (d(A_n, A_u) + d(A_m, A_u)) / 2``, over pairs of a noun and
    one of its modifiers, with ``d`` the symmetric Kullback-Leibler divergence of maps that sum to 1. The negative part
    has no lower bound in theory; here logarithms are held at 1e-10, so ``d <= ln 1e10``.

    Args:
        maps_BNYX: one map for each word, not negative.
        owner_BN: number of the object that a word belongs to; a word of none has a number of its own.
        noun_BN: true where a word is the noun of its object.
        mask_BN: true where a word is real; None if all are. Padded words add nothing and get no gradient.

    Returns:
        positive_B, not negative, and negative_B, not positive; 0 for a row without modifiers.

    Raises:
        ShapeMismatch: maps, numbers, nouns and mask do not fit each other.
        BadSetting: one of them has another type.

    Example:
        >>> import torch
        >>> maps_BNYX = torch.tensor([[[[1.0, 3.0]], [[3.0, 1.0]], [[1.0, 3.0]]]])
        >>> nouns, owners = torch.tensor([[True, False, True]]), torch.tensor([[0, 0, 1]])
        >>> linguistic_binding_loss(maps_BNYX, owners, nouns)  # ln 3 / 2, and minus half of it
        (tensor([0.5493]), tensor([-0.2747]))

    Reference:
        Rassin, Hirsch, Glickman, Ravfogel, Goldberg, Chechik: "Linguistic Binding in Diffusion Models: Enhancing
        Attribute Correspondence through Attention Map Alignment", NeurIPS 2023, arXiv 2306.08877, equations 2 to 4.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    checked_groups(maps_BNYX, owner_BN, noun_BN)
    distance_BNN = symmetric_divergence(shares(maps_BNYX))
    pair_BNN = described(owner_BN, noun_BN, mask_BN)
    outside_BN = mean_over(distance_BNN, apart(owner_BN, mask_BN))
    away_BNN = (outside_BN[:, :, None] + outside_BN[:, None]) / 2
    counts_BNN = pair_BNN.to(distance_BNN.dtype)
    return (counts_BNN * distance_BNN).sum((1, 2)), -(counts_BNN * away_BNN).sum((1, 2))

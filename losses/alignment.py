"""Alignment of maps by cosine, with the strength of nouns: the energy of EBAMA.

Legend: B batch row, N word, Y X map rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.losses.distances import cosine
from t2ictl.losses.groups import apart, checked_groups, described, mean_over
from t2ictl.losses.overlap import checked_maps


def alignment_loss(
    maps_BNYX: Tensor, owner_BN: Tensor, noun_BN: Tensor, mask_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return, for each row, how badly modifiers follow their nouns and nouns keep from others, and how weak nouns are.

    ``binding = sum over (n, m) of (1 - c_nm) - sum over n of max(1, M_n) mean over u outside of (1 - c_nu)`` over nouns
    ``n`` with ``M_n`` modifiers ``m``, and ``c`` the cosine of two maps; ``intensity = -sum over n of max A_n``. A noun
    without modifiers is kept from other words too.

    Args:
        maps_BNYX: one map for each word, in [0, 1].
        owner_BN: number of the object that a word belongs to; a word of none has a number of its own.
        noun_BN: true where a word is the noun of its object.
        mask_BN: true where a word is real; None if all are. Padded words add nothing and get no gradient.

    Returns:
        binding_B, in [-max(nouns, pairs), pairs], and intensity_B, in [-nouns, 0].

    Raises:
        ShapeMismatch: maps, numbers, nouns and mask do not fit each other.
        BadSetting: one of them has another type.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.3, 0.4]], [[0.4, 0.3]], [[0.0, 0.5]]]])
        >>> nouns, owners = torch.tensor([[True, False, True]]), torch.tensor([[0, 0, 1]])
        >>> alignment_loss(maps_BNYX, owners, nouns)  # 0.04 - 0.2 - (0.2 + 0.4) / 2, and -(0.4 + 0.5)
        (tensor([-0.4600]), tensor([-0.9000]))

    Reference:
        Zhang, Yu, Wu: "Object-Conditioned Energy-Based Attention Map Alignment in Text-to-Image Diffusion
        Models", ECCV 2024, arXiv 2404.07389.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    checked_groups(maps_BNYX, owner_BN, noun_BN)
    distance_BNN = 1 - cosine(maps_BNYX)
    pair_BNN = described(owner_BN, noun_BN, mask_BN)
    outside_BN = mean_over(distance_BNN, apart(owner_BN, mask_BN))
    near_B = torch.where(pair_BNN, distance_BNN, 0.0).sum((1, 2))
    times_BN = torch.where(noun_BN & mask_BN, pair_BNN.sum(-1).clamp(min=1), 0)
    away_B = (times_BN * outside_BN).sum(1)
    peak_BN = maps_BNYX.flatten(2).amax(-1) if maps_BNYX.shape[1] else maps_BNYX.sum((2, 3))
    return near_B - away_B, -torch.where(noun_BN & mask_BN, peak_BN, 0.0).sum(1)

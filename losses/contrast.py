"""Contrast of maps: words of one object attract each other and repel those of others. The loss of CONFORM.

Legend: B batch row, N word (of this step, and of the step before where its maps are given too), Y X map rows and
columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.errors import BadSetting
from t2ictl.losses.distances import cosine
from t2ictl.losses.groups import apart, checked_groups, together
from t2ictl.losses.overlap import checked_maps


def contrastive_loss(
    maps_BNYX: Tensor, owner_BN: Tensor, mask_BN: Tensor | None = None, temperature: float = 0.5
) -> Tensor:
    """Return, for each row, the mean contrastive loss of its pairs of words that belong together.

    ``mean over (i, j) of -log(e^(c_ij / t) / (e^(c_ij / t) + sum over k of e^(c_ik / t)))`` over ordered pairs of one
    object, with ``k`` over the words of other objects, ``c`` the cosine of two maps, and ``t`` the temperature.

    Args:
        maps_BNYX: one map for each word, not negative.
        owner_BN: number of the object that a word belongs to.
        mask_BN: true where a word is real; None if all are. Padded words add nothing and get no gradient.
        temperature: above 0; the paper has 0.5.

    Returns:
        loss_B, not negative; 0 for a row in which no two words belong together.

    Raises:
        ShapeMismatch: maps, numbers and mask do not fit each other.
        BadSetting: one of them has another type, or the temperature is not above 0.

    Example:
        >>> maps_BNYX = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> contrastive_loss(maps_BNYX, torch.tensor([[0, 0, 1]]))  # log(1 + e^-2)
        tensor([0.1269])

    Reference:
        Meral, Simsar, Tombari, Yanardag: "CONFORM: Contrast is All You Need For High-Fidelity Text-to-Image Diffusion
        Models", CVPR 2024, arXiv 2312.06059, equation 4.
    """
    if not temperature > 0:
        raise BadSetting(f"The temperature is {temperature!r}.", "Give a number above 0, for example 0.5.")
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    checked_groups(maps_BNYX, owner_BN, torch.zeros_like(owner_BN, dtype=torch.bool))
    logits_BNN = cosine(maps_BNYX) / temperature
    pair_BNN = together(owner_BN, mask_BN)
    others_BN = torch.where(apart(owner_BN, mask_BN), logits_BNN.exp(), 0.0).sum(-1)
    # -log(a / (a + b)) = log(1 + b / a): no difference of large numbers, and 0 where there are no others.
    loss_BNN = torch.log1p(others_BN[:, :, None] * (-logits_BNN).exp())
    return torch.where(pair_BNN, loss_BNN, 0.0).sum((1, 2)) / pair_BNN.sum((1, 2)).clamp(min=1)

"""Binding of modifiers to their nouns by divergence: the loss of SynGen.

A modifier shall look where its noun looks, and neither shall look where words outside of the phrase look.

Legend: B batch row, N M word, P R token of a word (piece), Y X map rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.losses.distances import shares, symmetric_divergence
from t2ictl.losses.groups import apart, checked_groups, described, mean_over, real_pairs
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


def piecewise_binding_loss(
    maps_BPYX: Tensor,
    word_BP: Tensor,
    owner_BP: Tensor,
    noun_BP: Tensor,
    mask_BP: Tensor | None = None,
    *,
    bare_nouns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the published code, in which the farthest tokens of two words count.

    As :func:`linguistic_binding_loss`, with ``d(A_n, A_m)`` the largest over the tokens of both words, and the mean
    over ``u`` taken over all tokens outside of the object, each time of the farthest token of ``n`` or ``m``. Shares
    are held at machine epsilon.

    Args:
        maps_BPYX: one map for each token, not negative.
        word_BP: number of the word that a token belongs to.
        owner_BP: number of the object that its word belongs to; a word of none has a number of its own.
        noun_BP: true where its word is the noun of its object.
        mask_BP: true where a token is real; None if all are.
        bare_nouns: keep nouns without modifiers from other words too; upstream an option that is off.

    Returns:
        positive_B, not negative, and negative_B, not positive.

    Raises:
        ShapeMismatch: maps, numbers, nouns and mask do not fit each other.
        BadSetting: one of them has another type.

    Example:
        >>> maps_BPYX = torch.tensor([[[[1.0, 3.0]], [[3.0, 1.0]], [[1.0, 3.0]]]])
        >>> words, nouns = torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, True]])
        >>> piecewise_binding_loss(maps_BPYX, words, torch.tensor([[0, 0, 1]]), nouns)  # ln 3 / 2, and half of it
        (tensor([0.5493]), tensor([-0.2747]))

    Reference:
        Rassin, Hirsch, Glickman, Ravfogel, Goldberg, Chechik: "Linguistic Binding in Diffusion Models: Enhancing
        Attribute Correspondence through Attention Map Alignment", NeurIPS 2023, arXiv 2306.08877, as published in code.
    """
    maps_BPYX, mask_BP = checked_maps(maps_BPYX, mask_BP)
    checked_groups(maps_BPYX, owner_BP, noun_BP)
    share_BPC = shares(maps_BPYX)
    distance_BPP = symmetric_divergence(share_BPC, floor=torch.finfo(share_BPC.dtype).eps)
    # Each word is represented by its first token; what is asked of a word is the largest over all of its tokens.
    same_BPP = (word_BP[:, :, None] == word_BP[:, None]) & real_pairs(mask_BP)
    place_P = torch.arange(word_BP.shape[1], device=word_BP.device)
    is_first_BP = mask_BP & (torch.where(same_BPP, place_P, word_BP.shape[1]).amin(-1) == place_P)
    reach_BNR = torch.where(same_BPP[..., None], distance_BPP[:, None], 0.0).amax(2)
    farthest_BNM = torch.where(same_BPP[:, None], reach_BNR[:, :, None], 0.0).amax(-1)
    outside_BN = mean_over(reach_BNR, apart(owner_BP, mask_BP))
    words_BNM = is_first_BP[:, :, None] & is_first_BP[:, None]
    pair_BNM = described(owner_BP, noun_BP, mask_BP) & words_BNM
    away_BNM = (outside_BN[:, :, None] + outside_BN[:, None]) / 2
    away_B = torch.where(pair_BNM, away_BNM, 0.0).sum((1, 2))
    if bare_nouns:
        is_bare_BN = noun_BP & is_first_BP & ~pair_BNM.any(-1)
        away_B = away_B + torch.where(is_bare_BN, outside_BN, 0.0).sum(1)
    return torch.where(pair_BNM, farthest_BNM, 0.0).sum((1, 2)), -away_B

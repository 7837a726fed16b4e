"""Conflicts of concepts in self-attention: the losses of Self-Cross guidance and of InitNO.

Positions that belong to one concept should not attend to the places of another. A concept's self-attention map
says where its own places look.

Legend: B batch row, N concept, Y X map rows and columns, P place that is attended to, in reading order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.errors import ShapeMismatch
from t2ictl.losses.distances import shares
from t2ictl.losses.groups import real_pairs
from t2ictl.losses.overlap import checked_maps, overlap_loss, reduced

# Up to so many rows the published code of Self-Cross guidance compares with cross-attention maps as they are.
LARGEST_AS_IT_IS = 16


def gathered(self_BYXP: Tensor, weights_BNYX: Tensor) -> Tensor:
    """Return where the places of each concept look: its weighted mean of self-attention.

    ``S_n = sum over places of w_n A / sum of w_n``.

    Args:
        self_BYXP: attention of each place to each place.
        weights_BNYX: how much a place belongs to a concept, not negative.

    Returns:
        maps_BNYX; zero for a concept without places.

    Raises:
        ShapeMismatch: self-attention and weights are not of one image.

    Example:
        >>> attention = torch.eye(4).view(1, 2, 2, 4)  # each position attends to itself
        >>> gathered(attention, torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]))[0, 0]
        tensor([[0.5000, 0.5000],
                [0.0000, 0.0000]])
    """
    batch, concepts, height, width = weights_BNYX.shape
    if tuple(self_BYXP.shape) != (batch, height, width, height * width):
        raise ShapeMismatch(
            f"`self_BYXP` has shape {tuple(self_BYXP.shape)}, expected {(batch, height, width, height * width)}.",
            "Give self-attention of the same size as the weights.",
        )
    weights_BNP = weights_BNYX.flatten(2).to(self_BYXP.dtype)
    total_BN1 = weights_BNP.sum(-1, keepdim=True)
    mean_BNP = (weights_BNP @ self_BYXP.flatten(1, 2)) / torch.where(total_BN1 > 0, total_BN1, 1.0)
    return mean_BNP.unflatten(2, (height, width))


def self_cross_loss(self_BNYX: Tensor, maps_BNYX: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Return, for each row, how much the places of one concept look where another concept is.

    ``mean over ordered pairs i != j of sum(min(S_i / sum S_i, C_j / sum C_j))`` with ``S`` a concept's self-attention
    map and ``C`` its cross-attention map.

    Args:
        self_BNYX: self-attention map of each concept, from :func:`gathered`.
        maps_BNYX: cross-attention map of each concept, not negative.
        mask_BN: true where a concept is real; None if all are. Padded concepts add nothing and get no gradient.

    Returns:
        loss_B, in [0, 1]; 0 for a row with fewer than two concepts.

    Raises:
        ShapeMismatch: the maps and the mask do not fit each other.
        BadSetting: the mask is not boolean.

    Example:
        >>> maps_BNYX = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> self_cross_loss(maps_BNYX, maps_BNYX), self_cross_loss(maps_BNYX.flip(1), maps_BNYX)
        (tensor([0.]), tensor([1.]))

    Reference:
        Qiu, Wang, Tang: "Self-Cross Diffusion Guidance for Text-to-Image Synthesis of Similar Subjects", CVPR 2025,
        arXiv 2411.18936.
    """
    if self_BNYX.shape != maps_BNYX.shape:
        raise ShapeMismatch(
            f"`self_BNYX` has shape {tuple(self_BNYX.shape)}, expected {tuple(maps_BNYX.shape)} as `maps_BNYX`.",
            "Give both maps of each concept at one size.",
        )
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    self_BNYX, _ = checked_maps(self_BNYX, mask_BN)
    looks_BNP, is_BNP = shares(self_BNYX), shares(maps_BNYX)
    shared_BNN = torch.minimum(looks_BNP[:, :, None], is_BNP[:, None]).sum(-1)
    itself_NN = torch.eye(maps_BNYX.shape[1], dtype=torch.bool, device=maps_BNYX.device)
    pair_BNN = real_pairs(mask_BN) & ~itself_NN
    return torch.where(pair_BNN, shared_BNN, 0.0).sum((1, 2)) / pair_BNN.sum((1, 2)).clamp(min=1)


def published_self_cross_loss(
    self_BYXP: Tensor,
    maps_BNYX: Tensor,
    places_BNYX: Tensor,
    mask_BN: Tensor | None = None,
    *,
    offset: float = 0.0,
) -> Tensor:
    """Return the conflict as the published code of Self-Cross guidance has it.

    ``mean over i != j of sum min(G_j / sum G_j, C_i)`` with ``G_j = sum over places of A_j[p] R_p``: places weigh by
    their cross-attention, which gets a gradient too. ``C_i`` is ``A_i`` as it is up to 16 rows, and ``A_i / sum A_i``
    above.

    Args:
        self_BYXP: attention of each place to each place; the published code smooths each map first.
        maps_BNYX: cross-attention map of each concept, not negative.
        places_BNYX: the places of each concept, boolean.
        mask_BN: true where a concept is real; None if all are.
        offset: added to the sums (1e-4 in updates between steps, 0 in the search for noise).

    Returns:
        loss_B; 0 for a row with fewer than two concepts.

    Raises:
        ShapeMismatch: the maps and the mask do not fit each other.
        BadSetting: the mask is not boolean.

    Example:
        >>> attention, maps_BNYX = torch.eye(2).view(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> published_self_cross_loss(attention, maps_BNYX, maps_BNYX > 0)
        tensor([0.])

    Reference:
        Qiu, Wang, Tang: "Self-Cross Diffusion Guidance for Text-to-Image Synthesis of Similar Subjects", CVPR 2025,
        arXiv 2411.18936, as published in code.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    weights_BNP = torch.where(places_BNYX, maps_BNYX, 0.0).flatten(2)
    looks_BNP = weights_BNP @ self_BYXP.to(maps_BNYX.dtype).flatten(1, 2)
    total_BN1 = looks_BNP.sum(-1, keepdim=True) + offset
    looks_BNP = looks_BNP / torch.where(total_BN1 > 0, total_BN1, 1.0)
    is_BNP = maps_BNYX.flatten(2)
    if maps_BNYX.shape[2] > LARGEST_AS_IT_IS:
        is_BNP = is_BNP / (is_BNP.sum(-1, keepdim=True) + offset).clamp(min=torch.finfo(is_BNP.dtype).tiny)
    shared_BNN = torch.minimum(looks_BNP[:, :, None], is_BNP[:, None]).sum(-1)
    itself_NN = torch.eye(maps_BNYX.shape[1], dtype=torch.bool, device=maps_BNYX.device)
    pair_BNN = real_pairs(mask_BN) & ~itself_NN
    return torch.where(pair_BNN, shared_BNN, 0.0).sum((1, 2)) / pair_BNN.sum((1, 2)).clamp(min=1)


def outside_peak_loss(maps_BNYX: Tensor, places_BNYX: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Return, for each row, the summed largest cells outside of the places of concepts, where they outdo one inside.

    A concept adds ``max over outside of A_n`` if that is more than ``min over inside of A_n``, else 0.

    Args:
        maps_BNYX: one map for each concept.
        places_BNYX: the places of each concept, boolean.
        mask_BN: true where a concept is real; None if all are.

    Returns:
        loss_B, not negative.

    Raises:
        ShapeMismatch: the maps and the mask do not fit each other.
        BadSetting: the mask is not boolean.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.9, 0.5, 0.7]]]])
        >>> outside_peak_loss(maps_BNYX, torch.tensor([[[[True, True, False]]]]))
        tensor([0.7000])

    Reference:
        Guo, Liu, Cui, Li, Yang, Huang: "InitNO: Boosting Text-to-Image Diffusion Models via Initial Noise
        Optimization", CVPR 2024, arXiv 2404.04650, as published in code.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    outside_BN = torch.where(places_BNYX, 0.0, maps_BNYX).amax((-2, -1))
    least_BN = torch.where(places_BNYX, maps_BNYX, 1.0).amin((-2, -1))
    return torch.where((outside_BN > least_BN) & mask_BN, outside_BN, 0.0).sum(1)


def drift_loss(maps_BNYX: Tensor, before_BNYX: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Return, for each row, how far maps are from what they were, as the sum of mean absolute differences.

    Args:
        maps_BNYX: one map for each concept.
        before_BNYX: what they were, for example a running mean.
        mask_BN: true where a concept is real; None if all are.

    Returns:
        loss_B, not negative.

    Raises:
        ShapeMismatch: the maps and the mask do not fit each other.
        BadSetting: the mask is not boolean.

    Example:
        >>> drift_loss(torch.tensor([[[[0.9, 0.5]]]]), torch.tensor([[[[0.5, 0.5]]]]))
        tensor([0.2000])

    Reference:
        Guo, Liu, Cui, Li, Yang, Huang: "InitNO: Boosting Text-to-Image Diffusion Models via Initial Noise
        Optimization", CVPR 2024, arXiv 2404.04650, the alignment of attention, as published in code.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    before_BNYX, _ = checked_maps(before_BNYX, mask_BN)
    return torch.where(mask_BN, (maps_BNYX - before_BNYX).abs().mean((-2, -1)), 0.0).sum(1)


def conflict_loss(
    self_BYXP: Tensor, maps_BNYX: Tensor, mask_BN: Tensor | None = None, *, offset: float = 0.0
) -> Tensor:
    """Return, for each row, how much the strongest places of its concepts attend to the same positions.

    ``mean over pairs of sum(min(S_m, S_n)) / sum(S_m + S_n)`` with ``S_n`` the self-attention of the place where the
    map of concept ``n`` is largest.

    Args:
        self_BYXP: attention of each place to each place.
        maps_BNYX: cross-attention map of each concept; only where it is largest counts, so it gets no gradient.
        mask_BN: true where a concept is real; None if all are.
        offset: added to the sum of both maps (1e-6 in the published code).

    Returns:
        loss_B, in [0, 0.5]; 0 for a row with fewer than two concepts.

    Raises:
        ShapeMismatch: the maps and the mask do not fit each other.
        BadSetting: the mask is not boolean.

    Example:
        >>> attention, maps_BNYX = torch.eye(2).view(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> conflict_loss(attention, maps_BNYX), conflict_loss(attention, maps_BNYX[:, [0, 0]])
        (tensor([0.]), tensor([0.5000]))

    Reference:
        Guo, Liu, Cui, Li, Yang, Huang: "InitNO: Boosting Text-to-Image Diffusion Models via Initial Noise
        Optimization", CVPR 2024, arXiv 2404.04650, the self-attention conflict score.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    flat_BNP = maps_BNYX.detach().flatten(2)
    peaks_BNP = torch.nn.functional.one_hot(flat_BNP.argmax(-1), flat_BNP.shape[-1])
    peaks_BNYX = peaks_BNP.to(maps_BNYX.dtype).view_as(maps_BNYX)
    self_BNYX = gathered(self_BYXP.to(maps_BNYX.dtype), peaks_BNYX)
    if not offset:
        return overlap_loss(self_BNYX, mask_BN, "mean")
    shared_BNN = torch.minimum(self_BNYX[:, :, None], self_BNYX[:, None]).sum((-2, -1))
    mass_BN = self_BNYX.sum((-2, -1))
    first_N, second_N = torch.triu_indices(mass_BN.shape[1], mass_BN.shape[1], 1, device=mass_BN.device)
    share_BP = shared_BNN[:, first_N, second_N] / (mass_BN[:, first_N] + mass_BN[:, second_N] + offset)
    return reduced(share_BP, mask_BN[:, first_N] & mask_BN[:, second_N], "mean")

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
from t2ictl.losses.overlap import checked_maps, overlap_loss


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


def conflict_loss(self_BYXP: Tensor, maps_BNYX: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Return, for each row, how much the strongest places of its concepts attend to the same positions.

    ``mean over pairs of sum(min(S_m, S_n)) / sum(S_m + S_n)`` with ``S_n`` the self-attention of the place where the
    map of concept ``n`` is largest.

    Args:
        self_BYXP: attention of each place to each place.
        maps_BNYX: cross-attention map of each concept; only where it is largest counts, so it gets no gradient.
        mask_BN: true where a concept is real; None if all are.

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
    return overlap_loss(gathered(self_BYXP.to(maps_BNYX.dtype), peaks_BNYX), mask_BN, "mean")

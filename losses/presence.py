"""Presence of concepts in their maps: the loss of Attend-and-Excite.

A concept that no place attends to will not be drawn. The loss reads the most neglected concept only, and in its map
at the strongest cell only. Smooth the maps first: a single cell that stands out would otherwise satisfy the loss.

Legend: B batch row, N concept, Y X map rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.losses.overlap import checked_maps


def presence_loss(maps_BNYX: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Return, for each row, how far its most neglected concept is from full attention at one place.

    ``max over s of 1 - max over cells of A_s``. Where several cells or concepts are tied, they share the gradient
    equally, so the result does not depend on their order. Rows do not influence each other.

    Args:
        maps_BNYX: one map for each concept, in [0, 1].
        mask_BN: true where a concept is real; None if all are. Padded concepts are ignored and get no gradient.

    Returns:
        loss_B, in [0, 1]; 0 for a row without concepts.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or the mask does not fit them.
        BadSetting: the mask is not boolean.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.1, 0.75]], [[0.25, 0.2]]]])
        >>> presence_loss(maps_BNYX)
        tensor([0.7500])

    Reference:
        Chefer, Alaluf, Vinker, Wolf, Cohen-Or: "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
        Diffusion Models", 2023, arXiv 2301.13826, equations 1 and 2.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    if maps_BNYX.shape[1] == 0:
        return maps_BNYX.sum((1, 2, 3))
    missing_BN = 1.0 - maps_BNYX.amax((-2, -1))
    worst_B = torch.where(mask_BN, missing_BN, -torch.inf).amax(1)
    return torch.where(mask_BN.any(1), worst_B, 0.0)

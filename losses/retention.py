"""Retention of concept maps: the second loss of A-STAR.

A concept that had found its place at one denoising step should still look there at the next. The place is a mask, the
thresholded map of the step before (or drawn by the user), and it is a target: no gradient flows into it.

Unlike the overlap of two maps, this value depends on the scale of the maps, because a mask is 0 or 1 at any scale. Raw
probabilities are far below 1, and then the loss acts mostly as a force that raises attention inside the mask.

Legend: B batch row, N concept, Y X map rows and columns.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.errors import ShapeMismatch
from t2ictl.losses.overlap import Reduction, checked_maps, reduced, soft_overlap


def retention_loss(
    maps_BNYX: Tensor, masks_BNYX: Tensor, mask_BN: Tensor | None = None, reduction: Reduction = "sum"
) -> Tensor:
    """Return, for each row, how far its concepts have left their masks.

    ``sum over m of 1 - sum(min(A_m, B_m)) / sum(A_m + B_m)``. The paper sums; a mean makes the size of the gradient
    independent of the number of concepts. A concept whose mask is empty has no place to keep yet (the first step) and
    adds nothing. Rows do not influence each other.

    Args:
        maps_BNYX: one map for each concept, not negative, at most 1.
        masks_BNYX: the place of each concept, boolean, or the covered share of each cell in [0, 1]; detached here.
        mask_BN: true where a concept is real; None if all are. Padded concepts add nothing and get no gradient.
        reduction: "sum" over the concepts, or "mean" over the real concepts of each row that have a mask.

    Returns:
        loss_B, where each concept that counts adds a value in [0.5, 1]; 0 for a row where none counts.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or one of the masks does not fit them.
        BadSetting: the reduction is unknown, or `mask_BN` is not boolean.

    Example:
        >>> import torch
        >>> maps_BNYX = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> masks_BNYX = torch.tensor([[[[True, False]], [[True, False]]]])
        >>> retention_loss(maps_BNYX, masks_BNYX)
        tensor([1.5000])

    Reference:
        Agarwal, Karanam, Joseph, Saxena, Goswami, Srinivasan: "A-STAR: Test-time Attention Segregation and Retention
        for Text-to-image Synthesis", 2023, arXiv 2306.14544, equation 3.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    if masks_BNYX.shape != maps_BNYX.shape:
        raise ShapeMismatch(
            f"`masks_BNYX` has shape {tuple(masks_BNYX.shape)}, expected {tuple(maps_BNYX.shape)}, as `maps_BNYX`.",
            "Resize the masks to the size of the maps.",
        )
    masks_BNYX = masks_BNYX.detach().to(maps_BNYX.dtype).masked_fill(~mask_BN[:, :, None, None], 0.0)
    has_place_BN = (masks_BNYX > 0).any(-1).any(-1)
    return reduced(1.0 - soft_overlap(maps_BNYX, masks_BNYX), has_place_BN, reduction)

"""Maps inside their boxes: the energy of layout guidance, and the losses of BoxDiff.

Legend: B batch row, N concept, Y X map rows and columns, P place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.losses.overlap import checked_maps

# Below this sum a map is empty: no share of it is anywhere.
EMPTY = 1e-30


def layout_energy(maps_BNYX: Tensor, boxes_BNYX: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """Return, for each row, the squared shares of attention that lie outside of the boxes.

    ``sum over n of (1 - sum_box A_n / sum A_n)^2``.

    Args:
        maps_BNYX: one map for each concept, not negative.
        boxes_BNYX: the regions, 1 or true inside.
        mask_BN: true where a concept is real and has a region; None if all are.

    Returns:
        loss_B, in [0, N] for N real concepts; an empty map lies outside wholly, and gets no gradient.

    Raises:
        ShapeMismatch: maps, boxes and mask do not fit each other.
        BadSetting: the mask is not boolean.

    Example:
        >>> layout_energy(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[1.0, 0.0]]]]))  # (3/4)^2
        tensor([0.5625])

    Reference:
        Chen, Laina, Vedaldi: "Training-Free Layout Control with Cross-Attention Guidance", WACV 2024, arXiv 2304.03373,
        equation 2.
    """
    maps_BNYX, boxes_BNYX, mask_BN = _checked(maps_BNYX, boxes_BNYX, mask_BN)
    total_BN = maps_BNYX.sum((-2, -1))
    filled_BN = total_BN > EMPTY
    inside_BN = torch.where(
        filled_BN, (maps_BNYX * boxes_BNYX).sum((-2, -1)) / torch.where(filled_BN, total_BN, 1.0), 0.0
    )
    return torch.where(mask_BN, (1 - inside_BN).square(), 0.0).sum(1)


def box_losses(
    maps_BNYX: Tensor,
    boxes_BNYX: Tensor,
    mask_BN: Tensor | None = None,
    share: float = 0.2,
    corner_cells: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each row, the inner-box, outer-box and corner losses.

    ``inner = sum over n of (1 - mean of the largest cells inside)`` and ``outer = sum over n of the mean of the largest
    cells outside``, where the largest are the given share of the cells of the region, rounded down, at least one.
    ``corner = sum over n of the mean |max_rows A_n - max_rows box_n| + mean |max_columns A_n - max_columns box_n|``:
    seen from above and from the side, a map is as wide and as high as its box. With ``corner_cells`` only cells at most
    that far from an edge of the box are compared, as in the published code; the mean is still over all.

    Args:
        maps_BNYX: one map for each concept, in [0, 1].
        boxes_BNYX: the regions, 1 or true inside.
        mask_BN: true where a concept is real and has a region; None if all are.
        share: of the cells of a region, in (0, 1]; the published code has 0.2.
        corner_cells: how far from an edge cells are compared; None for all.

    Returns:
        inner_B, outer_B and corner_B, in [0, N], [0, N] and [0, 2 N] for N real concepts.

    Raises:
        ShapeMismatch: maps, boxes and mask do not fit each other.
        BadSetting: the mask is not boolean, or the share is out of range.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.9, 0.1], [0.7, 0.3]]]])
        >>> box_losses(maps_BNYX, torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]), share=1.0)  # 1 - 0.8, 0.2, 0.2 + 0.2
        (tensor([0.2000]), tensor([0.2000]), tensor([0.4000]))

    Reference:
        Xie, Li, Huang, Liu, Zhang, Zheng, Shou: "BoxDiff: Text-to-Image Synthesis with Training-Free Box-Constrained
        Diffusion", ICCV 2023, arXiv 2307.10816, equations 3 to 6.
    """
    if not 0 < share <= 1:
        raise BadSetting(f"The share of cells is {share!r}.", "Give a number above 0, at most 1.")
    maps_BNYX, boxes_BNYX, mask_BN = _checked(maps_BNYX, boxes_BNYX, mask_BN)
    inside_BN = _largest(maps_BNYX, boxes_BNYX > 0, share)
    outside_BN = _largest(maps_BNYX, boxes_BNYX <= 0, share)
    corner_BN = sum(
        ((maps_BNYX.amax(side) - profile_BNS).abs() * _near_edges(profile_BNS, corner_cells)).mean(-1)
        for side, profile_BNS in ((side, boxes_BNYX.amax(side)) for side in (-2, -1))
    )
    parts = (1 - inside_BN, outside_BN, torch.as_tensor(corner_BN))
    inner_B, outer_B, corner_B = (torch.where(mask_BN, part, 0.0).sum(1) for part in parts)
    return inner_B, outer_B, corner_B


def _largest(maps_BNYX: Tensor, region_BNYX: Tensor, share: float) -> Tensor:
    """Mean of the largest cells of a region; 0 for a region without cells."""
    inside_BNP = torch.where(region_BNYX, maps_BNYX, -torch.inf).flatten(2).sort(dim=-1, descending=True).values
    cells_BN = region_BNYX.sum((-2, -1))
    taken_BN = (cells_BN * share).floor().clamp(min=1).minimum(cells_BN)
    is_taken_BNP = torch.arange(inside_BNP.shape[-1], device=maps_BNYX.device) < taken_BN[..., None]
    return torch.where(is_taken_BNP, inside_BNP, 0.0).sum(-1) / taken_BN.clamp(min=1)


def _near_edges(profile_BNS: Tensor, cells: int | None) -> Tensor:
    """1 at positions near the first or the one behind the last position of a profile that is 1 inside of a box."""
    if cells is None:
        return torch.ones_like(profile_BNS)
    place_S = torch.arange(profile_BNS.shape[-1], device=profile_BNS.device)
    inside_BNS = profile_BNS > 0
    first_BN1 = torch.where(inside_BNS, place_S, place_S.numel()).amin(-1, keepdim=True)
    stop_BN1 = torch.where(inside_BNS, place_S + 1, 0).amax(-1, keepdim=True)
    is_near_BNS = ((place_S - first_BN1).abs() <= cells) | ((place_S - stop_BN1).abs() <= cells)
    return is_near_BNS.to(profile_BNS)


def _checked(maps_BNYX: Tensor, boxes_BNYX: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    if boxes_BNYX.shape != maps_BNYX.shape:
        raise ShapeMismatch(
            f"`boxes_BNYX` has shape {tuple(boxes_BNYX.shape)}, expected {tuple(maps_BNYX.shape)}.",
            "Give one region for each map, of its size.",
        )
    return maps_BNYX, boxes_BNYX.to(maps_BNYX.dtype), mask_BN

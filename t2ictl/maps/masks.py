"""Regions of attention maps: thresholds, masks made from maps, and masks made from boxes.

Everything works on any leading dimensions at once, stays on the device of its argument, and never waits for it.

Legend: B batch row, N concept, Y X map rows and columns, Q cell of a flattened map, K a split between sorted cells.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from t2ictl.errors import BadSetting, ShapeMismatch

BinarizeMethod = Literal["otsu", "half_max", "top20", "otsu_8bit", "otsu_8bit_peak"]
TOP_SHARE = 0.2
"""Share of the cells that "top20" keeps, and every method on a flat map."""
FLAT_SPREAD = 1e-5
"""Largest relative spread of a flat map: two orders above float32 rounding of a softmax and a 3x3 sum."""
FIXED_POINT_BITS = 40
"""Resolution of sums of map values, which are made in integers; they cannot overflow below 2**23 cells."""


def at_least_float32(maps: Tensor) -> Tensor:
    """Return maps in their own precision, but never in less than float32.

    Args:
        maps: a tensor of any shape and type.

    Returns:
        The same values; the same tensor if nothing has to change.

    Example:
        >>> at_least_float32(torch.ones(1, dtype=torch.float16)).dtype
        torch.float32
    """
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def require_map(maps: Tensor, name: str = "maps") -> None:
    """Raise unless a tensor ends in rows and columns, with at least one cell.

    Args:
        maps: the tensor to check, (..., Y, X).
        name: what to call it in the message.

    Raises:
        ShapeMismatch: it has fewer than two dimensions or no cell.

    Example:
        >>> require_map(torch.zeros(4, 4))
    """
    if maps.dim() < 2 or 0 in maps.shape[-2:]:
        raise ShapeMismatch(
            f"`{name}` has shape {tuple(maps.shape)}, expected (..., Y, X) with at least one cell.",
            "Give maps whose last two dimensions are rows and columns.",
        )


def otsu_threshold(maps: Tensor) -> Tensor:
    """Return the threshold that divides the cells of each map into the two most distinct classes.

    Otsu's criterion, the between-class variance ``w0 w1 (mean1 - mean0)^2``, evaluated at every split between different
    values of the sorted map: exact, with no histogram and no choice of bins. The threshold is the largest value of the
    lower class, so the upper class is ``maps > threshold``. Of equally good splits the lowest is taken.

    Args:
        maps: maps of shape (..., Y, X), finite.

    Returns:
        Thresholds of shape (...); the common value for a map whose cells are all equal.

    Raises:
        ShapeMismatch: a map has no rows and columns.

    Example:
        >>> otsu_threshold(torch.tensor([[0.1, 0.2, 0.8, 0.9]]))
        tensor(0.2000)

    Reference:
        Otsu: "A Threshold Selection Method from Gray-Level Histograms", 1979, IEEE Transactions on Systems, Man, and
        Cybernetics 9(1), equation 18.
    """
    require_map(maps)
    values_Q = at_least_float32(maps.detach()).flatten(-2).sort(-1).values
    cells = values_Q.shape[-1]
    if cells == 1:
        return values_Q[..., 0]
    # Near the best of 4096 splits, neighbors differ by less than float32 can tell. Apple's GPUs have nothing finer.
    exact = torch.float32 if maps.device.type == "mps" else torch.float64
    unit_Q = values_Q.to(exact) - values_Q[..., :1].to(exact)
    spread = unit_Q[..., -1:]
    unit_Q = unit_Q / torch.where(spread > 0, spread, 1.0)
    # Sums of floats depend on their order, which differs between devices and batch sizes; sums of integers do not.
    sums_Q = (unit_Q * 2.0**FIXED_POINT_BITS).round().to(torch.int64).cumsum(-1)
    lower_K = torch.arange(1, cells, device=maps.device, dtype=exact)
    mean_low_K = sums_Q[..., :-1].to(exact) / lower_K
    mean_high_K = (sums_Q[..., -1:] - sums_Q[..., :-1]).to(exact) / (cells - lower_K)
    between_K = lower_K * (cells - lower_K) * ((mean_high_K - mean_low_K) * 2.0**-FIXED_POINT_BITS).square()
    # Equal splits differ by rounding; without the tolerance, which one wins would be an accident. Splits between equal
    # values need no care: along a run of them the criterion is convex, so the best split is at an end of the run.
    best = between_K.amax(-1, keepdim=True) * (1.0 - 64 * torch.finfo(exact).eps)
    return torch.where(between_K >= best, values_Q[..., :-1], torch.inf).amin(-1)


def binarize(maps: Tensor, method: BinarizeMethod = "otsu") -> Tensor:
    """Return the region of high values of each map.

    "otsu": above Otsu's threshold. "half_max": above half of the largest value. "top20": the largest fifth of the
    cells (at least one; ties go to the first in reading order). A map that is flat up to rounding has no region of high
    values, and every method then takes the largest fifth of its cells. The mask carries no gradient.

    Two rules of published code: "otsu_8bit", at or above Otsu's level of a histogram of 256 bins of the range 0 to 1;
    and "otsu_8bit_peak", of these the cells that are connected with the largest one by their sides.

    Args:
        maps: maps of shape (..., Y, X), finite and not negative.
        method: how to choose the region.

    Returns:
        Boolean masks of the same shape, with at least one true cell each.

    Raises:
        ShapeMismatch: a map has no rows and columns.
        BadSetting: the method is unknown.

    Example:
        >>> binarize(torch.tensor([[0.1, 0.2, 0.8, 0.9]])).tolist()
        [[False, False, True, True]]
        >>> binarize(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), "top20").tolist()
        [[False, False, False, True]]
    """
    require_map(maps)
    maps = at_least_float32(maps.detach())
    if method in ("otsu_8bit", "otsu_8bit_peak"):
        region = maps >= otsu_level(maps)[..., None, None] / 255
        return peak_component(maps, region) if method == "otsu_8bit_peak" else region
    high = maps.amax((-2, -1), keepdim=True)
    top = _top_cells(maps)
    if method == "top20":
        return top
    if method == "otsu":
        region = maps > otsu_threshold(maps)[..., None, None]
    elif method == "half_max":
        region = maps > 0.5 * high
    else:
        raise BadSetting(f"The method of binarization is {method!r}.", f"Use one of {get_args(BinarizeMethod)}.")
    spread = high - maps.amin((-2, -1), keepdim=True)
    return torch.where(spread <= FLAT_SPREAD * high.abs(), top, region)


def otsu_level(maps: Tensor) -> Tensor:
    """Return Otsu's threshold of maps in [0, 1] as image libraries have it: of the histogram of 8-bit values.

    The lowest level with the largest between-class variance, where cells up to it are the lower class.

    Args:
        maps: maps of shape (..., Y, X), in [0, 1].

    Returns:
        Levels of shape (...), int64, in [0, 255].

    Example:
        >>> otsu_level(torch.tensor([[0.1, 0.2, 0.8, 0.9]]))  # floor(255 * 0.2)
        tensor(51)
    """
    require_map(maps)
    value_Q = (at_least_float32(maps.detach()) * 255).floor().clamp(0, 255).long().flatten(-2)
    count_L = torch.zeros(*value_Q.shape[:-1], 256, dtype=torch.int64, device=maps.device)
    count_L = count_L.scatter_add(-1, value_Q, torch.ones_like(value_Q))
    level_L = torch.arange(256, device=maps.device)
    below_L, sum_L = count_L.cumsum(-1), (count_L * level_L).cumsum(-1)
    cells, total = below_L[..., -1:], sum_L[..., -1:]
    # w0 w1 (mean1 - mean0)^2 = (w0 S - n S0)^2 / (w0 w1): exact in integers up to the division.
    gap_L = (below_L * total - cells * sum_L).double()
    weights_L = (below_L * (cells - below_L)).double()
    between_L = torch.where(weights_L > 0, gap_L.square() / weights_L.clamp(min=1), 0.0)
    if not bool((between_L > 0).any()):  # one level: all cells are at it
        return value_Q.amin(-1)
    best = between_L.amax(-1, keepdim=True)
    first = torch.where(between_L >= best, level_L, 256).amin(-1)
    return torch.where(best[..., 0] > 0, first, value_Q.amin(-1))


def peak_component(maps: Tensor, region: Tensor) -> Tensor:
    """Return the part of a region that is connected with the largest cell, by sides and not by corners.

    Args:
        maps: maps of shape (..., Y, X).
        region: boolean masks of the same shape.

    Returns:
        Boolean masks of the same shape; of equally large cells the first in reading order counts.

    Example:
        >>> maps = torch.tensor([[0.9, 0.1, 0.5]])
        >>> peak_component(maps, maps > 0.2).tolist()
        [[True, False, False]]
    """
    flat_Q = maps.flatten(-2)
    at_peak = torch.nn.functional.one_hot(flat_Q.argmax(-1), flat_Q.shape[-1]).bool().reshape(maps.shape)
    reached = at_peak & region
    while True:
        grown = reached.clone()
        grown[..., 1:, :] |= reached[..., :-1, :]
        grown[..., :-1, :] |= reached[..., 1:, :]
        grown[..., :, 1:] |= reached[..., :, :-1]
        grown[..., :, :-1] |= reached[..., :, 1:]
        grown &= region
        if torch.equal(grown, reached):
            return reached
        reached = grown


def _top_cells(maps: Tensor) -> Tensor:
    """Return masks of the largest fifth of the cells; a stable sort makes ties go to the first in reading order."""
    flat_Q = maps.flatten(-2)
    kept = max(1, round(TOP_SHARE * flat_Q.shape[-1]))
    order_Q = flat_Q.sort(dim=-1, descending=True, stable=True).indices[..., :kept]
    return torch.zeros_like(flat_Q, dtype=torch.bool).scatter(-1, order_Q, True).reshape(maps.shape)


def box_mask(
    box: tuple[float, float, float, float], height: int, width: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Return the mask of the cells whose centers lie in a box.

    A box so thin that it contains no center takes the cells that its own center lies in: a coarse map loses no box.

    Args:
        box: left, top, right and bottom edge, as fractions of the width and height of the image, in [0, 1].
        height: rows of the map.
        width: columns of the map.
        device: where the mask is made.

    Returns:
        mask_YX, boolean, with at least one true cell.

    Raises:
        BadSetting: an edge is outside [0, 1], the edges are in the wrong order, or the map has no cells.

    Example:
        >>> box_mask((0.0, 0.0, 0.5, 1.0), 1, 4).tolist()
        [[True, True, False, False]]
    """
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise BadSetting(f"The box is {tuple(box)}.", "Give fractions (x0, y0, x1, y1) with x0 < x1 and y0 < y1.")
    if height < 1 or width < 1:
        raise BadSetting(f"The map of a box has {height} rows and {width} columns.", "Give at least one of each.")
    first_x, last_x = _cells_between(box[0], box[2], width)
    first_y, last_y = _cells_between(box[1], box[3], height)
    mask_YX = torch.zeros(height, width, dtype=torch.bool, device=device)
    mask_YX[first_y:last_y, first_x:last_x] = True
    return mask_YX


def _cells_between(low: float, high: float, cells: int) -> tuple[int, int]:
    """Return the half-open range of cells whose centers (i + 0.5) / cells lie in [low, high)."""
    first, last = math.ceil(low * cells - 0.5), math.ceil(high * cells - 0.5)
    if first < last:
        return first, last
    nearest = min(cells - 1, math.floor((low + high) / 2 * cells))
    return nearest, nearest + 1


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Return a mask at another size, where each cell holds the share of its area that the mask covers.

    Args:
        mask: masks of shape (..., Y, X), boolean or in [0, 1].
        height: rows of the result.
        width: columns of the result.

    Returns:
        Coverage of shape (..., height, width) in [0, 1]; float32, or float64 if the mask is float64.

    Raises:
        ShapeMismatch: the mask has no rows and columns.
        BadSetting: the new size has no cells.

    Example:
        >>> resize_mask(torch.tensor([[True, False, True, True]]), 1, 2).tolist()
        [[0.5, 1.0]]
    """
    require_map(mask, "mask")
    if height < 1 or width < 1:
        raise BadSetting(f"The new size of a mask is {height} rows and {width} columns.", "Give at least one of each.")
    coverage = at_least_float32(mask.detach())
    resized = functional.adaptive_avg_pool2d(coverage.reshape(-1, 1, *coverage.shape[-2:]), (height, width))
    return resized.reshape(*coverage.shape[:-2], height, width)

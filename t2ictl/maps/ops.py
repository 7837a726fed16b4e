"""Map arithmetic: from cross-attention to one map for each concept, and what such a map says.

The order of preparation is that of Attend-and-Excite: `token_softmax`, then `concept_maps`, then `smooth` (the last two
commute). These and `binarize` never wait for the device. Regions of maps are in `t2ictl.maps.masks`, offered here too.

Legend: B batch row, N concept, K token of a concept, T text token, S step, Y X map rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.maps.masks import at_least_float32, binarize, box_mask, otsu_threshold, require_map, resize_mask

__all__ = [
    "binarize",
    "box_mask",
    "center_of_mass",
    "concept_maps",
    "gaussian_kernel",
    "head_mean",
    "otsu_threshold",
    "pair_overlap",
    "resize_maps",
    "resize_mask",
    "smooth",
    "smoothed_places",
    "spatial_distribution",
    "token_softmax",
]

KernelName = Literal["attend_and_excite", "gaussian"]
KERNEL_SIGMA = 0.5
"""Width of the smoothing kernel in cells, as in Attend-and-Excite."""


def token_softmax(maps_BYXT: Tensor, first_B: Tensor | int, last_B: Tensor | int, temperature: float = 100.0) -> Tensor:
    """Return how the words of the prompt compete for each position, without the start token that takes most attention.

    ``softmax over tokens first <= t < last of temperature * A``. The width T is kept, so token positions stay what they
    were; tokens outside the range are 0 and get no gradient. The argument is not changed.

    Args:
        maps_BYXT: attention probabilities, mean over layers and heads.
        first_B: first token kept, for all rows or for each; 1 drops the start token of CLIP.
        last_B: one past the last token kept, for all rows or for each (an integer tensor on the device of the maps).
            SD 1.x: T - 1; SD 2.x: the position of the end token, which differs between prompts.
        temperature: factor before the softmax; 100 in Attend-and-Excite.

    Returns:
        maps_BYXT of at least float32; each position sums to 1 over the kept tokens, or to 0 in a row that keeps none.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or last_B is not one number for each row.
        BadSetting: the range of tokens is empty or outside the text.

    Example:
        >>> token_softmax(torch.zeros(1, 1, 1, 4), 1, 3)
        tensor([[[[0.0000, 0.5000, 0.5000, 0.0000]]]])

    Reference:
        Chefer, Alaluf, Vinker, Wolf, Cohen-Or: "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
        Diffusion Models", 2023, arXiv 2301.13826, section 4 and its code.
    """
    _require_token_maps(maps_BYXT)
    rows, tokens = maps_BYXT.shape[0], maps_BYXT.shape[3]
    position_T = torch.arange(tokens, device=maps_BYXT.device)
    for name, bound in (("first_B", first_B), ("last_B", last_B)):
        if isinstance(bound, Tensor) and tuple(bound.shape) != (rows,):
            raise ShapeMismatch(
                f"`{name}` has shape {tuple(bound.shape)}, expected ({rows},).", "Give one position for each row."
            )
    if isinstance(first_B, int) and isinstance(last_B, int) and not 0 <= first_B < last_B <= tokens:
        raise BadSetting(
            f"The range of tokens from {first_B} to {last_B} is not a part of {tokens}.",
            "Give 0 <= first_B < last_B <= T.",
        )
    first, last = (each[:, None] if isinstance(each, Tensor) else each for each in (first_B, last_B))
    keep = (position_T >= first) & (position_T < last)
    keep = keep[:, None, None] if keep.ndim == 2 else keep
    logits_BYXT = at_least_float32(maps_BYXT) * temperature
    # The lowest number instead of -inf: the softmax is the same, and a row that keeps no token has no NaN.
    lowest = torch.finfo(logits_BYXT.dtype).min
    return torch.where(keep, torch.where(keep, logits_BYXT, lowest).softmax(-1), 0.0)


def _require_token_maps(maps_BYXT: Tensor) -> None:
    if maps_BYXT.dim() != 4:
        raise ShapeMismatch(
            f"`maps_BYXT` has shape {tuple(maps_BYXT.shape)}, expected (B, Y, X, T).",
            "Average over layers and heads first.",
        )


def gaussian_kernel(
    name: KernelName = "attend_and_excite",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return a 3x3 smoothing kernel that sums to 1.

    "gaussian" is ``exp(-x^2 / (2 sigma^2))`` with sigma = 0.5 cells: weights .1065 .7870 .1065 along one dimension.
    "attend_and_excite" is what its public code computes, ``exp(-(x / (2 sigma))^2)``: .2119 .5761 .2119, which is a
    Gaussian of sigma = 0.71.

    Args:
        name: which of the two.
        dtype: of the result; that of the maps to be smoothed.
        device: of the result. Make the kernel once and on the device of the maps: moving it waits for the device.

    Returns:
        Kernel of shape (3, 3).

    Raises:
        BadSetting: the name is unknown.

    Example:
        >>> gaussian_kernel("attend_and_excite").sum(0)
        tensor([0.2119, 0.5761, 0.2119])

    Reference:
        Chefer, Alaluf, Vinker, Wolf, Cohen-Or: "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
        Diffusion Models", 2023, arXiv 2301.13826, section 4 and its code.
    """
    if name not in ("attend_and_excite", "gaussian"):
        raise BadSetting(f"The kernel is {name!r}.", 'Use "attend_and_excite" or "gaussian".')
    divisor = (2 * KERNEL_SIGMA) ** 2 if name == "attend_and_excite" else 2 * KERNEL_SIGMA**2
    # The density in float32, normalized in two dimensions: the published weights to the last bit. In float64 one of
    # them would differ by 3e-8, and a refined run of tens of updates grows that to 1e-5.
    offset = torch.tensor([-1.0, 0.0, 1.0])
    line = torch.exp(-(offset**2) / divisor) / (KERNEL_SIGMA * math.sqrt(2 * math.pi))
    weights = torch.outer(line, line)
    return (weights / weights.sum()).to(device=device, dtype=dtype)


def smooth(maps: Tensor, kernel: Tensor) -> Tensor:
    """Return maps convolved with a 3x3 kernel, reflected at the borders.

    A sum of nine shifted maps and no convolution of the library: that would round float32 to TF32 on recent GPUs.

    Args:
        maps: maps of shape (..., Y, X). A dimension of one cell cannot be reflected and is repeated.
        kernel: weights of shape (3, 3), best on the device of the maps.

    Returns:
        Maps of the same shape, of at least float32.

    Raises:
        ShapeMismatch: a map has no rows and columns, or the kernel is not 3x3.

    Example:
        >>> smooth(torch.tensor([[0.0, 1.0, 0.0]]), gaussian_kernel("gaussian"))
        tensor([[0.2130, 0.7870, 0.2130]])
    """
    require_map(maps)
    if tuple(kernel.shape) != (3, 3):
        raise ShapeMismatch(f"`kernel` has shape {tuple(kernel.shape)}, expected (3, 3).", "Use gaussian_kernel(...).")
    maps = at_least_float32(maps)
    padded = _reflected(_reflected(maps, -2), -1)
    return (padded.unfold(-2, 3, 1).unfold(-2, 3, 1) * kernel.to(maps)).sum((-2, -1))


def smoothed_places(self_BYXP: Tensor, name: KernelName = "attend_and_excite") -> Tensor:
    """Return self-attention in which the map of every place is smoothed.

    Args:
        self_BYXP: attention of each place to each place, the last index in reading order.
        name: the kernel.

    Returns:
        self_BYXP of at least float32.

    Example:
        >>> smoothed_places(torch.eye(3).view(1, 1, 3, 3))[0, 0, 1]
        tensor([0.4239, 0.5761, 0.4239])
    """
    height, width = self_BYXP.shape[1:3]
    maps_BYXYX = self_BYXP.unflatten(-1, (height, width))
    return smooth(maps_BYXYX, gaussian_kernel(name, device=self_BYXP.device)).flatten(-2)


def _reflected(maps: Tensor, dim: int) -> Tensor:
    """Return maps with one cell more at either end of a dimension: the second and the second last, where they exist."""
    cells = maps.shape[dim]
    inner = 1 if cells > 1 else 0
    return torch.cat([maps.narrow(dim, inner, 1), maps, maps.narrow(dim, cells - 1 - inner, 1)], dim)


def resize_maps(maps_BNYX: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps at another size, interpolated bilinearly; maps that have it already are returned as they are.

    Args:
        maps_BNYX: the maps.
        size: rows and columns of the result.

    Returns:
        Maps of shape (B, N, *size).

    Example:
        >>> resize_maps(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist()
        [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    if tuple(maps_BNYX.shape[-2:]) == tuple(size):
        return maps_BNYX
    if not maps_BNYX.numel():  # maps of no word
        return maps_BNYX.new_zeros(*maps_BNYX.shape[:-2], *size)
    return functional.interpolate(maps_BNYX, size=size, mode="bilinear", align_corners=False)


def head_mean(maps: Mapping[str, Tensor], heads: Mapping[str, int]) -> Tensor:
    """Return the mean over the heads of several blocks of layers; smaller maps are brought to the size of the largest.

    Args:
        maps: for each block maps_SYX, the mean over its heads.
        heads: number of heads of each block.

    Returns:
        maps_SYX of the largest size.

    Example:
        >>> fine, coarse = torch.zeros(1, 2, 2), torch.ones(1, 1, 1)
        >>> head_mean({"up": fine, "mid": coarse}, {"up": 3, "mid": 1}).tolist()
        [[[0.25, 0.25], [0.25, 0.25]]]
    """
    total = sum(heads[name] for name in maps)
    size = max((maps_SYX.shape[-2], maps_SYX.shape[-1]) for maps_SYX in maps.values())
    shares = [resize_maps(maps_SYX[None], size)[0] * (heads[name] / total) for name, maps_SYX in maps.items()]
    return torch.stack(shares).sum(dim=0)


def concept_maps(
    maps_BYXT: Tensor, index_BNK: Tensor, index_mask_BNK: Tensor, share_BNK: Tensor | None = None
) -> Tensor:
    """Return one map for each concept, the mean of the maps of its tokens.

    Args:
        maps_BYXT: one map for each token.
        index_BNK: token positions of each concept, int64, padded with any number.
        index_mask_BNK: boolean, true where a position is real; both on the device of the maps.
        share_BNK: share of each position in the mean, 0 where it is not real; None: all that are real have the same.

    Returns:
        maps_BNYX of at least float32; 0 for a concept without tokens.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or the positions and their mask do not fit them or each other.

    Example:
        >>> maps_BYXT = torch.tensor([[[[0.0, 0.2, 0.4, 0.6]]]])
        >>> index_BNK = torch.tensor([[[1, 0], [2, 3]]])
        >>> concept_maps(maps_BYXT, index_BNK, torch.tensor([[[True, False], [True, True]]])).flatten()
        tensor([0.2000, 0.5000])
    """
    _require_token_maps(maps_BYXT)
    rows, height, width, _ = maps_BYXT.shape
    if index_BNK.dim() != 3 or index_BNK.shape[0] != rows or index_mask_BNK.shape != index_BNK.shape:
        raise ShapeMismatch(
            f"`index_BNK` has shape {tuple(index_BNK.shape)} and `index_mask_BNK` {tuple(index_mask_BNK.shape)}, "
            f"expected ({rows}, N, K) for both.",
            "Pad every row to the same number of concepts, and every concept to the same number of tokens.",
        )
    index_BYXT = index_BNK.masked_fill(~index_mask_BNK, 0).flatten(1)[:, None, None].expand(-1, height, width, -1)
    maps_BYXNK = at_least_float32(maps_BYXT).gather(3, index_BYXT).reshape(rows, height, width, *index_BNK.shape[1:])
    maps_BYXNK = maps_BYXNK.masked_fill(~index_mask_BNK[:, None, None], 0.0)
    if share_BNK is not None:
        return (maps_BYXNK * share_BNK[:, None, None]).sum(-1).permute(0, 3, 1, 2)
    count_BN = index_mask_BNK.sum(-1).clamp(min=1)
    maps_BYXN = maps_BYXNK.sum(-1) / count_BN[:, None, None]
    return maps_BYXN.permute(0, 3, 1, 2)


def center_of_mass(maps: Tensor) -> Tensor:
    """Return where the mass of each map is centered.

    Args:
        maps: maps of shape (..., Y, X), not negative.

    Returns:
        Centers of shape (..., 2): x as a fraction of the width, then y as a fraction of the height; the middle for an
        empty map.

    Raises:
        ShapeMismatch: a map has no rows and columns.

    Example:
        >>> center_of_mass(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
        tensor([0.8750, 0.5000])
    """
    share = spatial_distribution(maps)
    height, width = share.shape[-2:]
    center_X = (torch.arange(width, device=share.device, dtype=share.dtype) + 0.5) / width
    center_Y = (torch.arange(height, device=share.device, dtype=share.dtype) + 0.5) / height
    return torch.stack([(share.sum(-2) * center_X).sum(-1), (share.sum(-1) * center_Y).sum(-1)], -1)


def spatial_distribution(maps: Tensor) -> Tensor:
    """Return each map divided by its sum, which makes it a distribution over positions.

    Args:
        maps: maps of shape (..., Y, X), not negative.

    Returns:
        Maps of the same shape, of at least float32, that sum to 1; an empty map becomes an even one.

    Raises:
        ShapeMismatch: a map has no rows and columns.

    Example:
        >>> spatial_distribution(torch.tensor([[1.0, 3.0]])).tolist()
        [[0.25, 0.75]]
    """
    require_map(maps)
    maps = at_least_float32(maps)
    total = maps.sum((-2, -1), keepdim=True)
    filled = total > torch.finfo(maps.dtype).tiny
    even = 1.0 / (maps.shape[-2] * maps.shape[-1])
    return torch.where(filled, maps / torch.where(filled, total, 1.0), even)


def pair_overlap(maps: Tensor) -> Tensor:
    """Return how much each two maps overlap, as a table.

    ``sum(min(a, b)) / sum(a + b)``, half of a soft Dice coefficient: 0.5 for equal maps, 0 for disjoint or empty ones.

    Args:
        maps: maps of shape (..., N, Y, X), not negative.

    Returns:
        Overlaps of shape (..., N, N) in [0, 0.5], symmetric.

    Raises:
        ShapeMismatch: the maps have fewer than three dimensions or no cells.

    Example:
        >>> pair_overlap(torch.tensor([[[1.0, 3.0]], [[3.0, 1.0]]])).tolist()
        [[0.5, 0.25], [0.25, 0.5]]

    Reference:
        Agarwal, Karanam, Joseph, Saxena, Goswami, Srinivasan: "A-STAR: Test-time Attention Segregation and Retention
        for Text-to-image Synthesis", 2023, arXiv 2306.14544, the fraction in equations 2 and 3.
    """
    require_map(maps)
    if maps.dim() < 3:
        raise ShapeMismatch(f"`maps` has shape {tuple(maps.shape)}, expected (..., N, Y, X).", "Stack the maps.")
    maps = at_least_float32(maps)
    shared = torch.minimum(maps.unsqueeze(-3), maps.unsqueeze(-4)).sum((-2, -1))
    mass = maps.sum((-2, -1))
    total = mass.unsqueeze(-1) + mass.unsqueeze(-2)
    return torch.where(total > 0, shared / torch.where(total > 0, total, 1.0), 0.0)

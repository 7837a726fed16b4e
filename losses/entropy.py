"""Entropy of concept maps: the loss of token merging that gathers each concept at one place.

A map is read as a distribution over its places. Its entropy in nats is 0 where all mass is in one cell and ln(Y X)
where all cells are equal, so a share of the largest value means the same at every resolution; a bare threshold does
not.

Legend: B batch row, N concept, Y X map rows and columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from t2ictl.losses.overlap import checked_maps, reduced

# Ours: the sum below which a map is empty. Far below the smallest number of float16, 6e-8, and far enough above the
# smallest of float32 that the largest slope, 88 over the sum, is a finite number there.
EMPTY = 1e-30
# Ours: the range, as a part of the largest cell, below which a map is constant. Some ten roundings of float32.
FLAT = 1e-6
# Official code of token merging: added to p inside the logarithm.
OFFSET = 1e-5


def entropy_loss(maps_BNYX: Tensor, mask_BN: Tensor | None = None, stretch: bool = False) -> Tensor:
    """Return, for each row, the summed entropy of its concept maps, in nats.

    ``sum over n of -sum(p_n log p_n)`` over rows and columns, with ``p_n = A_n / sum(A_n)`` and ``0 log 0 = 0``.
    Multiplying a map by a number changes nothing. With `stretch` it is ``-sum(p log(p + 1e-5))``, with
    ``p = S / sum(S)`` and ``S = (A - min A) / (max A - min A)``. Rows do not influence each other.

    A map without mass, and with `stretch` a constant one, has no distribution of its own. It counts as uniform, the
    largest value, because a concept that nothing attends to is nowhere; it gets no gradient. For a cell of 0, log is
    held at the log of the smallest normal number, so its slope is steep but finite.

    Args:
        maps_BNYX: one map for each concept, not negative; a negative cell counts as 0 and gets no gradient. Half
            precision is computed in float32.
        mask_BN: true where a concept is real; None if all are. Padded concepts add nothing and get no gradient.
        stretch: the preparation of the official code, which has no rule for a constant map and gives NaN there.

    Returns:
        loss_B, in [0, N ln(Y X)] for N real concepts, up to rounding, and with `stretch` down to -1e-5 N; 0 for a row
        without concepts. The official code minimises twice this value.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or the mask does not fit them.
        BadSetting: the mask is not boolean.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]], [[0.2, 0.2], [0.0, 0.0]]]])
        >>> entropy_loss(maps_BNYX)  # ln 4 + ln 2
        tensor([2.0794])

    Reference:
        Hu et al.: "Token Merging for Training-Free Semantic Binding in Text-to-Image Synthesis", NeurIPS 2024, arXiv
        2411.07132, the entropy loss.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    return reduced(_entropy_BN(maps_BNYX, stretch), mask_BN, "sum")


def mean_entropy_share(maps_BNYX: Tensor, mask_BN: Tensor | None = None, stretch: bool = False) -> Tensor:
    """Return, for each row, the mean entropy of its concept maps as a share of the largest possible one.

    ``entropy_loss / (N ln(Y X))`` for N real concepts. The official thresholds, divided like this, are for two
    concepts on 32 x 32 places 0.866, 0.830, 0.793, 0.757, 0.739, 0.721 and 0.703 in the first seven steps. They were
    made for stretched maps of probabilities that had gone through one more softmax over the tokens.

    Args:
        maps_BNYX: one map for each concept, as for :func:`entropy_loss`.
        mask_BN: true where a concept is real; None if all are.
        stretch: as for :func:`entropy_loss`.

    Returns:
        share_B, in [0, 1] up to rounding, and with `stretch` down to -1e-5; 0 for a row without concepts, and for
        maps of a single cell, where nothing can be spread.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or the mask does not fit them.
        BadSetting: the mask is not boolean.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]], [[0.2, 0.2], [0.0, 0.0]]]])
        >>> mean_entropy_share(maps_BNYX)
        tensor([0.7500])

    Reference:
        Hu et al.: "Token Merging for Training-Free Semantic Binding in Text-to-Image Synthesis", NeurIPS 2024, arXiv
        2411.07132, the entropy loss; the thresholds are those of the official code, divided by 4 ln 1024.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    cells = maps_BNYX.shape[2] * maps_BNYX.shape[3]
    if cells == 1:
        return (maps_BNYX * 0.0).sum((1, 2, 3))
    return reduced(_entropy_BN(maps_BNYX, stretch), mask_BN, "mean") / math.log(cells)


def _entropy_BN(maps_BNYX: Tensor, stretch: bool) -> Tensor:
    map_BNYX = maps_BNYX.clamp(min=0.0)
    top_BN11 = map_BNYX.amax((-2, -1), keepdim=True)
    if stretch:
        # The division by the range cancels in p.
        map_BNYX = map_BNYX - map_BNYX.amin((-2, -1), keepdim=True)
    total_BN11 = map_BNYX.sum((-2, -1), keepdim=True)
    empty_BN11 = total_BN11 <= EMPTY
    if stretch:
        empty_BN11 = empty_BN11 | (map_BNYX.amax((-2, -1), keepdim=True) <= FLAT * top_BN11)
    # The division happens where it is defined only: a 0/0 that is selected away afterwards still has a NaN gradient.
    p_BNYX = map_BNYX / torch.where(empty_BN11, 1.0, total_BN11)
    p_BNYX = torch.where(empty_BN11, 1.0 / (maps_BNYX.shape[2] * maps_BNYX.shape[3]), p_BNYX)
    log_BNYX = (p_BNYX + OFFSET).log() if stretch else p_BNYX.clamp(min=torch.finfo(p_BNYX.dtype).tiny).log()
    return -(p_BNYX * log_BNYX).sum((-2, -1))

"""Questions that the attention maps of words answer: where a word acts, which word acts where, what acts at a position.

:class:`t2ictl.AttentionRecord` asks them of what was recorded; here they are asked of maps.

Legend: ``N`` word, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ictl.errors import BadSetting
from t2ictl.maps.masks import binarize

__all__ = ["RankedWord", "rank_words", "segment_maps", "threshold_mask"]


@dataclass(frozen=True, kw_only=True)
class RankedWord:
    """What a word gets at a position of the image.

    Args:
        word: the word.
        attention: share of the position's attention that goes to the word, in [0, 1].
        lift: that share over the word's mean over the image; above 1 the word acts here more than elsewhere.
    """

    word: str
    attention: float
    lift: float


def rank_words(words: Sequence[str], maps_NYX: Tensor, x: float, y: float) -> tuple[RankedWord, ...]:
    """Rank words by the attention that they get at a position of the image.

    Args:
        words: the words.
        maps_NYX: the map of each word.
        x: from the left edge, fraction of the width, in [0, 1].
        y: from the upper edge, fraction of the height, in [0, 1].

    Returns:
        The words by falling attention.

    Raises:
        BadSetting: the position is outside of the image.

    Example:
        >>> found = rank_words(["cat", "dog"], torch.tensor([[[0.1, 0.3]], [[0.2, 0.2]]]), x=0.9, y=0.5)
        >>> [(each.word, round(each.attention, 2), round(each.lift, 2)) for each in found]
        [('cat', 0.3, 1.5), ('dog', 0.2, 1.0)]
    """
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise BadSetting(f"The position ({x:g}, {y:g}) is outside of the image.", "Use fractions from 0 to 1.")
    height, width = maps_NYX.shape[-2:]
    row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
    here_N, mean_N = maps_NYX[:, row, column].tolist(), maps_NYX.mean(dim=(1, 2)).tolist()
    found = [
        RankedWord(word=word, attention=here, lift=here / mean if mean > 0 else 0.0)
        for word, here, mean in zip(words, here_N, mean_N, strict=True)
    ]
    return tuple(sorted(found, key=lambda each: -each.attention))


def threshold_mask(map_YX: Tensor, threshold: float | str = "otsu") -> Tensor:
    """Return the region of an attention map where its word acts.

    Args:
        map_YX: the map.
        threshold: a share of the map's maximum, in (0, 1); or ``"otsu"``, which divides the values into two classes.

    Returns:
        ``mask_YX``, boolean.

    Raises:
        BadSetting: the threshold is out of range.

    Example:
        >>> threshold_mask(torch.tensor([[0.1, 0.3, 0.8]]), 0.3).tolist()
        [[False, True, True]]
    """
    if threshold == "otsu":
        return binarize(map_YX, "otsu").bool()
    if isinstance(threshold, str) or not 0 < threshold < 1:
        raise BadSetting(f"The threshold {threshold!r} is neither 'otsu' nor between 0 and 1.", "For example 0.5.")
    return map_YX >= threshold * map_YX.max()


def segment_maps(maps_NYX: Tensor, background: float | None = None) -> Tensor:
    """Return for each position the map that is strongest there.

    Maps are divided by their means first: a word with much attention everywhere does not win everywhere.

    Args:
        maps_NYX: the maps that compete, at least one.
        background: a position where no map has this many times its mean belongs to none; None: every position has one.

    Returns:
        ``number_YX``, the number of the map, -1 for none.

    Example:
        >>> segment_maps(torch.tensor([[[0.1, 0.3]], [[0.8, 0.8]]])).tolist()
        [[1, 0]]
    """
    lift_NYX = maps_NYX / maps_NYX.mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    best = lift_NYX.max(dim=0)
    nobody = torch.full_like(best.indices, -1)
    return best.indices if background is None else torch.where(best.values >= background, best.indices, nobody)

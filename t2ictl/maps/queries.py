"""Questions to a record of word maps: where a word acts, as a mask; which word acts where; and what acts at a place.

Legend: ``Y`` ``X`` map rows and columns, ``N`` word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ictl.errors import BadSetting
from t2ictl.maps.masks import binarize
from t2ictl.maps.record import AttentionRecord

__all__ = ["POINTING_LAYERS", "RankedWord", "segmentation", "word_mask", "words_at"]


POINTING_LAYERS = ("down.*", "up.*")
"""Layers whose maps together find objects best: all cross-attention but the middle block's, as in DAAM. The layers of a
record by default are fewer and cheaper, and nouns point worse there (docs/benchmarks.md)."""


@dataclass(frozen=True, kw_only=True)
class RankedWord:
    """What a word gets at a place of the image.

    Args:
        word: the word.
        mass: share of the place's attention that goes to it, in [0, 1].
        lift: that share over the word's mean over the image: above 1 it acts here more than elsewhere.
    """

    word: str
    mass: float
    lift: float


def words_at(
    record: AttentionRecord,
    x: float,
    y: float,
    *,
    words: Sequence[str] = (),
    image: int = 0,
    place: str | None = None,
    step: int | None = None,
) -> tuple[RankedWord, ...]:
    """Point at a place of the image, and get its words, the one that acts there most first.

    Args:
        record: of a session.
        x: from the left edge, fraction of the width, in [0, 1].
        y: from the upper edge, fraction of the height, in [0, 1].
        words: whom to ask about; empty: all recorded words.
        image: which image of the call.
        place: layer group; None for all.
        step: one evaluation; None for the mean over all.

    Returns:
        The words by falling mass.

    Raises:
        BadSetting: if the place is outside of the image.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes", device="cpu")
        >>> result = t2ictl.generate(pipe, "a red circle", seed=1, steps=4, record=True)
        >>> sorted(each.word for each in words_at(result.record, 0.5, 0.5))
        ['a', 'circle', 'red']
    """
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise BadSetting(f"The place ({x:g}, {y:g}) is outside of the image.", "Give fractions from 0 to 1.")
    found = []
    for word in words or record.names(image):
        map_YX = record.map(word, image=image, place=place, step=step)
        row, column = (min(int(at * size), size - 1) for at, size in zip((y, x), map_YX.shape, strict=True))
        mass, mean = float(map_YX[row, column]), float(map_YX.mean())
        found.append(RankedWord(word=word, mass=mass, lift=mass / mean if mean > 0 else 0.0))
    return tuple(sorted(found, key=lambda each: -each.mass))


def word_mask(
    record: AttentionRecord,
    word: str,
    threshold: float | str = "otsu",
    *,
    image: int = 0,
    place: str | None = None,
    step: int | None = None,
) -> Tensor:
    """Give where a word acts.

    Args:
        record: of a session.
        word: a word or phrase.
        threshold: a share of the map's maximum, in (0, 1); or ``"otsu"``, which parts the values into two classes.
        image: which image of the call.
        place: layer group; None for all.
        step: one evaluation; None for the mean over all.

    Returns:
        ``mask_YX``, boolean.

    Raises:
        BadSetting: for a threshold out of range.
    """
    map_YX = record.map(word, image=image, place=place, step=step)
    if threshold == "otsu":
        return binarize(map_YX, "otsu").bool()
    if isinstance(threshold, str) or not 0 < threshold < 1:
        raise BadSetting(f"The threshold {threshold!r} is neither 'otsu' nor between 0 and 1.", "For example 0.5.")
    return map_YX >= threshold * map_YX.max()


def segmentation(
    record: AttentionRecord,
    words: Sequence[str],
    *,
    background: float | None = None,
    image: int = 0,
    place: str | None = None,
    step: int | None = None,
) -> Tensor:
    """Give for each place the word that acts there most.

    Maps are divided by their means first: a word with much attention everywhere does not win everywhere.

    Args:
        record: of a session.
        words: the words that compete.
        background: a place where no word has this many times its mean belongs to none; None: every place has a word.
        image: which image of the call.
        place: layer group; None for all.
        step: one evaluation; None for the mean over all.

    Returns:
        ``word_YX``, the number of the word in ``words``, -1 for none.

    Raises:
        BadSetting: if no words are given.
    """
    if not words:
        raise BadSetting("No words compete.", "Name at least one.")
    maps_NYX = torch.stack([record.map(word, image=image, place=place, step=step) for word in words])
    lift_NYX = maps_NYX / maps_NYX.mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    best = lift_NYX.max(dim=0)
    nobody = torch.full_like(best.indices, -1)
    return best.indices if background is None else torch.where(best.values >= background, best.indices, nobody)

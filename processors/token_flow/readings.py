"""Readings: one way of encoding a text each, and all that an analysis needs of them in few passes of the encoder.

Legend: ``B`` text, ``K`` position of the text row, ``J`` position that is read, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ictl.families.text_masking import seen_without_pairs, visible_except
from t2ictl.families.text_states import Encode

__all__ = ["EncodedVariant", "Row", "read_all"]

Positions = tuple[tuple[int, ...], ...]
# Texts of one encoder pass: 64 rows of SDXL's encoders are under 200 MB.
AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class EncodedVariant:
    """A text, and what the encoder must not see of it.

    Args:
        text: as the user would write it.
        hidden: for each encoder the hidden positions; empty: all is seen.
        readers: for each encoder the positions from which they are hidden; empty: from all (and so from what reads
            those, too).
        depth: share of the encoder's layers that read.

    Example:
        >>> EncodedVariant(text="a red circle", hidden=((2,),)).is_plain
        False
    """

    text: str
    hidden: Positions = ()
    readers: Positions = ()
    depth: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether all of the text is seen."""
        return not any(self.hidden)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Text states of one image.

    Args:
        states: ``states_KC``.
        pooled: ``pooled_C``, or None for models without.
        unseen: positions that cross-attention does not see.
    """

    states: Tensor
    pooled: Tensor | None = None
    unseen: tuple[int, ...] = ()


def read_all(readings: Iterable[EncodedVariant], encode: Encode, length: int) -> dict[EncodedVariant, Row]:
    """Encode all readings, each once.

    Whole texts go without a mask, exactly as the pipeline encodes them; those with hidden words follow in one batch,
    since masks of different texts do not touch each other.

    Args:
        readings: what to encode.
        encode: encodes as the pipeline does.
        length: positions of the row.

    Returns:
        The states by reading.
    """
    wanted = list(dict.fromkeys(readings))
    plain = [each for each in wanted if each.is_plain]
    masked = [each for each in wanted if not each.is_plain and not any(each.readers)]
    paired = [each for each in wanted if not each.is_plain and any(each.readers)]
    found: dict[EncodedVariant, Row] = {}
    for group in (plain, masked, paired):
        for depth in dict.fromkeys(each.depth for each in group):
            own = [each for each in group if each.depth == depth]
            for start in range(0, len(own), AT_ONCE):
                part = own[start : start + AT_ONCE]
                found.update(zip(part, _read(part, encode, length), strict=True))
    return found


def _read(readings: Sequence[EncodedVariant], encode: Encode, length: int) -> list[Row]:
    seen = None if readings[0].is_plain else _seen(readings, length)
    states = encode([each.text for each in readings], seen=seen, depth=readings[0].depth)
    pooled = [None] * len(readings) if states.pooled is None else list(states.pooled)
    return [Row(states=rows_KC, pooled=own) for rows_KC, own in zip(states.embeds, pooled, strict=True)]


def _seen(readings: Sequence[EncodedVariant], length: int) -> list[Tensor]:
    by_encoder = list(zip(*(each.hidden for each in readings), strict=True))
    if not any(readings[0].readers):
        return [visible_except(hidden, length) for hidden in by_encoder]
    readers = list(zip(*(each.readers for each in readings), strict=True))
    return [seen_without_pairs(*both, length) for both in zip(readers, by_encoder, strict=True)]


def stacked(rows: Sequence[Row], dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Put rows of images into a batch.

    Args:
        rows: one an image.
        dtype: precision of the states.

    Returns:
        ``states_BKC``, ``pooled_BC`` or None, and ``weight_BK``, 0 at unseen positions, or None where all are seen.
    """
    states_BKC = torch.stack([each.states for each in rows]).to(dtype)
    pooled = [each.pooled for each in rows if each.pooled is not None]
    weight_BK = torch.ones(states_BKC.shape[:2])
    for number, each in enumerate(rows):
        weight_BK[number, list(each.unseen)] = 0.0
    has_unseen = any(each.unseen for each in rows)
    return states_BKC, torch.stack(pooled).to(dtype) if pooled else None, weight_BK if has_unseen else None


def bare(reading: EncodedVariant) -> EncodedVariant:
    """Return a reading that hides nothing in its one form."""
    return EncodedVariant(text=reading.text, depth=reading.depth) if reading.is_plain else reading


def by_reading(found: Mapping[EncodedVariant, Row], reading: EncodedVariant) -> Row:
    """Look a reading up; one that hides nothing is the plain one, however it was written."""
    return found[bare(reading)]

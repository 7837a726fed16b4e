"""The screen: what one item's rows have read of another, from encodings alone, in seconds and without an image.

Legend: ``K`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ictl.families.text_states import Encode
from t2ictl.processors.token_flow.conditions import EMPTY, Conditions, Patch
from t2ictl.processors.token_flow.items import ResolvedItem
from t2ictl.processors.token_flow.readings import EncodedVariant, Row, by_reading, read_all

__all__ = ["ScreenCell", "TokenScreen", "screen", "screen_tokens"]

ENDS, POOLED = "end and padding", "pooled"


@dataclass(frozen=True, kw_only=True)
class ScreenCell:
    """What a target has read of an item.

    Args:
        target: an item, ``"end and padding"`` or ``"pooled"``.
        source: the item that was hidden.
        is_possible: False where the encoder never lets the target read the source.
        total: how far the target's rows move when the encoder cannot see the source, over their distance from the
            empty prompt's; 0: it has read nothing of it, 1: as if the target itself were gone.
        cosine: the same as ``1 - cos``, mean over the rows.
        direct: as ``total``, where only the target itself does not see the source; None for pooled states.
        swapped: as ``total``, with the source's swap in its place: what the choice of this word does, where ``total``
            is what its being there does; None without a swap, and for what is no item.
        control: the mean of ``total`` with other words of the prompt hidden in the source's place.
        z: ``(total - control) / standard deviation`` over those; None with fewer than three of them.
    """

    target: str
    source: str
    is_possible: bool
    total: float
    cosine: float
    direct: float | None
    swapped: float | None = None
    control: float | None
    z: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TokenScreen:
    """What an item's other tokens and the ends have read of one of its tokens.

    Args:
        token: position.
        on_item: as ``total`` of a cell, on the item's other rows; None where it has no other.
        on_ends: on end and padding.
    """

    token: int
    on_item: float | None
    on_ends: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return asdict(self)


def screen(conditions: Conditions, items: Sequence[ResolvedItem], encode: Encode) -> tuple[ScreenCell, ...]:
    """Measure what each item, the ends and the pooled states have read of each item.

    ``E[i <- j] = mean over rows of i |h(full) - h(without j)| / mean over the same rows |h(full) - h(empty)|``.
    Controls hide other words in the place of ``j``, as many tokens, which belong to no item.

    Args:
        conditions: of the prompt.
        items: at least two.
        encode: encodes as the pipeline does.

    Returns:
        One cell a target and source.
    """
    length = len(conditions.prompt.encodings[0].ids)
    targets = {each.name: each.rows for each in items} | {ENDS: conditions.special}
    is_causal = items[0].is_causal
    fillers = {each.name: _fillers(conditions, items, len(each.rows)) for each in items}
    pairs = [(name, each) for each in items for name in targets if name != each.name]
    wanted = [conditions.full, EMPTY, *(conditions.without(each) for each in items)]
    wanted += [conditions.without_tokens(tokens) for own in fillers.values() for tokens in own]
    wanted += [_directly(conditions, targets[name], each) for name, each in pairs]
    by_name = {each.name: each for each in items}
    swaps = {(name, each.name): conditions.swapped(by_name[name], each) for name, each in pairs if name in by_name}
    wanted += [patch.source for patch in swaps.values() if patch is not None]
    read = read_all(wanted, encode, length)
    cells = []
    for name, source in pairs:
        rows = targets[name]
        effect = _Effect(read, conditions.full, rows)
        total, cosine = effect.of(conditions.without(source))
        controls = [
            effect.of(conditions.without_tokens(t))[0]
            for t in fillers[source.name]
            if not is_causal or min(t) < max(rows)
        ]
        cells.append(
            ScreenCell(
                target=name,
                source=source.name,
                is_possible=not is_causal or min(source.rows) < max(rows),
                total=total,
                cosine=cosine,
                direct=effect.of(_directly(conditions, rows, source))[0],
                swapped=effect.of_patch(swaps.get((name, source.name))),
                **_against(total, controls),
            )
        )
    return (*cells, *_pooled_cells(conditions, items, read))


def _directly(conditions: Conditions, rows: Sequence[int], source: ResolvedItem) -> EncodedVariant:
    return EncodedVariant(
        text=conditions.full.text,
        hidden=source.span.by_encoder,
        readers=(tuple(rows),) * len(conditions.prompt.encodings),
    )


def _fillers(conditions: Conditions, items: Sequence[ResolvedItem], tokens: int) -> list[tuple[int, ...]]:
    """Runs of that many tokens that belong to no item: what is hidden as a control."""
    taken = {place for each in items for place in each.rows}
    free = [place for place in conditions.content if place not in taken]
    runs = [tuple(range(place, place + tokens)) for place in free]
    return [run for run in runs if set(run) <= set(free)]


class _Effect:
    """Compares rows of the whole prompt with those of another reading."""

    def __init__(self, read: Mapping[EncodedVariant, Row], full: EncodedVariant, rows: Sequence[int]) -> None:
        self._read, self._rows = read, list(rows)
        self._full_KC = by_reading(read, full).states[self._rows].double()
        empty_KC = by_reading(read, EMPTY).states[self._rows].double()
        self._scale = float((self._full_KC - empty_KC).norm(dim=-1).mean())

    def of(self, reading: EncodedVariant) -> tuple[float, float]:
        """Distance over that to the empty prompt, and one minus the cosine."""
        other_KC = by_reading(self._read, reading).states[self._rows].double()
        return _distances(self._full_KC, other_KC, self._scale)

    def of_patch(self, patch: Patch | None) -> float | None:
        """The distance to rows that stand at other places of another reading."""
        if patch is None:
            return None
        other_KC = by_reading(self._read, patch.source).states[list(patch.source_rows)].double()
        return _distances(self._full_KC, other_KC, self._scale)[0]


def _distances(one_KC: Tensor, other_KC: Tensor, scale: float) -> tuple[float, float]:
    far = float((one_KC - other_KC).norm(dim=-1).mean()) / max(scale, 1e-12)
    angle = float((1 - torch.cosine_similarity(one_KC, other_KC, dim=-1)).mean())
    return far, max(0.0, angle)


def _against(total: float, controls: Sequence[float]) -> dict[str, float | None]:
    if not controls:
        return {"control": None, "z": None}
    mean, spread = float(np.mean(controls)), float(np.std(controls, ddof=1)) if len(controls) > 2 else 0.0
    return {"control": mean, "z": (total - mean) / spread if spread > 1e-9 else None}


def _pooled_cells(
    conditions: Conditions, items: Sequence[ResolvedItem], read: Mapping[EncodedVariant, Row]
) -> list[ScreenCell]:
    full, empty = (by_reading(read, each).pooled for each in (conditions.full, EMPTY))
    if full is None or empty is None:
        return []
    cells = []
    for source in items:
        other = by_reading(read, conditions.without(source)).pooled
        assert other is not None
        scale = float((full - empty).double().norm())
        total, cosine = _distances(full[None].double(), other[None].double(), scale)
        cells.append(
            ScreenCell(
                target=POOLED,
                source=source.name,
                is_possible=True,
                total=total,
                cosine=cosine,
                direct=None,
                control=None,
                z=None,
            )
        )
    return cells


def screen_tokens(conditions: Conditions, item: ResolvedItem, encode: Encode) -> tuple[TokenScreen, ...]:
    """Measure what an item's other tokens have read of each of its tokens: the last one of several has read most.

    Args:
        conditions: of the prompt.
        item: the item.
        encode: encodes as the pipeline does.

    Returns:
        One entry a token of its phrase.
    """
    length = len(conditions.prompt.encodings[0].ids)
    tokens = sorted({*item.rows, *item.own[0]})
    wanted = [conditions.full, EMPTY, *(conditions.without_tokens((token,)) for token in tokens)]
    read = read_all(wanted, encode, length)
    found = []
    for token in tokens:
        others = [place for place in tokens if place != token]
        gone = conditions.without_tokens((token,))
        found.append(
            TokenScreen(
                token=token,
                on_item=_Effect(read, conditions.full, others).of(gone)[0] if others else None,
                on_ends=_Effect(read, conditions.full, conditions.special).of(gone)[0],
            )
        )
    return tuple(found)

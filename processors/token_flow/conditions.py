"""Conditions: which rows of which reading the denoiser gets in place of the prompt's own.

Every question about token flow is such a mixture: keep an item and let all other rows be those of the empty
prompt; take a word out; let an item's rows be those of an encoding that has not seen another item.

Legend: ``K`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from t2ictl.errors import BadSetting
from t2ictl.processors.token_flow.items import ResolvedItem
from t2ictl.processors.token_flow.readings import EncodedVariant, Row, bare, by_reading
from t2ictl.prompts.prompt import Prompt

__all__ = ["Intervention", "Conditions", "Isolation", "Patch", "Removal", "Special", "compose"]

Removal = Literal["clean_pad", "encoder_mask", "drop", "released"]
Isolation = Literal["masked", "alone", "pairwise"]
Special = Literal["keep", "empty", "masked"]
EMPTY = EncodedVariant(text="")


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Rows that are taken from another reading: ``h' = h + strength (source - h)``.

    Args:
        rows: positions that are replaced.
        source: where from.
        source_rows: positions there. Where there are more, the surplus goes into the last rows of the
            padding; where there are fewer, the last padding row fills up: a U-Net does not know the order of the rows.
        strength: how much of the source is taken, in [0, 1].
    """

    rows: tuple[int, ...]
    source: EncodedVariant
    source_rows: tuple[int, ...]
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """A mixture of readings.

    Args:
        name: unique in an analysis, as ``"keep:circle"``.
        kind: what sort it is, the part before the colon.
        base: where all other rows come from.
        patches: what is taken from elsewhere, in order.
        pooled: where the pooled states come from.
        pooled_strength: how much of those is taken, the rest is that of the base.
        unseen: positions that cross-attention does not see.
    """

    name: str
    kind: str
    base: EncodedVariant
    patches: tuple[Patch, ...] = ()
    pooled: EncodedVariant
    pooled_strength: float = 1.0
    unseen: tuple[int, ...] = ()

    def readings(self) -> Iterator[EncodedVariant]:
        """Name all readings that it needs."""
        for each in (self.base, self.pooled, *(patch.source for patch in self.patches)):
            yield bare(each)


def compose(condition: Intervention, read: Mapping[EncodedVariant, Row], padding: Sequence[int]) -> Row:
    """Mix the rows of a condition.

    Args:
        condition: the mixture.
        read: the states of all its readings.
        padding: positions of the prompt's padding, into which surplus rows may go.

    Returns:
        The row for the denoiser. Without patches it is the reading itself.

    Raises:
        BadSetting: if more rows come than the padding has room for.
    """
    base = by_reading(read, condition.base)
    states_KC = base.states.to(torch.promote_types(base.states.dtype, torch.float32), copy=True)
    for patch in condition.patches:
        source_KC = by_reading(read, patch.source).states
        targets, sources = _aligned(patch, padding)
        taken_KC = source_KC[list(sources)].to(states_KC)
        states_KC[list(targets)] = torch.lerp(states_KC[list(targets)], taken_KC, patch.strength)
    pooled_C = by_reading(read, condition.pooled).pooled
    if pooled_C is not None and base.pooled is not None and condition.pooled_strength < 1:
        pooled_C = torch.lerp(base.pooled, pooled_C, condition.pooled_strength)
    return Row(states=states_KC, pooled=pooled_C, unseen=condition.unseen)


def _aligned(patch: Patch, padding: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pairs of row and source row."""
    surplus = len(patch.source_rows) - len(patch.rows)
    if surplus > 0:
        room = sorted(set(padding) - set(patch.rows))
        if surplus > len(room):
            raise BadSetting(
                f"An item alone has {surplus} tokens more than in the prompt, which has {len(room)} padding rows left.",
                "Shorten the prompt, or use how='masked'.",
            )
        return (*patch.rows, *room[len(room) - surplus :]), patch.source_rows
    if surplus < 0:
        filler = padding[-1] if padding else patch.source_rows[-1]
        return patch.rows, (*patch.source_rows, *[filler] * -surplus)
    return patch.rows, patch.source_rows


class Conditions:
    """Makes the conditions of one prompt.

    Args:
        prompt: the parsed prompt.
        parse: reads other texts as the pipeline does.
    """

    def __init__(self, prompt: Prompt, parse: Callable[[str], Prompt]) -> None:
        self.prompt, self._parse = prompt, functools.cache(parse)
        roles = prompt.encodings[0].roles
        self.content = tuple(place for place, role in enumerate(roles) if role == "item")
        self.special = tuple(place for place, role in enumerate(roles) if role in ("end", "pad"))
        self.padding = tuple(place for place, role in enumerate(roles) if role == "pad")
        self.full = EncodedVariant(text=prompt.as_written(prompt.text))

    # -- readings -------------------------------------------------------------------------------------------------

    def without(self, *items: ResolvedItem) -> EncodedVariant:
        """The prompt read without some items, at its own places."""
        hidden = [each.span.by_encoder for each in items]
        return EncodedVariant(text=self.full.text, hidden=_united(hidden))

    def without_tokens(self, tokens: Sequence[int]) -> EncodedVariant:
        """The prompt read without some positions, the same in every encoder."""
        return EncodedVariant(text=self.full.text, hidden=(tuple(tokens),) * len(self.prompt.encodings))

    def isolated(self, item: ResolvedItem) -> EncodedVariant:
        """The prompt of which an item reads its own phrase, and start, end and padding, alone."""
        hidden = tuple(
            tuple(place for place, role in enumerate(encoding.roles) if role == "item" and place not in own)
            for encoding, own in zip(self.prompt.encodings, item.own, strict=True)
        )
        return EncodedVariant(text=self.full.text, hidden=hidden)

    # -- conditions -----------------------------------------------------------------------------------------------

    def whole(self) -> Intervention:
        """The prompt as it is."""
        return Intervention(name="full", kind="full", base=self.full, pooled=self.full)

    def at_depth(self, depth: float) -> Intervention:
        """The prompt as a share of the encoder's layers has read it (Diffusion Lens)."""
        reading = EncodedVariant(text=self.full.text, depth=depth)
        return Intervention(name=f"depth:{depth:.2f}", kind="depth", base=reading, pooled=reading)

    def nothing(self) -> Intervention:
        """The empty prompt: how often is seen what nobody asked for."""
        return Intervention(name="empty", kind="empty", base=EMPTY, pooled=EMPTY)

    def keep(self, name: str, rows: Sequence[int], source: EncodedVariant | None = None) -> Intervention:
        """Some rows of a reading, and the empty prompt for all else (Follow the Flow, section 3)."""
        patch = Patch(rows=tuple(rows), source=source or self.full, source_rows=tuple(rows))
        return Intervention(name=name, kind=name.partition(":")[0], base=EMPTY, patches=(patch,), pooled=EMPTY)

    def isolate(self, item: ResolvedItem) -> Intervention:
        """An item's rows, which have read nothing but its own phrase, and the empty prompt for all else."""
        return self.keep(f"iso:{item.name}", item.rows, self.isolated(item))

    def remove(self, name: str, rows: Sequence[int], operator: Removal = "clean_pad") -> Intervention:
        """The prompt without some rows.

        ``clean_pad``: they become those of the empty prompt; ``released``: the pooled states too, as in the released
        code; ``encoder_mask``: the encoder has not seen them, either; ``drop``: cross-attention does not see them.
        """
        rows = tuple(rows)
        if operator == "drop":
            return Intervention(name=name, kind="drop", base=self.full, pooled=self.full, unseen=rows)
        base = self.without_tokens(rows) if operator == "encoder_mask" else self.full
        blank = Patch(rows=rows, source=EMPTY, source_rows=rows)
        pooled = EMPTY if operator == "released" else base
        return Intervention(name=name, kind="drop", base=base, patches=(blank,), pooled=pooled)

    def cut(self, item: ResolvedItem, other: ResolvedItem) -> Intervention:
        """The prompt in which an item's rows have not read another item.

        If that one has a swap, they have read the swap in its place, which is the sharper comparison: a word that finds
        no neighbor at all may fall back to the meaning that it had.
        """
        name, patch = f"cut:{item.name}|{other.name}", self.swapped(item, other)
        if patch is None:
            return self.repair(name, [(item, (other,))], how="pairwise")
        return Intervention(name=name, kind="cut", base=self.full, patches=(patch,), pooled=self.full)

    def swapped(self, item: ResolvedItem, other: ResolvedItem) -> Patch | None:
        """Rows of an item in the prompt with another item's swap; None without one."""
        if not other.item.swap:
            return None
        source = self.swap(other).base
        # By place: the swap may hold, or have held, the words of the item.
        shift = len(other.item.swap) - (other.span.end - other.span.start) if other.span.start < item.span.start else 0
        rows = self._parse(source.text).span_at(item.span.start + shift, item.span.end + shift).tokens
        return Patch(rows=item.rows, source=source, source_rows=rows)

    def swap(self, item: ResolvedItem) -> Intervention:
        """Another prompt: with the item's swap in its place."""
        text, span = self.prompt.text, item.span
        other = text[: span.start] + item.item.swap + text[span.end :]
        swapped = EncodedVariant(text=self.prompt.as_written(other))
        return Intervention(name=f"swap:{item.name}", kind="swap", base=swapped, pooled=swapped)

    def repair(
        self,
        name: str,
        pairs: Sequence[tuple[ResolvedItem, Sequence[ResolvedItem]]],
        *,
        how: Isolation,
        strength: float = 1.0,
        special: Special = "keep",
        pooled: Special = "keep",
    ) -> Intervention:
        """The prompt with cleaned rows.

        Args:
            name: of the condition.
            pairs: each item to clean, with the items whose influence is to go.
            how: ``"masked"``: its rows have read its own phrase only; ``"alone"``: they are those of its phrase encoded
                alone; ``"pairwise"``: they have not read those items, but all else.
            strength: how much of the clean rows is taken.
            special: end and padding: those of the prompt, of the empty prompt, or (``"masked"``) of the prompt
                without the items whose influence is to go.
            pooled: pooled states, in the same way.

        Returns:
            The condition.
        """
        readings = [self._source(item, others, how) for item, others in pairs]
        patches = [
            Patch(rows=item.rows, source=reading, source_rows=rows, strength=strength)
            for (item, _), (reading, rows) in zip(pairs, readings, strict=True)
        ]
        clean = {"keep": self.full, "empty": EMPTY, "masked": self._clean(pairs, how)}
        if special != "keep":
            patches.append(Patch(rows=self.special, source=clean[special], source_rows=self.special, strength=strength))
        return Intervention(
            name=name,
            kind=name.partition(":")[0],
            base=self.full,
            patches=tuple(patches),
            pooled=clean[pooled],
            pooled_strength=strength,
        )

    def _clean(self, pairs: Sequence[tuple[ResolvedItem, Sequence[ResolvedItem]]], how: Isolation) -> EncodedVariant:
        """What end and padding read: the prompt without the items whose influence is to go, but never without an item
        that is cleaned itself."""
        kept = {item.name for item, _ in pairs}
        gone = {each.name: each for _, others in pairs for each in others if each.name not in kept}
        return self.without(*gone.values()) if gone else self.full

    def _source(
        self, item: ResolvedItem, others: Sequence[ResolvedItem], how: Isolation
    ) -> tuple[EncodedVariant, tuple[int, ...]]:
        if how == "masked":
            return self.isolated(item), item.rows
        if how == "pairwise":
            return self.without(*others), item.rows
        words = item.name.partition("#")[0].strip()
        return EncodedVariant(text=item.alone), self._parse(item.alone).find(words).tokens


def _united(positions: Sequence[tuple[tuple[int, ...], ...]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted({place for own in each for place in own})) for each in zip(*positions, strict=True))

"""What is analyzed: items of a prompt, each a word or phrase that names something to be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t2ictl.errors import BadSetting
from t2ictl.prompts.prompt import Prompt, Span
from t2ictl.prompts.queries import check_apart
from t2ictl.settings.fields import setting, settings_class

__all__ = ["ResolvedItem", "Item", "Items", "bound_items", "placed_items", "resolved_items"]


@settings_class
class Item:
    """A word or phrase of the prompt that names something to be seen.

    Args:
        words: as they stand in the prompt; ``"cat#2"`` is the second cat.
        alone: what stands for the item where it is encoded alone; empty: its noun phrase.
        question: what a judge is asked for; empty: the words.
        senses: for a word of several meanings, by the words of another item, what is seen if that one leaks in.
        swap: other words of the same kind; with them in its place, the rest shows what this item does to it.

    Example:
        >>> Item(words="bat", senses={"baseball": "baseball bat"}).asked
        'bat'
    """

    words: str = setting(default="", help="words of the prompt")
    alone: str = setting(default="", help="text where the item is encoded alone; empty: its noun phrase")
    question: str = setting(default="", help="what a judge is asked for; empty: the words")
    senses: Mapping[str, str] = setting(default={}, help="by other items' words, what is seen if they leak in")

    swap: str = setting(default="", help="other words of the same kind, for comparison")

    def __post_init__(self) -> None:
        if not self.words.strip():
            raise BadSetting("An item has no words.", "Name words of the prompt.")

    @property
    def asked(self) -> str:
        """What a judge is asked for."""
        return self.question or self.words.partition("#")[0].strip()


Items = tuple[Item | str, ...]


@dataclass(frozen=True, kw_only=True)
class ResolvedItem:
    """An item at its place in a prompt.

    Args:
        item: the item.
        span: where its words are.
        own: for each encoder the positions of its noun phrase: what it may read where it is isolated.
        alone: the text where it is encoded alone.
        is_causal: whether its encoder lets a word read only those before it.
    """

    item: Item
    span: Span
    own: tuple[tuple[int, ...], ...]
    alone: str
    is_causal: bool = True

    def may_read(self, other: ResolvedItem) -> bool:
        """Return whether its rows can have read another item."""
        return not self.is_causal or min(other.rows) < max(self.rows)

    @property
    def name(self) -> str:
        """Its words."""
        return self.item.words

    @property
    def rows(self) -> tuple[int, ...]:
        """Positions of its words, which are the same in every encoder."""
        return self.span.tokens


def bound_items(prompt: Prompt, items: Sequence[Item | str], *, is_causal: bool = True) -> tuple[ResolvedItem, ...]:
    """Find items in a prompt.

    Args:
        prompt: the parsed prompt.
        items: words or items; empty for all objects that the parser finds.
        is_causal: whether the encoders let a word read only those before it.

    Returns:
        The items in the order in which they were given.

    Raises:
        SpanNotFound: if words are not in the prompt, or were cut off.
        AmbiguousWord: if the encoders have them at different positions.
        BadSetting: if there is no item, one comes twice or overlaps another, or a sense names no item.
    """
    pairs = placed_items(prompt, items)
    if not pairs:
        raise BadSetting(f"No objects were found in {prompt.text!r}.", "Name the items yourself.")
    return resolved_items(prompt, pairs, is_causal=is_causal)


def placed_items(prompt: Prompt, items: Sequence[Item | str]) -> list[tuple[Item, Span]]:
    """Find the places of items, or of all objects.

    Args:
        prompt: the parsed prompt.
        items: words or items; empty for all objects that the parser finds.

    Returns:
        Each item with its place. Objects are where the parser found them, whatever stands before in the same words.

    Raises:
        SpanNotFound: if words are not in the prompt, or were cut off.
    """
    named = [each if isinstance(each, Item) else Item(words=each) for each in items]
    if named:
        return [(each, prompt.find(each.words)) for each in named]
    return [(Item(words=prompt.query_of(phrase.noun)), phrase.noun) for phrase in prompt.objects()]


def resolved_items(
    prompt: Prompt, pairs: Sequence[tuple[Item, Span]], *, is_causal: bool = True
) -> tuple[ResolvedItem, ...]:
    """Find out what each item may read where it is isolated.

    Args:
        prompt: the parsed prompt.
        pairs: items with their places.
        is_causal: whether the encoders let a word read only those before it.

    Returns:
        The items in the same order.

    Raises:
        AmbiguousWord: if the encoders have one at different positions.
        BadSetting: if two share words, or a sense names no item.
    """
    named = [item for item, _ in pairs]
    check_apart(prompt.text, [span for _, span in pairs], [item.words for item in named], "items")
    rows = zip(*(_agreed(span) for _, span in pairs), strict=True)
    taken = [{place for row in own for place in row} for own in rows]
    bound = []
    for item, span in pairs:
        phrase = _phrase(prompt, span)
        own = tuple(
            tuple(sorted({*inside, *itself} - (others - set(itself))))
            for inside, itself, others in zip(phrase.by_encoder, span.by_encoder, taken, strict=True)
        )
        alone = item.alone or prompt.as_written(phrase.text)
        bound.append(ResolvedItem(item=item, span=span, own=own, alone=alone, is_causal=is_causal))
    _check_senses(named)
    return tuple(bound)


def _agreed(span: Span) -> tuple[tuple[int, ...], ...]:
    """For each encoder the positions of a span; those that stand side by side in the denoiser's row must agree."""
    _ = span.tokens
    return span.by_encoder


def _phrase(prompt: Prompt, span: Span) -> Span:
    """The noun phrase around an item; the item itself where there is none."""
    around = (each.span for each in prompt.objects() if each.span.start <= span.start and span.end <= each.span.end)
    return next(around, span)


def _check_senses(named: Sequence[Item]) -> None:
    known = {each.words for each in named}
    for item in named:
        for other in item.senses:
            if other not in known or other == item.words:
                raise BadSetting(
                    f"The item {item.words!r} has a sense for {other!r}, which is no other item.",
                    f"Items: {', '.join(sorted(known))}.",
                )

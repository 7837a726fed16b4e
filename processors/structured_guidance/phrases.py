"""Phrases of a prompt that are encoded on their own: found or named, and which row of theirs is which token."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BeforeValidator

from t2ictl.errors import AmbiguousWord, SpanNotFound
from t2ictl.families import Adapter
from t2ictl.prompts.per_prompt import per_prompt
from t2ictl.prompts.prompt import Prompt
from t2ictl.prompts.tagging import Range

__all__ = ["ResolvedPhrase", "Levels", "PhraseNames", "resolve_phrases", "why_none"]

Levels = Literal["all", "highest", "lowest"]
PhraseNames = Annotated[
    tuple[str, ...] | tuple[tuple[str, ...], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),  # one phrase need not be a list
]


@dataclass(frozen=True, kw_only=True)
class ResolvedPhrase:
    """One phrase of one prompt.

    Args:
        text: the phrase alone, as a prompt.
        start: first character in the prompt.
        end: one past the last.
        positions: its tokens in the text row of the prompt.
        rows: for each of them the row of the same token in the encoding of the phrase alone.
        first: position of its first token in the prompt as it is encoded, before any merge moves it.
        level: 0 for a phrase with no other one inside it, else one more than the highest level inside.
    """

    text: str
    start: int
    end: int
    positions: tuple[int, ...]
    rows: tuple[int, ...]
    first: int
    level: int = 0

    def holds(self, other: ResolvedPhrase) -> bool:
        """Return whether another phrase lies inside this one."""
        return self is not other and self.start <= other.start and other.end <= self.end


def resolve_phrases(
    named: PhraseNames, levels: Levels, prompts: Sequence[Prompt], adapter: Adapter, *, control: str
) -> tuple[tuple[ResolvedPhrase, ...], ...]:
    """Return the phrases of each prompt: those named by the user, or the noun phrases that the parser finds.

    A phrase that is the whole prompt is left out, since it says nothing new; and so, with a warning, is one that the
    token limit cut, one whose words a control merged, one that the tokenizer splits in another way when it stands
    alone, and one that was found, not named, and stands at different positions for two text encoders.

    Args:
        named: phrases for every prompt; or one list for each prompt; or nothing. The first place where the words
            stand is meant; ``"a red ring#2"`` is the second.
        levels: of the phrases found, all, those inside no other, or those with no other inside.
        prompts: the prompts.
        adapter: the pipeline's family, which tokenizes.
        control: name of the control, for messages.

    Returns:
        One tuple a prompt, in text order, outer phrases before inner ones.

    Raises:
        SpanNotFound: if a named phrase is not in its prompt.
        BadSetting: if there is one list a prompt and their numbers differ.
        AmbiguousWord: if a named phrase stands at different positions for two text encoders.
    """
    wanted = per_prompt(named, len(prompts), setting=f"{control}.phrases", things="phrases")
    return tuple(
        _of_prompt(prompt, own if named else None, levels, adapter, control)
        for prompt, own in zip(prompts, wanted, strict=True)
    )


def _of_prompt(
    prompt: Prompt, named: Sequence[str] | None, levels: Levels, adapter: Adapter, control: str
) -> tuple[ResolvedPhrase, ...]:
    parts = _parts(prompt, _places(prompt, named))
    bound: list[ResolvedPhrase] = []
    left: dict[str, list[str]] = {}
    for place in parts:
        made = _bound(prompt, place, adapter, is_named=named is not None)
        if isinstance(made, ResolvedPhrase):
            bound.append(made)
        else:
            left.setdefault(made, []).append(prompt.text[slice(*place)])
    for why, phrases in left.items():
        _warn(f"{control} leaves out {', '.join(map(repr, phrases))}: {why}.")
    return _at(levels if named is None else "all", _with_levels(bound))


def why_none(named: Sequence[str] | None, prompt: Prompt) -> str:
    """Return in a clause why no phrase of a prompt can be used.

    Args:
        named: the phrases that the user named for this prompt; None: they were to be found.
        prompt: one without phrases.

    Returns:
        The clause.
    """
    places = _places(prompt, named)
    if _parts(prompt, places):
        return "none of its phrases can be encoded on its own"
    return "the prompt holds no phrase but the whole of it" if places else "the prompt has no phrase"


def _places(prompt: Prompt, named: Sequence[str] | None) -> list[Range]:
    """Where the phrases are that were named, or that are found; outer ones first."""
    found = _named(prompt, named) if named is not None else [(each.start, each.end) for each in prompt.noun_phrases()]
    return sorted(set(found), key=lambda place: (place[0], -place[1]))


def _parts(prompt: Prompt, places: Sequence[Range]) -> list[Range]:
    """Those that are not the whole prompt."""
    words = [(word.start, word.end) for word in prompt.words()]
    return [place for place in places if not all(place[0] <= start and end <= place[1] for start, end in words)]


def _named(prompt: Prompt, named: Sequence[str]) -> list[Range]:
    spans = [prompt.find(words) for words in named]
    if any(span.start < 0 for span in spans):
        away = next(span.text for span in spans if span.start < 0)
        raise SpanNotFound(f"{away!r} stands only in the second encoder's prompt.", "Use one prompt.")
    return [(span.start, span.end) for span in spans]


def _bound(prompt: Prompt, place: Range, adapter: Adapter, *, is_named: bool) -> ResolvedPhrase | str:
    """The phrase with its tokens, or why it has none of its own."""
    words = prompt.text[slice(*place)]
    if any(part[0] < place[1] and place[0] < part[1] for each in prompt.merges for part in each.parts):
        return "words of it are merged into one token"
    try:
        positions = prompt.whole_tokens(*place)
    except AmbiguousWord:
        if is_named:
            raise
        return "the prompts of the text encoders have it at different positions"
    if not positions:
        return "the token limit cut it off"
    text = prompt.as_written(words)
    alone = adapter.parse((text,), prompt.parser)
    rows = alone.whole_tokens(0, len(alone.text.rstrip()))
    for written, own in zip(prompt.encodings, alone.encodings, strict=True):
        is_same = written.text == prompt.text  # else the phrase was found at the same positions of another prompt
        there = [written.ids[token] for token in (written.written_at(*place) if is_same else positions)]
        if there != [own.ids[row] for row in rows]:
            return "standing alone it has other tokens than in the prompt"
    written = prompt.encodings[0]
    first = min(written.written_at(*place) if written.text == prompt.text else positions)
    return ResolvedPhrase(text=text, start=place[0], end=place[1], positions=positions, rows=rows, first=first)


def _with_levels(phrases: Sequence[ResolvedPhrase]) -> list[ResolvedPhrase]:
    """Number the levels, narrow phrases first, so that what lies inside is numbered already."""
    level: dict[Range, int] = {}
    for each in sorted(phrases, key=lambda one: one.end - one.start):
        inside = [level[one.start, one.end] for one in phrases if each.holds(one)]
        level[each.start, each.end] = 1 + max(inside, default=-1)
    return [replace(each, level=level[each.start, each.end]) for each in phrases]


def _at(levels: Levels, phrases: Sequence[ResolvedPhrase]) -> tuple[ResolvedPhrase, ...]:
    if levels == "lowest":
        return tuple(each for each in phrases if each.level == 0)
    if levels == "highest":
        return tuple(each for each in phrases if not any(other.holds(each) for other in phrases))
    return tuple(phrases)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=2)

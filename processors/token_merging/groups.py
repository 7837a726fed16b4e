"""Groups of words that shall be one: found in the prompt, or named by the user, with their token positions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from t2ictl.controls.base import Idle, PlanContext
from t2ictl.errors import BadSetting, SpanNotFound
from t2ictl.processors.token_merging.rows import TokenGroup
from t2ictl.prompts.grammar import ObjectGroup
from t2ictl.prompts.per_prompt import per_prompt
from t2ictl.prompts.prompt import Merge, Prompt
from t2ictl.prompts.tagging import split_words
from t2ictl.settings.fields import setting, settings_class

__all__ = ["ResolvedGroup", "WordGroup", "WordGroups", "resolve_groups", "without_groups"]

_ARTICLES = frozenset({"a", "an", "the"})


@settings_class
class WordGroup:
    """An object and what belongs to it, named by the user.

    Args:
        noun: the object, a word or phrase of the prompt; ``"cat#2"`` is the second cat.
        members: words or phrases that belong to it. Words between that are not named stay in the prompt:
            name ``"wearing sunglasses"`` rather than ``"sunglasses"``.

    Raises:
        BadSetting: without a noun or without members.

    Example:
        >>> WordGroup(noun="cat", members=("wearing sunglasses",)).members
        ('wearing sunglasses',)
    """

    noun: str = setting(default="", help="the object, a word or phrase of the prompt")
    members: tuple[str, ...] = setting(default=(), help="words or phrases that belong to it")

    def __post_init__(self) -> None:
        if not self.noun or not self.members:
            raise BadSetting(
                "A WordGroup needs a noun and at least one member.", "WordGroup(noun=..., members=(...,))."
            )


WordGroups = tuple[WordGroup, ...] | tuple[tuple[WordGroup, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ResolvedGroup:
    """One group of one prompt.

    Args:
        words: its words by character.
        positions: its tokens.
        merge: how the prompt remembers it.
        anchor: its phrase alone, as a prompt ("a dog wearing a hat").
        accessories: whether things belong to it, and not attributes only.
    """

    words: ObjectGroup
    positions: TokenGroup
    merge: Merge
    anchor: str
    accessories: bool


def resolve_groups(groups: WordGroups, context: PlanContext, *, control: str) -> tuple[tuple[ResolvedGroup, ...], ...]:
    """Return the groups of each prompt: those named by the user, or all that the parser finds.

    Args:
        groups: named groups for every prompt; or one list for each prompt; or nothing.
        context: the pipeline call.
        control: name of the control, for messages.

    Returns:
        One tuple a prompt. A prompt without groups has none; a group that the token limit cut is left out, with a
        warning.

    Raises:
        SpanNotFound: if a named word is not in its prompt.
        BadSetting: if there is one list a prompt and their numbers differ, or two groups share a word.
        AmbiguousWord: if a word stands at different positions for two text encoders.
    """
    named = per_prompt(groups, len(context.prompts), setting=f"{control}.groups", things="groups")
    return tuple(
        _of_prompt(prompt, own, is_named=bool(groups), control=control)
        for prompt, own in zip(context.prompts, named, strict=True)
    )


def without_groups(
    groups: WordGroups, found: Sequence[Sequence[ResolvedGroup]], context: PlanContext
) -> tuple[Idle, ...]:
    """Return why images whose prompt has no group are left alone.

    Args:
        groups: as for :func:`resolve_groups`.
        found: what it returned.
        context: the pipeline call.

    Returns:
        The reasons.
    """
    named = per_prompt(groups, len(context.prompts), setting="groups", things="groups")
    images: dict[bool, list[int]] = {}
    for image, row in enumerate(context.batch.only("cond").rows):
        if not found[row.prompt]:
            images.setdefault(bool(groups) and not named[row.prompt], []).append(image)
    why = {True: "groups= has none for the prompt", False: "it found nothing to merge in the prompt"}
    return tuple(
        Idle(reason=why[is_empty], remedy="Name groups=.", images=tuple(own), is_wanted=is_empty)
        for is_empty, own in images.items()
    )


def _of_prompt(
    prompt: Prompt, named: Sequence[WordGroup], *, is_named: bool, control: str
) -> tuple[ResolvedGroup, ...]:
    if is_named:
        found = [_named(prompt, each) for each in named]
        _check_apart(prompt, found)
        bound = [_bound(prompt, each, each.pieces) for each in found]
    else:
        bound = [_bound(prompt, each, ((each.start, each.end),)) for each in prompt.object_groups()]
    kept = tuple(each for each in bound if each is not None)
    if len(kept) < len(bound):
        _warn(f"{control} leaves out a group of {prompt.text!r} that the token limit cut off.")
    return kept


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=2)


@dataclass(frozen=True, kw_only=True)
class _Named(ObjectGroup):
    """A group of the user's: only the words that were named belong to it."""

    pieces: tuple[tuple[int, int], ...] = ()


def _named(prompt: Prompt, group: WordGroup) -> _Named:
    spans = [prompt.find(words) for words in (group.noun, *group.members)]
    if any(span.start < 0 for span in spans):
        raise SpanNotFound(
            f"Words of the group of {group.noun!r} stand only in the second encoder's prompt.", "Use one prompt."
        )
    places = [(span.start, span.end) for span in spans]
    start, end = min(places)[0], max(end for _, end in places)
    return _Named(
        text=prompt.text[start:end],
        start=start,
        end=end,
        noun=places[0],
        members=tuple(sorted(places[1:])),
        accessories=any(
            word.key in _ARTICLES for place in places[1:] for word in split_words(prompt.text[slice(*place)])
        ),
        pieces=tuple(sorted(places)),
    )


def _check_apart(prompt: Prompt, found: Sequence[_Named]) -> None:
    places = sorted(place for each in found for place in each.pieces)
    for (_, end), (start, _) in zip(places, places[1:], strict=False):
        if start < end:
            raise BadSetting(
                f"Groups share words in {prompt.text!r}, near {prompt.text[start:end]!r}.",
                "A word belongs to one group; repeated ones are 'cat' and 'cat#2'.",
            )


def _bound(prompt: Prompt, words: ObjectGroup, parts: Sequence[tuple[int, int]]) -> ResolvedGroup | None:
    """The group with its tokens, or None where the token limit cut its noun or all of its members."""
    by_range = {place: prompt.whole_tokens(*place) for place in (words.noun, *words.members, *parts)}
    noun = by_range[words.noun]
    members = tuple(token for place in words.members for token in by_range[place] if token not in noun)
    if not noun or not members:
        return None
    dropped = {token for place in parts for token in by_range[place]} - {noun[0]}
    return ResolvedGroup(
        words=words,
        positions=TokenGroup(noun=noun, members=tuple(dict.fromkeys(members)), dropped=tuple(sorted(dropped))),
        merge=Merge(noun=words.noun, parts=tuple(parts)),
        anchor=prompt.as_written(_anchor(prompt.text, words)),
        accessories=words.accessories,
    )


def _anchor(text: str, words: ObjectGroup) -> str:
    """The phrase with the article before it, if there is one."""
    before = [word for word in split_words(text) if word.end <= words.start]
    has_article = before and before[-1].key in _ARTICLES
    return text[before[-1].start if has_article else words.start : words.end]

"""Queries for words of a prompt: "cat", "red cat", and "cat#2" or "second cat" for the second cat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from t2ictl.errors import BadSetting, SpanNotFound
from t2ictl.prompts.tagging import Range, split_words
from t2ictl.prompts.tokens import Encoding

__all__ = ["check_apart", "cut_off", "matches", "not_found", "nth", "read_query"]

_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_NUMBERED = re.compile(r"(?P<words>.*\S)\s*#(?P<number>\d{1,9})\s*", re.DOTALL)
_ORDINAL = re.compile(rf"\s*(?P<number>{'|'.join(_ORDINALS)})\s+(?P<words>\S.*)", re.DOTALL | re.IGNORECASE)


def matches(text: str, names: Sequence[str], query: str) -> list[Range]:
    """Find where the words of a query stand in a text, one after the other; occurrences do not overlap.

    Example:
        >>> matches("a red cat and a Red  Cat", (), "red cat")
        [(2, 9), (16, 24)]
    """
    here, wanted = split_words(text, names), [word.key for word in split_words(query, names)]
    found: list[Range] = []
    for first in range(len(here) - len(wanted) + 1 if wanted else 0):
        if here[first].key != wanted[0]:
            continue
        run = here[first : first + len(wanted)]
        if [word.key for word in run] == wanted and (not found or found[-1][1] <= run[0].start):
            found.append((run[0].start, run[-1].end))
    return found


def nth(places: Sequence[Range], occurrence: int) -> Range | None:
    """Return a place by its number, counted from 1, or None where there are fewer."""
    return places[occurrence - 1] if occurrence <= len(places) else None


def read_query(query: str, occurrence: int, encodings: Sequence[Encoding]) -> tuple[str, int]:
    """Take the number off a query ("#2" or "second"), unless a prompt has the query literally.

    Args:
        query: as the user wrote it.
        occurrence: the number that was asked for beside it, from 1.
        encodings: what each text encoder reads.

    Returns:
        The words, and which occurrence of them is meant.

    Raises:
        BadSetting: ``occurrence`` below 1, or given twice with different values.
    """
    found = None
    if not _is_in(query, encodings):
        found = _NUMBERED.fullmatch(query) or _ORDINAL.fullmatch(query)
    if found and found.re is _ORDINAL and not _is_in(found["words"], encodings):
        found = None
    if found:
        said = found["number"].lower()
        number = _ORDINALS.index(said) + 1 if said in _ORDINALS else int(said)
        if occurrence not in (1, number):
            raise BadSetting(f"'{query}' with occurrence {occurrence} names two.", "Give one of them.")
        query, occurrence = found["words"], number
    if occurrence < 1:
        raise BadSetting(f"Occurrence {occurrence} of '{query}'.", "Count from 1.")
    return query.strip(), occurrence


def _is_in(words: str, encodings: Sequence[Encoding]) -> bool:
    return any(matches(one.text, one.added, words) for one in encodings)


def not_found(words: str, occurrence: int, encodings: Sequence[Encoding]) -> SpanNotFound:
    """Make the error for words that are not in a prompt, or not that often."""
    count = max(len(matches(one.text, one.added, words)) for one in encodings)
    if count:
        times = "once" if count == 1 else f"{count} times"
        return SpanNotFound(
            f"'{words}' stands only {times} in the prompt, and number {occurrence} was asked for.",
            f"Ask for a number from 1 to {count}." if count > 1 else "Ask for it without a number.",
        )
    there = dict.fromkeys(word.text for one in encodings for word in one.words() if word.kind == "word")
    remedy = f"Use one of: {', '.join(there)}." if there else "The prompt has no words."
    return SpanNotFound(f"No '{words}' in the prompt.", remedy)


def cut_off(words: str, encodings: Sequence[Encoding]) -> SpanNotFound:
    """Make the error for words that have no token in the row that the denoiser reads."""
    read = [one for one in encodings if one.offset is not None]
    if not _is_in(words, read) and _is_in(words, encodings):
        return SpanNotFound(
            f"'{words}' stands only in the prompt of a text encoder whose rows the denoiser does not read.",
            "Put the words into the prompt of the other text encoder as well, or use one prompt.",
        )
    limit = max((one for one in read if one.truncated_at is not None), key=lambda one: len(one.ids), default=None)
    if limit is None:
        return SpanNotFound(f"The tokenizer made no token of '{words}'.", "Use a word with letters.")
    last = limit.text[: limit.truncated_at].split()[-1:]
    return SpanNotFound(
        f"'{words}' was cut off by the limit of {len(limit.ids)} tokens; the text ends after '{''.join(last)}'.",
        "Shorten the prompt, or move the word to the front.",
    )


def check_apart(text: str, spans: Sequence[Any], names: Sequence[str], things: str) -> None:
    """See that no two words or phrases of a prompt share a token: their map would be compared with itself.

    Args:
        text: the prompt.
        spans: what was found, each with its tokens ``by_encoder``.
        names: what was asked for.
        things: what they are, for the message.

    Raises:
        BadSetting: if two do.
    """
    for number, span in enumerate(spans):
        for other, earlier in enumerate(spans[:number]):
            pairs = zip(span.by_encoder, earlier.by_encoder, strict=True)
            if any(set(here) & set(there) for here, there in pairs):
                how = "are merged into one token" if span.merged or earlier.merged else "share words"
                raise BadSetting(
                    f"The {things} {names[other]!r} and {names[number]!r} {how} in {text!r}, "
                    "and a map would be compared with itself.",
                    "Name words that stand apart; a second one of the same word is 'cat#2'.",
                )

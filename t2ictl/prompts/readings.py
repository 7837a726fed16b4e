"""How a pipeline turns a prompt into what its tokenizer gets, and a tokenizer's row into the row of the encoder.

Pipelines of large language encoders put instructions or a chat template around the prompt, tidy it first, and drop part
of the row afterwards. A :class:`Reading` says so, and :class:`Framed` leads characters of the framed text back to those
of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate
from typing import Literal

from t2ictl.errors import UnsupportedPipeline
from t2ictl.prompts.tagging import Range

__all__ = ["Framed", "Reading", "template_around", "trimmed"]

_BLANK = r"[^\S\x1c-\x1f]"  # tokenizers take the separators \x1c to \x1f for characters like any other


@dataclass(frozen=True, kw_only=True)
class Framed:
    """A prompt as the tokenizer gets it.

    Args:
        text: all of it: prefix, tidied prompt, suffix.
        start: first character of the tidied prompt in it.
        origins: for each character of the tidied prompt the half-open range of the user's prompt that it stands for,
            None where it was invented.
        prompt: the user's prompt.
    """

    text: str
    start: int
    origins: tuple[Range | None, ...]
    prompt: str

    def holds(self, place: Range) -> bool:
        """Return whether characters of :attr:`text` belong to the prompt: any that is no blank, or else all.

        Args:
            place: half-open range of characters.
        """
        end = self.start + len(self.origins)
        kept = trimmed(self.text, place)
        if kept is None:
            return self.start <= place[0] < end
        return max(kept[0], self.start) < min(kept[1], end)

    def origin(self, place: Range) -> Range | None:
        """Return the range of the user's prompt behind characters of :attr:`text`, without white space at its ends.

        Args:
            place: half-open range of characters.

        Returns:
            The range; None where only white space, text around the prompt or invented characters stand.
        """
        kept = trimmed(self.text, place)
        if kept is None or not self.holds(place):
            return None
        own = [each for each in self.origins[max(kept[0] - self.start, 0) : kept[1] - self.start] if each is not None]
        return trimmed(self.prompt, (own[0][0], own[-1][1])) if own else None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a pipeline does with a prompt before its text encoder reads it, and with the row afterwards.

    Args:
        prefix: text in front of the prompt: an instruction, or the head of a chat template.
        suffix: text behind it.
        clean: how the pipeline tidies the prompt itself; None: not at all.
        rows: from the length of the tokenizer's padded row to the positions of it that make up the encoder's row, in
            order; negative ones count from the end. None: all.
        special_tokens: whether the tokenizer adds its start and end tokens.
        padding_side: where the pipeline pads, whatever the tokenizer's own default is; None: as the tokenizer does.

    Example:
        >>> framed = Reading(prefix="Draw: ", clean=lambda text: text.strip().lower()).frame(" A Cat")
        >>> framed.text, framed.origin((8, 11))
        ('Draw: a cat', (3, 6))
    """

    prefix: str = ""
    suffix: str = ""
    clean: Callable[[str], str] | None = None
    rows: Callable[[int], Sequence[int]] | None = None
    special_tokens: bool = True
    padding_side: Literal["right"] | None = "right"

    def frame(self, prompt: str) -> Framed:
        """Write a prompt as the tokenizer gets it.

        Args:
            prompt: as the user wrote it.

        Returns:
            The text, and where each of its characters comes from.
        """
        own = prompt if self.clean is None else self.clean(prompt)
        origins = tuple(_origins(prompt, own))
        return Framed(text=self.prefix + own + self.suffix, start=len(self.prefix), origins=origins, prompt=prompt)

    def chosen(self, length: int) -> tuple[int, ...]:
        """List the positions of the tokenizer's row that make up the encoder's row.

        Args:
            length: of the tokenizer's row, in tokens.

        Returns:
            Positions from 0, in order.

        Raises:
            UnsupportedPipeline: a position is outside of the row.
        """
        if self.rows is None:
            return tuple(range(length))
        found = tuple(self.rows(length))
        wrong = [position for position in found if not -length <= position < length]
        if wrong:
            raise UnsupportedPipeline(
                f"The text encoder's row is to have position {wrong[0]} of a tokenizer's row of {length}.",
                "Give the pipeline a longer max_sequence_length.",
            )
        return tuple(position % length for position in found)


def template_around(rendered: str, prompt: str) -> tuple[str, str]:
    """Split a rendered chat template into what stands in front of the prompt and behind it.

    The last occurrence counts. A prompt such as "user" may occur in the tail of the template itself: render the
    template with a marker that cannot, and split at the marker.

    Args:
        rendered: the template with the prompt in it.
        prompt: the prompt, or the marker.

    Returns:
        Prefix and suffix.

    Raises:
        UnsupportedPipeline: the prompt is not in it as it was given.

    Example:
        >>> template_around("<user>a cat<end>", "a cat")
        ('<user>', '<end>')
    """
    start = rendered.rfind(prompt)
    if start < 0:
        raise UnsupportedPipeline(
            f"The chat template does not repeat the prompt {prompt!r} as it was given, so words cannot be found in it.",
            "Use the chat template with which the text encoder was released.",
        )
    return rendered[:start], rendered[start + len(prompt) :]


def trimmed(text: str, place: Range) -> Range | None:
    """Return a half-open range of characters without white space at its ends; None where it is all white space.

    Example:
        >>> trimmed("a red cat", (1, 5)), trimmed("a red cat", (1, 2))
        ((2, 5), None)
    """
    piece = text[slice(*place)]
    found = re.fullmatch(rf"{_BLANK}*(.*?){_BLANK}*", piece, re.DOTALL)
    assert found is not None  # any text matches
    return (place[0] + found.start(1), place[0] + found.end(1)) if found[1] else None


def _origins(prompt: str, own: str) -> list[Range | None]:
    """For each character of a tidied prompt the range of the prompt that it stands for."""
    here, there = _lowered(prompt), _lowered(own)
    found: list[Range | None] = [None] * len(own)
    for kind, first, last, begin, end in _changes(*("".join(char for char, _ in each) for each in (here, there))):
        if kind not in ("equal", "replace"):
            continue  # what was deleted stands behind nothing, what was inserted comes from nowhere
        for number, (_, index) in enumerate(there[begin:end]):
            # What was replaced is shared out evenly: exactly, where lengths match.
            left = first + number * (last - first) // (end - begin)
            right = first + -(-(number + 1) * (last - first) // (end - begin))
            before = found[index]
            start = here[left][1] if before is None else before[0]
            found[index] = (start, here[right - 1][1] + 1)
    return found


def _changes(old: str, new: str) -> Iterator[tuple[str, int, int, int, int]]:
    """What became of a text, as ``SequenceMatcher.get_opcodes`` has it; at once where only its ends were cut."""
    start = old.find(new)
    if start >= 0:
        yield "equal", start, start + len(new), 0, len(new)
        return
    # Words first and characters only where words differ: of characters alone, a long prompt would take seconds.
    before, after = (re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text) for text in (old, new))
    at_old, at_new = ([0, *accumulate(map(len, each))] for each in (before, after))
    for kind, *at in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        first, last, begin, end = at_old[at[0]], at_old[at[1]], at_new[at[2]], at_new[at[3]]
        if kind != "replace":
            yield kind, first, last, begin, end
            continue
        for inner, *own in SequenceMatcher(None, old[first:last], new[begin:end], autojunk=False).get_opcodes():
            yield inner, first + own[0], first + own[1], begin + own[2], begin + own[3]


def _lowered(text: str) -> list[tuple[str, int]]:
    """Characters in lower case, each with the index of the one that it comes from: some become two."""
    return [(low, index) for index, char in enumerate(text) for low in char.lower()]

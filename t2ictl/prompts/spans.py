"""Pieces of a prompt with the tokens they became: spans, phrases, and what a control merged.

A text encoder has a row of tokens. The denoiser reads one text row, which may be made of several: rows that lie side by
side, feature by feature, are one segment of it (the two CLIP rows of SDXL), and segments follow each other (CLIP, then
T5 in Stable Diffusion 3). A position of an encoder's row plus the segment's offset is a position of the denoiser's row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from t2ictl.errors import AmbiguousWord

__all__ = ["Merge", "Phrase", "Span"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of the prompt: its characters, and its tokens in each text encoder.

    Args:
        text: the characters as they stand in the prompt.
        start: first character in ``Prompt.text``; -1 where the words stand only in another encoder's own prompt.
        end: one past the last character; -1 as for ``start``.
        by_encoder: for each encoder the positions in its full row; empty where the words are not in its prompt.
        role: ``"word"``, ``"mark"`` (punctuation), ``"phrase"``, ``"object"`` (a head noun) or ``"attribute"``.
        merged: the phrase whose one composite token stands for these words, where a control merged them; else empty.
        offsets: for each encoder where its row begins in the denoiser's row; None: the denoiser does not read it;
            empty: all at 0.

    Example:
        >>> Span(text="cat", start=2, end=5, by_encoder=((2,), (2,))).tokens
        (2,)
        >>> cat = Span(text="cat", start=2, end=5, by_encoder=((2,), (2,), (1,)), offsets=(0, 0, 77))
        >>> cat.by_segment, cat.tokens
        (((2,), (78,)), (2, 78))
    """

    text: str
    start: int
    end: int
    by_encoder: tuple[tuple[int, ...], ...]
    role: str = "word"
    merged: str = ""
    offsets: tuple[int | None, ...] = ()

    @property
    def by_segment(self) -> tuple[tuple[int, ...], ...]:
        """Positions in the denoiser's row, one tuple a segment, in order of offset.

        Encoders of one segment are read side by side, so one position must mean one word in all of them; between
        segments the places of a word differ as they may.

        Returns:
            For each segment its positions in the denoiser's row; none where the words are not in its prompt.

        Raises:
            AmbiguousWord: encoders of one segment have the words at different positions.
        """
        return tuple(_shifted(self._agreed(own), offset) for offset, own in self._segments().items())

    @property
    def tokens(self) -> tuple[int, ...]:
        """Positions in the denoiser's row: those of all segments.

        Returns:
            Positions, ascending.

        Raises:
            AmbiguousWord: encoders of one segment have the words at different positions.
        """
        return tuple(chain.from_iterable(self.by_segment))

    @property
    def every_token(self) -> tuple[int, ...]:
        """Positions in the denoiser's row that any encoder has, also where those of a segment do not agree."""
        segments = self._segments().items()
        return tuple(sorted({token for offset, own in segments for row in own for token in _shifted(row, offset)}))

    @property
    def is_ambiguous(self) -> bool:
        """Whether encoders of one segment have the words at different positions."""
        return any(len(set(own)) > 1 for own in self._segments().values())

    @property
    def is_read(self) -> bool:
        """Whether the denoiser's row has any token of the words; it has none of words that were cut off."""
        return bool(self.every_token)

    def _segments(self) -> dict[int, list[tuple[int, ...]]]:
        """By offset, the positions in each encoder's own row."""
        offsets = self.offsets or (0,) * len(self.by_encoder)
        pairs = [(at, row) for at, row in zip(offsets, self.by_encoder, strict=True) if at is not None]
        return {offset: [row for at, row in pairs if at == offset] for offset in sorted({at for at, _ in pairs})}

    def _agreed(self, rows: list[tuple[int, ...]]) -> tuple[int, ...]:
        if len(set(rows)) > 1:
            places = ", ".join(str(list(row)) for row in rows)
            raise AmbiguousWord(
                f"'{self.text}' stands at different token positions in the prompts of the text encoders: {places}.",
                "Put the word at the same place in both prompts, or use one prompt.",
            )
        return rows[0]


def _shifted(row: tuple[int, ...], offset: int) -> tuple[int, ...]:
    return tuple(offset + token for token in row)


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """An object of the prompt with its attributes: "a small red circle".

    Args:
        span: all of it, from the first to the last of its words, without the determiner (role ``"phrase"``).
        noun: the head noun with its compound parts (role ``"object"``).
        attributes: adjectives, colors, materials, participles (role ``"attribute"``), in text order.
    """

    span: Span
    noun: Span
    attributes: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Words that a control merged into one token.

    Args:
        noun: character range of the noun, whose token carries all.
        parts: character ranges of all words that were merged.
    """

    noun: tuple[int, int]
    parts: tuple[tuple[int, int], ...]

    @property
    def phrase(self) -> tuple[int, int]:
        """Character range from the first to the last word that was merged."""
        return min(self.parts)[0], max(end for _, end in self.parts)

    def holds(self, start: int, end: int) -> bool:
        """Return whether a character range lies in what was merged."""
        return any(part[0] <= start and end <= part[1] for part in self.parts)

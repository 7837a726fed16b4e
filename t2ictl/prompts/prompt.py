"""Words of a prompt and the tokens they became: ask by word or phrase, get positions.

A control names its concepts by word; attention maps and embedding rows have positions. The
bridge is character offsets: the tokenizer says which characters each token came from, the
parser says which characters a word or an object has, and what overlaps belongs together.
Positions of an encoder are indices into its full padded row; those of a span's tokens are indices into the row that
the denoiser reads (:mod:`t2ictl.prompts.spans`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from t2ictl.errors import BadSetting, SpanNotFound
from t2ictl.prompts.accessories import object_groups
from t2ictl.prompts.grammar import ObjectGroup, group, known_parser
from t2ictl.prompts.noun_phrases import NounPhrase, noun_phrases
from t2ictl.prompts.queries import check_apart, cut_off, matches, not_found, nth, read_query
from t2ictl.prompts.spans import Merge, Phrase, Span
from t2ictl.prompts.tagging import split_words
from t2ictl.prompts.tokens import Encoding, encode

__all__ = ["Merge", "Phrase", "Prompt", "Span"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A parsed prompt: text, one encoding per text encoder, and how to ask for its words.

    Made by :meth:`parse`. ``text`` is what the parser reads and what the ``start`` and ``end`` of a
    span count in; each encoder may have its own prompt (``prompt_2`` of SDXL).
    """

    text: str
    encodings: tuple[Encoding, ...]
    parser: str = "grammar"
    merges: tuple[Merge, ...] = ()

    @classmethod
    def parse(
        cls,
        text: str,
        tokenizers: Sequence[Any],
        texts: Sequence[str] | None = None,
        parser: str = "grammar",
        pad_to: int | None = None,
    ) -> Prompt:
        """Read a prompt with every tokenizer of a pipeline.

        Args:
            text: the prompt.
            tokenizers: one tokenizer per text encoder, in the pipeline's order.
            texts: the prompt of each encoder, after textual inversion expanded it; None: ``text`` for all.
            parser: who groups words into objects, see :func:`t2ictl.prompts.grammar.group`; it runs when objects are
                asked for.
            pad_to: length of the row in tokens; None: the limit of each tokenizer.

        Returns:
            The prompt; nothing is stored in the tokenizers.

        Raises:
            BadSetting: no tokenizer, another number of texts than of tokenizers, or no such parser.
            UnsupportedPipeline: a tokenizer without a limit and no ``pad_to``, or one whose tokens cannot be traced.
        """
        own = [text] * len(tokenizers) if texts is None else list(texts)
        if not tokenizers or len(own) != len(tokenizers):
            raise BadSetting(f"{len(own)} texts for {len(tokenizers)} tokenizers.", "Give one text per tokenizer.")
        encodings = [encode(one, tokenizer, pad_to) for one, tokenizer in zip(own, tokenizers, strict=True)]
        return cls.from_encodings(text, encodings, parser)

    @classmethod
    def from_encodings(cls, text: str, encodings: Sequence[Encoding], parser: str = "grammar") -> Prompt:
        """Make a prompt of what its text encoders read.

        Args:
            text: the prompt.
            encodings: what each text encoder reads, with the offsets of their rows.
            parser: who groups words into objects, as for :meth:`parse`.

        Returns:
            The prompt.

        Raises:
            BadSetting: no encoding, or no such parser.
        """
        if not encodings:
            raise BadSetting("No text encoder reads the prompt.", "Give one encoding per text encoder.")
        return cls(text=text, encodings=tuple(encodings), parser=known_parser(parser))

    @property
    def row_length(self) -> int:
        """Length of the text row that the denoiser reads, in tokens."""
        return max((one.offset + len(one.ids) for one in self.encodings if one.offset is not None), default=0)

    def find(self, query: str, occurrence: int = 1) -> Span:
        """Find a word or phrase: whole words, in any case, with any white space between them.

        Every encoder is searched in its own prompt. ``"cat#2"`` and ``"second cat"`` (up to "tenth") are the second
        cat, unless the prompt itself has these words. A placeholder of textual inversion answers to its name with all
        its vectors.

        Args:
            query: the word or phrase.
            occurrence: which one, counted from 1.

        Returns:
            The span; where only one encoder's prompt has the words, the others' positions are empty.

        Raises:
            SpanNotFound: not in the prompt, not that often, or cut off by the token limit.
            BadSetting: ``occurrence`` below 1, or given twice with different values.
        """
        words, occurrence = read_query(query, occurrence, self.encodings)
        ranges = [nth(matches(one.text, one.added, words), occurrence) for one in self.encodings]
        if not any(ranges):
            raise not_found(words, occurrence, self.encodings)
        found = list(zip(self.encodings, ranges, strict=True))
        by_encoder = tuple(_kept(one, place) if place else () for one, place in found)
        here = nth(matches(self.text, self._names(), words), occurrence)
        text = self.text[slice(*here)] if here else next(one.text[slice(*place)] for one, place in found if place)
        span = self._made(text, here or (-1, -1), by_encoder, merged=self._merged(*here) if here else "")
        if not span.is_read:
            raise cut_off(words, self.encodings)
        return span

    def find_all(self, queries: Sequence[str]) -> tuple[Span, ...]:
        """Find several words or phrases, each as :meth:`find` does, in the order asked."""
        return tuple(self.find(query) for query in queries)

    def find_apart(self, queries: Sequence[str], things: str = "concepts") -> tuple[Span, ...]:
        """Find several words or phrases of which none shares a word with another.

        Args:
            queries: the words or phrases.
            things: what they are, for the message.

        Returns:
            The spans, in the order asked.

        Raises:
            SpanNotFound: as for :meth:`find`.
            BadSetting: if two of them are the same words, one lies in another, or a control merged them into one token.
        """
        spans = self.find_all(queries)
        check_apart(self.text, spans, queries, things)
        return spans

    def query_of(self, span: Span) -> str:
        """Return the words by which :meth:`find` finds this very place: ``"truck#2"`` behind a "fire truck".

        Args:
            span: a span of ``text``.
        """
        earlier = sum(end <= span.start for _, end in matches(self.text, self._names(), span.text))
        return f"{span.text}#{earlier + 1}" if earlier else span.text

    def span_at(self, start: int, end: int, role: str = "word") -> Span:
        """The span of a half-open character range of ``text``.

        An encoder with another prompt is searched for the same words at the same occurrence.

        Args:
            start: first character.
            end: one past the last character.
            role: role that the span gets.

        Returns:
            The span, with every token that overlaps the range.

        Raises:
            BadSetting: the range is empty or not inside the text.
            SpanNotFound: no encoder has a token there (white space, or cut off by the token limit).
        """
        span = self._span(start, end, role)
        if span.is_read:
            return span
        raise cut_off(span.text, self.encodings)

    def whole_tokens(self, start: int, end: int) -> tuple[int, ...]:
        """The tokens of a character range, if the token limit left all of it: half a phrase is not the phrase.

        Args:
            start: first character of ``text``.
            end: one past the last; no white space stands before it.

        Returns:
            Positions in the denoiser's row, of the segments that have all of the range.

        Raises:
            AmbiguousWord: encoders of one segment have the words at different positions.
        """
        offsets = sorted({one.offset for one in self.encodings if one.offset is not None})
        return tuple(token for offset in offsets for token in self._segment(offset)._whole(start, end))

    def _segment(self, offset: int) -> Prompt:
        """The prompt as one segment of the denoiser's row has it."""
        return replace(self, encodings=tuple(one for one in self.encodings if one.offset == offset))

    def _whole(self, start: int, end: int) -> tuple[int, ...]:
        """The tokens of a character range in a single segment."""
        own = [one for one in self.encodings if one.text == self.text]
        if any(one.truncated_at is not None and one.truncated_at < end for one in own):
            return ()  # the limit may fall inside a character, of which then some tokens are there
        try:
            self.span_at(end - 1, end)
            return self.span_at(start, end).tokens
        except SpanNotFound:
            return ()

    def noun_phrases(self) -> tuple[NounPhrase, ...]:
        """Noun phrases of ``text`` at every level, by character.

        Returns:
            Phrases in text order, an outer one before those inside.

        Raises:
            MissingExtra: the parser is not installed.
        """
        return noun_phrases(self.text, self.parser, self._names())

    def words(self, marks: bool = False) -> tuple[Span, ...]:
        """Every word of ``text`` with its tokens; words that were cut off have none.

        Args:
            marks: also punctuation (role ``"mark"``); together they cover every token of the text.

        Returns:
            Spans in text order.
        """
        kept = (word for word in split_words(self.text, self._names()) if marks or word.kind == "word")
        return tuple(self._span(word.start, word.end, word.kind) for word in kept)

    def objects(self) -> tuple[Phrase, ...]:
        """Objects of ``text`` with their attributes, as the parser groups them.

        Returns:
            Phrases in text order; an object whose noun was cut off by the token limit is left out,
            and so is an attribute that was. What a control merged into an object is not listed beside it.

        Raises:
            MissingExtra: the parser is not installed.
        """
        phrases = []
        for one in group(self.text, self.parser, self._names()):
            merge = next((each for each in self.merges if each.holds(*one.noun)), None)
            if merge is not None and merge.noun != one.noun:
                continue  # an accessory: its map is that of the object that has it
            noun = self._span(*one.noun, "object")
            if noun.is_read:
                apart = one.members if merge is None else ()  # what was merged has no map of its own
                attributes = (self._span(*place, "attribute") for place in apart)
                kept = tuple(span for span in attributes if span.is_read)
                phrases.append(Phrase(span=self._span(one.start, one.end, "phrase"), noun=noun, attributes=kept))
        return tuple(phrases)

    def object_groups(self) -> tuple[ObjectGroup, ...]:
        """Objects of ``text`` with all that belongs to them, accessories too, by character.

        Returns:
            Groups in text order; an object to which nothing belongs is left out.

        Raises:
            MissingExtra: the parser is not installed.
        """
        return object_groups(self.text, self.parser, self._names())

    def as_written(self, text: str) -> str:
        """A piece of ``text`` as the user writes it: placeholders of several vectors by their name alone.

        Pipelines expand them before they encode, so a text that is encoded anew must not be expanded already.

        Args:
            text: words of this prompt.

        Returns:
            The same with ``"<toy> <toy>_1"`` as ``"<toy>"``.
        """
        for name in self._names():
            expanded = rf"({re.escape(name)})(?:\s+{re.escape(name)}_\d+)+"
            text = re.sub(expanded, r"\1", text)
        return text

    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for one in self.encodings for name in one.added))

    def _span(self, start: int, end: int, role: str) -> Span:
        if not 0 <= start < end <= len(self.text):
            raise BadSetting(f"No characters {start} to {end} in a text of {len(self.text)}.", "Give a range in it.")
        by_encoder = tuple(
            one.tokens_at(start, end) if one.text == self.text else self._elsewhere(one, start, end)
            for one in self.encodings
        )
        return self._made(self.text[start:end], (start, end), by_encoder, role=role, merged=self._merged(start, end))

    def _made(self, text: str, place: tuple[int, int], by_encoder: tuple[tuple[int, ...], ...], **more: Any) -> Span:
        """A span with the offsets of the encoders, where one is not at 0."""
        offsets = tuple(one.offset for one in self.encodings)
        own = offsets if any(offset != 0 for offset in offsets) else ()
        return Span(text=text, start=place[0], end=place[1], by_encoder=by_encoder, offsets=own, **more)

    def _merged(self, start: int, end: int) -> str:
        """The phrase into which these words were merged; nothing for the whole phrase itself."""
        found = (each.phrase for each in self.merges if each.holds(start, end) and each.phrase != (start, end))
        return next((self.text[slice(*phrase)] for phrase in found), "")

    def merged_by(self, merges: Sequence[Merge], moved: Sequence[tuple[int, ...]]) -> Prompt:
        """The prompt after a control merged words: they answer with the places where their meaning is now.

        Args:
            merges: what was merged.
            moved: for each encoder the new position of every position of its row.

        Returns:
            A new prompt.
        """
        encodings = tuple(replace(one, moved=to) for one, to in zip(self.encodings, moved, strict=True))
        return replace(self, encodings=encodings, merges=tuple(merges))

    def _elsewhere(self, encoding: Encoding, start: int, end: int) -> tuple[int, ...]:
        """Tokens of the same words, at the same occurrence, in an encoder's own prompt."""
        words = self.text[start:end]
        earlier = sum(place[1] <= start for place in matches(self.text, self._names(), words))
        place = nth(matches(encoding.text, encoding.added, words), earlier + 1)
        return encoding.tokens_at(*place) if place else ()


def _kept(encoding: Encoding, place: tuple[int, int]) -> tuple[int, ...]:
    """Tokens of a found range; none where its last word was cut off: half a phrase is not the phrase."""
    last = next(word for word in encoding.words() if word.end == place[1])
    return encoding.tokens_at(*place) if encoding.tokens_at(last.start, last.end) else ()

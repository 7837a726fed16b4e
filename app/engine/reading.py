"""Reading a prompt for its chips, without the model: tokenizers of its folder, used under a lock.

The tokenizers of the loaded pipeline belong to the worker: fast tokenizers refuse two threads at once. Pages have
copies of their own.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from t2ictl import Prompt
from t2ictl.errors import AmbiguousWord, BadSetting

__all__ = ["PromptReader", "ReadPrompt", "ReadToken", "ReadWord"]

#: Readings that are kept; a page reads the same prompt at every click.
KEPT = 64


@dataclass(frozen=True, kw_only=True)
class ReadWord:
    """A word of the prompt.

    Args:
        name: what controls and maps call it: in lower case, a repeated one as ``cat#2``.
        text: as it stands in the prompt.
        role: ``"object"``, ``"attribute"`` or ``"word"``.
        tokens: how many tokens it has; 0 if the token limit cut it off.
    """

    name: str
    text: str
    role: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class ReadToken:
    """A token of a text encoder's row.

    Args:
        position: in the full row, from 0.
        text: the token.
        kind: ``"word"``, ``"start"`` or ``"end"``; the padding behind the end is not listed.
        word: the word it belongs to, or empty.
    """

    position: int
    text: str
    kind: str
    word: str


@dataclass(frozen=True, kw_only=True)
class ReadPrompt:
    """A prompt as the model reads it.

    Args:
        text: the prompt.
        words: its words in order.
        objects: its objects by name, each with the words that describe it.
        tokens: the row of the first text encoder.
        cut: what the token limit cut off; empty if nothing.
    """

    text: str
    words: tuple[ReadWord, ...]
    objects: tuple[tuple[str, tuple[str, ...]], ...]
    tokens: tuple[ReadToken, ...]
    cut: str = ""

    def has(self, name: str) -> bool:
        """Whether a word or phrase is there and was not cut off.

        Args:
            name: as controls take it.
        """
        return any(word.name == name and word.tokens for word in self.words) or name in dict(self.objects)


class PromptReader:
    """Reads prompts as a model's text encoders do.

    Args:
        folder: of a diffusers model; only its tokenizers are loaded.

    Raises:
        BadSetting: if it has none.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        parts = [folder / name for name in ("tokenizer", "tokenizer_2") if (folder / name).is_dir()]
        if not parts:
            raise BadSetting(f"The model {folder.name!r} has no tokenizer folder.", "Choose another one.")
        try:
            self._tokenizers = [AutoTokenizer.from_pretrained(str(part), local_files_only=True) for part in parts]
        except Exception as error:  # files of a model can be wrong in every way
            raise BadSetting(
                f"The tokenizer of {folder.name!r} cannot be loaded: {error}", "Choose another one."
            ) from None
        self._lock = threading.Lock()
        self._known: dict[str, ReadPrompt] = {}

    def read(self, text: str) -> ReadPrompt:
        """Read a prompt.

        Args:
            text: the prompt; an empty one has no words.

        Returns:
            Its words, objects and tokens.
        """
        with self._lock:
            if text not in self._known:
                if len(self._known) >= KEPT:
                    self._known.pop(next(iter(self._known)))
                self._known[text] = self._read(text)
            return self._known[text]

    def _read(self, text: str) -> ReadPrompt:
        prompt = Prompt.parse(text, self._tokenizers)
        phrases = prompt.objects()
        places = [(phrase.noun.start, phrase.noun.end, "object") for phrase in phrases]
        places += [(span.start, span.end, "attribute") for phrase in phrases for span in phrase.attributes]
        places.sort()
        words, seen = [], dict[str, int]()
        names: dict[tuple[int, int], str] = {}
        for span in prompt.words():
            low = span.text.lower()
            seen[low] = seen.get(low, 0) + 1
            name = low if seen[low] == 1 else f"{low}#{seen[low]}"
            names[span.start, span.end] = name
            words.append(ReadWord(name=name, text=span.text, role=_role(places, span), tokens=_count(span)))
        objects = tuple(
            (_name(names, phrase.noun), tuple(_name(names, each) for each in phrase.attributes)) for phrase in phrases
        )
        cut = next((word.text for word in words if not word.tokens), "")
        return ReadPrompt(text=text, words=tuple(words), objects=objects, tokens=self._tokens(prompt), cut=cut)

    def _tokens(self, prompt: Prompt) -> tuple[ReadToken, ...]:
        tokenizer = self._tokenizers[0]
        owners: dict[int, str] = {}
        for span in prompt.words(marks=True):
            owners |= dict.fromkeys(span.by_encoder[0], span.text)
        ids = tokenizer(prompt.text, truncation=True, max_length=tokenizer.model_max_length).input_ids
        found = []
        for position, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
            kind = "word" if position in owners else ("start" if position == 0 else "end")
            found.append(ReadToken(position=position, text=token, kind=kind, word=owners.get(position, "")))
        return tuple(found)


def _role(places: Sequence[tuple[int, int, str]], span: Any) -> str:
    """Role of a word by where objects and attributes are, which do not overlap."""
    before = bisect_right(places, span.start, key=itemgetter(0))
    if before and span.end <= places[before - 1][1]:
        return places[before - 1][2]
    return "word"


def _count(span: Any) -> int:
    try:
        return len(span.tokens)
    except AmbiguousWord:
        return len(span.by_encoder[0])


def _name(names: dict[tuple[int, int], str], span: Any) -> str:
    """The name of a word, or the words themselves of a compound."""
    return names.get((span.start, span.end), span.text.lower())

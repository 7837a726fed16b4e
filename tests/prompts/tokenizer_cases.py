"""Toy vocabularies of the real tokenizer classes of other text encoders, and which token has which characters.

:func:`spelled_by` is a slow reference that knows nothing of offsets: it walks a text and its tokens side by side, each
token taking the characters that it spells.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import normalizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertTokenizer, GemmaTokenizer, Qwen2TokenizerFast, T5TokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.prompts.prompt_cases import clip

LETTERS = "abcdefghijklmnopqrstuvwxyz"
OTHERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'\"-():;/&#\u00e9\u00fc\u6f22"  # no braces: T5 has none either
PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u2026\u3002\u201c\u201d\u2019")
BYTES = {char: byte for byte, char in bytes_to_unicode().items()}


def t5(max_length: int = 64) -> Any:
    """Unigram pieces, "▁" in front of every word, ``</s>`` at the end and no start token."""
    pieces = [("▁red", -1.0), ("▁cat", -1.0), ("▁a", -1.0), ("at", -2.0), ("▁draw", -1.0), ("gir", -1.5)]
    singles = [(char, -4.0) for char in LETTERS + OTHERS]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    made = T5TokenizerFast(vocab=[*marks, *singles, *pieces], extra_ids=0, model_max_length=max_length)
    made._tokenizer.normalizer = normalizers.NFKC()  # stands for the charsmap of the released file
    return made


def gemma(max_length: int = 64, **more: Any) -> Any:
    """Byte-pair pieces with the blank in front of a word, ``<bos>``, no end token; it pads left unless told."""
    merges = [("▁", "▁"), ("r", "e"), ("re", "d"), ("▁", "red"), ("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "a")]
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    names += [*LETTERS, *OTHERS, *(left + right for left, right in merges)]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, model_max_length=max_length, **more)


def bert(max_length: int = 64) -> Any:
    """WordPiece in lower case, ``[CLS]`` and ``[SEP]`` around it."""
    plain = LETTERS + "".join(char for char in OTHERS if not char.isupper())
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *plain, *(f"##{char}" for char in LETTERS), "red", "cat"]
    return BertTokenizer(vocab={name: index for index, name in enumerate(names)}, model_max_length=max_length)


def qwen(max_length: int = 64) -> Any:
    """Byte-level pieces with the blank or mark in front of a word, and no token around the text."""
    merges = [("r", "e"), ("re", "d"), ("Ġ", "red"), ("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġ", "a"), ("Ġ", "Ġ")]
    merges.append((",", "red"))  # a mark and the word behind it
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = [*sorted(ByteLevel.alphabet()), *(left + right for left, right in merges), chat[0]]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    made = Qwen2TokenizerFast(vocab=vocabulary, merges=merges, model_max_length=max_length)
    made.add_special_tokens({"extra_special_tokens": chat[1:]})
    return made


# -- characters of tokens --------------------------------------------------------------------------------------------

Source = list[tuple[Any, int]]  # what tokens spell, characters or bytes, each with the index of its character


def _clusters(text: str) -> Iterator[tuple[str, int]]:
    """Characters with the accents behind them, and where they begin."""
    for match in re.finditer(r"(?s).[\u0300-\u036f]*", text):
        yield match[0], match.start()


def _as_bytes(source: Iterator[tuple[str, int]]) -> Source:
    return [(byte, index) for chars, index in source for byte in chars.encode()]


def _as_characters(source: Iterator[tuple[str, int]]) -> Source:
    return [(char, index) for chars, index in source for char in chars if not char.isspace()]


@dataclass(frozen=True)
class Kind:
    """A tokenizer class: how to build it, what it makes of a text, and what a piece of it spells."""

    name: str
    build: Callable[..., Any]
    source: Callable[[str], Source]
    spells: Callable[[str, Source], int]


def _plain(piece: str, left: Source) -> int:
    assert [char for char, _ in left[: len(piece)]] == list(piece), (piece, left[:5])
    return len(piece)


def _run(left: Source, belongs: Callable[[str, int], bool]) -> int:
    """Length of a run of characters, without a gap between them."""
    length = 0
    while length < len(left) and belongs(*left[length]):
        length += 1
    return length


def _t5_spells(piece: str, left: Source) -> int:
    if piece != "<unk>":
        return _plain(piece.removeprefix("▁"), left)
    return _run(left, lambda char, _: char not in LETTERS + OTHERS)


def _bert_spells(piece: str, left: Source) -> int:
    if piece != "[UNK]":
        return _plain(piece.removeprefix("##"), left)
    first, _ = left[0]
    if first in PUNCTUATION or "\u4e00" <= first <= "\u9fff":
        return 1
    return _run(left, lambda char, _: char not in PUNCTUATION and not "\u4e00" <= char <= "\u9fff")


def _gemma_spells(piece: str, left: Source) -> int:
    byte = re.fullmatch("<0x(..)>", piece)
    own = bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
    assert bytes(char for char, _ in left[: len(own)]) == own
    return len(own)


def _qwen_spells(piece: str, left: Source) -> int:
    own = piece.encode() if piece.startswith("<|") else bytes(BYTES[char] for char in piece)
    assert bytes(char for char, _ in left[: len(own)]) == own
    return len(own)


def _clip_spells(piece: str, left: Source) -> int:
    own = bytes(BYTES[char] for char in piece.removesuffix("</w>"))
    assert bytes(char for char, _ in left[: len(own)]) == own
    return len(own)


def _folded(chars: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFD", chars.lower()) if unicodedata.category(char) != "Mn")


def _form(form: Any, text: str) -> Iterator[tuple[str, int]]:
    return ((unicodedata.normalize(form, chars), index) for chars, index in _clusters(text))


KINDS = (
    Kind("t5", t5, lambda text: _as_characters(_form("NFKC", text)), _t5_spells),
    Kind("gemma", gemma, lambda text: _as_bytes((char, index) for index, char in enumerate(text)), _gemma_spells),
    Kind("bert", bert, lambda text: _as_characters((_folded(c), i) for c, i in _clusters(text)), _bert_spells),
    Kind("qwen", qwen, lambda text: _as_bytes(_form("NFC", text)), _qwen_spells),
    Kind(
        "clip",
        clip,
        lambda text: _as_bytes((chars.lower(), i) for chars, i in _form("NFC", text) if not chars.isspace()),
        _clip_spells,
    ),
)


def words_of(source: Source, text: str) -> list[Source]:
    """What tokens spell, cut at white space: a token of T5, BERT or CLIP lies in one piece of it."""
    pieces: list[Source] = []
    last = -1
    for entry in source:
        if last < 0 or any(char.isspace() for char in text[last : entry[1]]):
            pieces.append([])
        pieces[-1].append(entry)
        last = entry[1]
    return pieces


def spelled_by(kind: Kind, text: str, pieces: Sequence[str]) -> list[set[int]]:
    """For each token the characters of the text that it spells, without white space.

    Args:
        kind: the tokenizer class.
        text: what was tokenized.
        pieces: its tokens, without those that the tokenizer adds.
    """
    source = kind.source(text)
    left = [source] if kind.name in ("gemma", "qwen") else words_of(source, text)
    found = []
    for piece in pieces:
        while left and not left[0]:
            left.pop(0)
        taken = kind.spells(piece, left[0]) if left else 0
        found.append({index for _, index in (left[0][:taken] if left else []) if not text[index].isspace()})
        if left:
            left[0] = left[0][taken:]
    assert not any(left)
    return found


# -- prompts -----------------------------------------------------------------------------------------------------------

INSTRUCTION = 'Draw {what} the user asks: "a red cat" -> a very red cat.\nUser Prompt: '
PARTS = [
    *("a", "red", "cat", "Red", "CAT", "giraffe", "cafe\u0301", "caf\u00e9", "\u00dcber", "na\u00efve", "stra\u00dfe"),
    *("\u6f22\u5b57", "\u732b", "\U0001f408", "\U0001f44d\U0001f3fd", "12", "2024", "3.5", "{", "}", "{what}", "{}"),
    *(",", ".", "!", "...", "\u2026", "'s", '"', "(", ")", "-", "T-shirt", "dog's", "user", "prompt:", "Draw", "#2"),
    *("user prompt: ", "a red cat", "cat cat", "\ufb01n", "\u00bd", "x/y", "it\u2019s"),
]
GAPS = [" ", " ", " ", " ", "  ", "   ", "", "\n", " \n ", ", "]


def prompts(count: int, seed: int = 0) -> list[str]:
    """Random prompts of up to nine parts with all sorts of gaps, also at both ends."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        text = chance.choice(["", "", "", " ", "  ", "\n"])
        for _ in range(chance.randint(0, 9)):
            text += chance.choice(PARTS) + chance.choice(GAPS)
        found.append(text if chance.random() < 0.5 else text.strip())
    return found

"""The tokenizer stage: a byte-pair vocabulary for the closed grammar, found by training on its words.

Every byte is in the vocabulary, so that no text is an error; every word of the grammar is one
token, except :data:`IN_PIECES`, which are left in two on purpose: code that maps words to
tokens must be exercised by words of several tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.shapes.captions import NAMED_SIZES, NAMED_TEXTURES, POLYSEME, REDUNDANT, RELATIONS
from t2ictl.shapes.world import COLORS, MARKS, SHAPES

#: Words of two tokens, and where they are cut.
IN_PIECES = {"triangle": ("tri", "angle"), "dotted": ("dot", "ted")}
RELATION_WORDS = tuple(dict.fromkeys(word for relation in RELATIONS for word in relation.split()))
WORDS = (
    *("a", "an", "the", "and", "with"),
    *SHAPES,
    *COLORS,
    *NAMED_TEXTURES,
    *NAMED_SIZES,
    *MARKS,
    *RELATION_WORDS,
    POLYSEME,
    REDUNDANT,
)

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def byte_symbols() -> list[str]:
    """List the 256 characters that byte-level byte-pair encoding uses for the 256 bytes.

    Printable bytes stand for themselves, the others for the characters from U+0100 on
    (the table of GPT-2 and CLIP).

    Returns:
        256 different characters.

    Example:
        >>> len(set(byte_symbols())), "a" in byte_symbols()
        (256, True)
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Find merges that make every word one token, except the words in pieces.

    Ordinary byte-pair training on the words: merge the most frequent pair until each
    target is whole. Ties break alphabetically, so the result is always the same.

    Args:
        words: lower-case words of letters.

    Returns:
        Pairs of symbols in order of rank.

    Example:
        >>> learn_merges(("ab",))
        [('a', 'b</w>')]
    """
    targets: set[tuple[str, ...]] = set()
    for word in words:
        *heads, tail = IN_PIECES.get(word, (word,))
        targets.update((*head,) for head in heads)
        targets.add((*tail[:-1], tail[-1] + WORD_END))
    parts = sorted(targets)
    merges: list[tuple[str, str]] = []
    while any(len(part) > 1 for part in parts):
        pairs = Counter(pair for part in parts for pair in zip(part, part[1:], strict=False))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        parts = [_merge(part, best) for part in parts]
    return merges


def _merge(part: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Join every occurrence of a pair, from the left."""
    joined: list[str] = []
    for symbol in part:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def build_tokenizer(recipe: Recipe) -> CLIPTokenizer:
    """Make the tokenizer: bytes, bytes at a word's end, merges, start and end.

    As in Stable Diffusion 1.x the end token also pads.

    Args:
        recipe: ``text_length`` in tokens.

    Returns:
        A fast tokenizer with character offsets.

    Example:
        >>> build_tokenizer(Recipe()).tokenize("a red triangle")
        ['a</w>', 'red</w>', 'tri', 'angle</w>']
    """
    merges = learn_merges(WORDS)
    symbols = byte_symbols()
    entries = [*symbols, *(symbol + WORD_END for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=recipe.text_length,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save a tokenizer, also in the two files that older transformers read.

    Args:
        tokenizer: from :func:`build_tokenizer`.
        folder: where to.
    """
    tokenizer.save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(ordered, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learn_merges(WORDS))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

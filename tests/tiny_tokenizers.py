"""Real tokenizer classes with toy vocabularies, built in code: no file, no download.

Each kind spells text as the released one does, with a few hundred tokens instead of tens of thousands. The words of
``tests.tiny.WORDS`` are one token each; other words split, so that words of several tokens occur ("skateboard" is
skate|board, "giraffe" falls into letters and short pieces).

=====================  ==========  ==========================================  ====================================
factory                model       text comes back                             around the words
=====================  ==========  ==========================================  ====================================
``t5_tokenizer``       Unigram     case kept, single spaces; see T5_LACKS      ``</s>`` after; no start token
``gemma_tokenizer``    BPE         exactly; bytes for what is not ASCII        ``<bos>`` before; pads left when left so
``bert_tokenizer``     WordPiece   lower case, spaces around punctuation       ``[CLS]`` before, ``[SEP]`` after
``qwen_tokenizer``     byte BPE    exactly                                     nothing
``clip_tokenizer``     byte BPE    lower case, spaces around punctuation       a start and an end token
=====================  ==========  ==========================================  ====================================

Example:
    >>> t5_tokenizer().tokenize("a snowboard!")
    ['▁a', '▁snow', 'board', '!']
"""

from __future__ import annotations

import functools
import inspect
import re
import string
from collections.abc import Iterable

from diffusers import SanaPipeline
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertTokenizer, CLIPTokenizer, GemmaTokenizer, Qwen2TokenizerFast, T5Tokenizer

from tests.tiny import BOS, EOS, PIECES, WORDS

Vocabulary = dict[str, int]
Merges = tuple[tuple[str, str], ...]

SPACE = "▁"  # how SentencePiece writes a blank; the byte-level kinds write "Ġ"
PRINTABLE = string.ascii_letters + string.digits + string.punctuation
T5_LACKS = "{}<~^`\\"  # the released T5 vocabulary has none of these: they become <unk>
CAPITALIZED = ("A", "An", "The")
ENDINGS = ("s", "er", "ing", "board")
SENTINELS = 4  # T5 has a hundred

# Logarithms of probability, as Unigram wants them: a word is better than its letters, and two pieces than many.
WORD, PIECE, LETTER = -3.0, -4.0, -9.0


def _spell(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """``parts`` after byte-pair encoding: the pair of lowest rank is joined everywhere, until none is left."""
    while pairs := [pair for pair in zip(parts, parts[1:], strict=False) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts


def _byte_pairs(alphabet: Iterable[str], targets: Iterable[list[str]]) -> tuple[list[str], Merges]:
    """Tokens and merges under which every target, a list of symbols, becomes one token.

    A merge that is added later ranks behind all earlier ones, so it cannot break a word that is there already.
    """
    ranks: dict[tuple[str, str], int] = {}
    for target in targets:
        parts = _spell(target, ranks)
        while len(parts) > 1:
            ranks[parts[0], parts[1]] = len(ranks)
            parts = _spell(target, ranks)
    return list(dict.fromkeys([*alphabet, *(left + right for left, right in ranks)])), tuple(ranks)


def _numbered(tokens: Iterable[str]) -> Vocabulary:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def t5_tokenizer(max_length: int = 512) -> T5Tokenizer:
    """A T5 tokenizer (``T5TokenizerFast`` is the same class): Unigram, "▁" before every word, ``</s>`` at the end.

    Args:
        max_length: ``model_max_length``; released pipelines have 120 (PixArt-Alpha), 300 (PixArt-Sigma), 256
            (HunyuanDiT) or 512.
    """
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, SPACE: PIECE}
    scores |= {SPACE + word: WORD for word in (*WORDS, *CAPITALIZED)}
    scores |= {SPACE + piece: PIECE for piece in PIECES} | dict.fromkeys(ENDINGS, PIECE)
    scores |= {char: LETTER for char in PRINTABLE if char not in T5_LACKS and char not in scores}
    scores |= {f"<extra_id_{index}>": 0.0 for index in reversed(range(SENTINELS))}
    return T5Tokenizer(vocab=list(scores.items()), extra_ids=SENTINELS, model_max_length=max_length)


@functools.cache
def _gemma() -> tuple[Vocabulary, Merges]:
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    words = dict.fromkeys([*WORDS, *CAPITALIZED, *PIECES, *re.findall("[A-Za-z]{2,}", " ".join(instruction))])
    targets = [[*lead, *word] for word in words for lead in ("", SPACE)]
    tokens, merges = _byte_pairs([SPACE, "\n", *PRINTABLE], targets)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return _numbered([*special, *tokens]), merges


def gemma_tokenizer(max_length: int = 8192) -> GemmaTokenizer:
    """A Gemma tokenizer: BPE over the whole text with "▁" for blanks, bytes for unknown characters, ``<bos>`` first.

    The words of SANA's instruction are in the vocabulary, so that the stock default stays short.

    Args:
        max_length: ``model_max_length``.
    """
    vocab, merges = _gemma()
    return GemmaTokenizer(vocab=dict(vocab), merges=list(merges), add_bos_token=True, model_max_length=max_length)


def bert_tokenizer(max_length: int = 77) -> BertTokenizer:
    """A BERT tokenizer: lower case, WordPiece with "##" for what continues a word, ``[CLS]`` and ``[SEP]``.

    Args:
        max_length: ``model_max_length``; HunyuanDiT has 77.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    chars = [char for char in PRINTABLE if not char.isupper()]
    inner = [f"##{piece}" for piece in (*string.ascii_lowercase, *string.digits, *ENDINGS)]
    return BertTokenizer(vocab=_numbered([*special, *chars, *inner, *WORDS, *PIECES]), model_max_length=max_length)


@functools.cache
def _qwen() -> tuple[Vocabulary, Merges]:
    targets = [[*lead, *word] for word in (*WORDS, *CAPITALIZED, *PIECES) for lead in ("", "Ġ")]
    tokens, merges = _byte_pairs(sorted(ByteLevel.alphabet()), targets)
    return _numbered([*tokens, "<|endoftext|>", "<|im_start|>", "<|im_end|>"]), merges


def qwen_tokenizer(max_length: int = 1024) -> Qwen2TokenizerFast:
    """A Qwen2 tokenizer: byte-level BPE, "Ġ" for the blank before a word, no token around the text.

    Args:
        max_length: ``model_max_length``.
    """
    vocab, merges = _qwen()
    marks = ["<|im_start|>", "<|im_end|>"]
    return Qwen2TokenizerFast(
        vocab=dict(vocab), merges=list(merges), extra_special_tokens=marks, model_max_length=max_length
    )


@functools.cache
def _clip() -> tuple[Vocabulary, Merges]:
    targets = [[*word[:-1], f"{word[-1]}</w>"] for word in (*WORDS, "board")] + [[*piece] for piece in PIECES]
    alphabet = sorted(ByteLevel.alphabet())
    tokens, merges = _byte_pairs([*alphabet, *(f"{char}</w>" for char in alphabet)], targets)
    return _numbered([*tokens, BOS, EOS]), merges


def clip_tokenizer(max_length: int = 16, pad: str = EOS) -> CLIPTokenizer:
    """A CLIP tokenizer that spells every text, unlike the one of ``tests.tiny``.

    Args:
        max_length: ``model_max_length``; released pipelines have 77.
        pad: the end token (CLIP-L) or "!" (CLIP-G).
    """
    vocab, merges = _clip()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), pad_token=pad, model_max_length=max_length)

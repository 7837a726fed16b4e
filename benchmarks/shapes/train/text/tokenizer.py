"""The tokenizer of the T5 encoder: unigram pieces, one for every word of the language.

Words of :data:`~t2ictl.benchmarks.shapes.train.vocabulary.IN_PIECES` are in two, as for CLIP.
Every printable ASCII character is a piece, so other text falls into characters, and what is
not even ASCII becomes the unknown token, as in the large T5s. No text is an error.
"""

from __future__ import annotations

from transformers import T5Tokenizer

from t2ictl.benchmarks.shapes.train.text.words import ALL_COLORS, EVERYDAY, EVERYDAY_ADJECTIVES, GLUE, NUMBERS, PLURALS
from t2ictl.benchmarks.shapes.train.vocabulary import IN_PIECES, WORDS

#: Sentinels; a document of 64 tokens needs eight.
SENTINELS = 16
SPACE = "▁"
#: Log-probabilities: a word is always likelier than its characters.
WORD_SCORE, CHARACTER_SCORE = -6.0, -20.0


def pieces() -> list[str]:
    """List the pieces of more than one character: words with their leading space, and parts of words.

    Returns:
        Different pieces, always in the same order.

    Example:
        >>> {"▁circle", "▁Circle", "▁tri", "angle"} <= set(pieces()), "▁triangle" in pieces()
        (True, False)
    """
    words = (*WORDS, *GLUE, *ALL_COLORS, *EVERYDAY, *EVERYDAY_ADJECTIVES, *NUMBERS.values(), *PLURALS.values())
    found: dict[str, None] = {}
    for word in words:
        stem, ending = (word[:-1], "s") if word == "triangles" else (word, "")
        first, *others = IN_PIECES.get(stem, (stem,))
        found.update(dict.fromkeys((SPACE + first, SPACE + first.capitalize())))
        found.update(dict.fromkeys((*others[:-1], *(part + ending for part in others[-1:]))))
    return list(found)


def build_t5_tokenizer(length: int = 256) -> T5Tokenizer:
    """Make the tokenizer, which ends every text with ``</s>`` and pads with ``<pad>``.

    Args:
        length: tokens that are asked for when a caller wants the longest row.

    Returns:
        A fast tokenizer with character offsets.

    Example:
        >>> build_t5_tokenizer().tokenize("a red triangle, zzz")
        ['▁a', '▁red', '▁tri', 'angle', ',', '▁', 'z', 'z', 'z']
    """
    characters = [SPACE, *(chr(code) for code in range(33, 127))]
    entries = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    entries += [(piece, WORD_SCORE) for piece in pieces()]
    known = {piece for piece, _ in entries}
    entries += [(character, CHARACTER_SCORE) for character in characters if character not in known]
    entries += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(SENTINELS))]
    return T5Tokenizer(vocab=entries, extra_ids=SENTINELS, model_max_length=length)

"""What one text encoder reads of a prompt: token ids, where each came from, and what each position is for.

Positions are indices into the full padded row of the encoder, with the start token at 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from t2ictl.errors import UnsupportedPipeline
from t2ictl.prompts.tagging import Word, split_words

__all__ = ["Encoding", "encode"]

_LONGEST_ROW = 1_000_000  # tokenizers without a limit report an astronomically large one


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What one text encoder reads: its row of token ids, and where each token came from.

    Args:
        text: the prompt of this encoder, as its tokenizer got it.
        ids: token ids of the full padded row.
        offsets: for each position the half-open character range in ``text``, None where no text stands behind it.
        roles: for each position ``"start"``, ``"item"``, ``"end"`` or ``"pad"``. Only the first
            end token is ``"end"``: Stable Diffusion 1.x pads with the same id.
        truncated_at: character from which on the token limit cut the text, None where all of it fits.
        added: names of placeholder tokens (textual inversion) that stand in ``text``.
        moved: for each position the one where its meaning is now, after a control merged rows; None: where it was.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int] | None, ...]
    roles: tuple[str, ...]
    truncated_at: int | None = None
    added: tuple[str, ...] = ()
    moved: tuple[int, ...] | None = None

    @property
    def end(self) -> int:
        """Position of the first end token."""
        return self._now(self.roles.index("end"))

    def tokens_at(self, start: int, end: int) -> tuple[int, ...]:
        """Positions of the tokens that overlap a half-open character range of ``text``."""
        return tuple(sorted({self._now(position) for position in self.written_at(start, end)}))

    def written_at(self, start: int, end: int) -> tuple[int, ...]:
        """The same before any control merged rows: where ``ids`` and ``offsets`` have them."""
        known = ((position, offset) for position, offset in enumerate(self.offsets) if offset is not None)
        return tuple(position for position, offset in known if offset[0] < end and start < offset[1])

    def _now(self, position: int) -> int:
        return position if self.moved is None else self.moved[position]

    def words(self) -> list[Word]:
        """Words and marks of ``text``; a placeholder with all its vectors is one word."""
        return split_words(self.text, self.added)


def encode(text: str, tokenizer: Any, pad_to: int | None = None) -> Encoding:
    """Tokenize as the stock pipelines do: padded to the full row, cut at the limit.

    Args:
        text: the prompt of this encoder.
        tokenizer: a transformers tokenizer; one without offsets is traced piece by piece.
        pad_to: length of the row in tokens; None: the tokenizer's limit.

    Returns:
        Ids, offsets into ``text`` and roles, all of the row's length.

    Raises:
        UnsupportedPipeline: no limit is known, or the tokens cannot be traced back to the text.
    """
    length = tokenizer.model_max_length if pad_to is None else pad_to
    if length > _LONGEST_ROW:
        raise UnsupportedPipeline("The tokenizer has no token limit.", "Pass pad_to, the length of the encoder's row.")
    wanted = {"return_special_tokens_mask": True, "return_attention_mask": True}
    if getattr(tokenizer, "is_fast", False):
        wanted["return_offsets_mapping"] = True
    row = tokenizer(text, padding="max_length", max_length=length, truncation=True, **wanted)
    whole = tokenizer(text, truncation=False, verbose=False, **wanted)
    roles = tuple(_roles(row, tokenizer))
    left = iter(_origins(text, tokenizer, whole))
    offsets = tuple(next(left) if role == "item" else None for role in roles)
    cut = next(left, (None, None))[0]
    used = set(whole["input_ids"])
    added = [name for name, index in tokenizer.get_added_vocab().items() if index in used]
    named = tuple(name for name in added if name not in tokenizer.all_special_tokens)
    ids = tuple(row["input_ids"])
    return Encoding(text=text, ids=ids, offsets=offsets, roles=roles, truncated_at=cut, added=named)


def _roles(row: Any, tokenizer: Any) -> Iterator[str]:
    """Role of each position, from the masks: ids cannot tell an end token from padding or from an unknown piece."""
    has_ended = False
    masks = zip(row["input_ids"], row["attention_mask"], row["special_tokens_mask"], strict=True)
    for position, (index, is_read, is_special) in enumerate(masks):
        if is_read and not is_special:
            yield "item"
        elif is_read and position == 0 and index == tokenizer.bos_token_id:
            yield "start"
        else:
            yield "pad" if has_ended else "end"
            has_ended = True


def _origins(text: str, tokenizer: Any, whole: Any) -> list[tuple[int, int]]:
    """Character range of each token of the uncut text."""
    items = [position for position, is_special in enumerate(whole["special_tokens_mask"]) if not is_special]
    if "offset_mapping" in whole:
        return [tuple(whole["offset_mapping"][position]) for position in items]
    ids = [whole["input_ids"][position] for position in items]
    return _trace(text, [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)])


def _trace(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Character ranges of tokens that report none: text and tokens, byte-level or plain, are walked byte by byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = {char: byte for byte, char in bytes_to_unicode().items()}
    clusters = re.finditer(r"\S[\u0300-\u036f]*", text)
    source = [(b, c.start(), c.end()) for c in clusters for b in unicodedata.normalize("NFC", c[0]).lower().encode()]
    found: list[tuple[int, int]] = []
    cursor = 0
    for token in tokens:
        bare = re.sub(r"^(##|▁|Ġ)|</w>$", "", token)
        for spelling in ("".join(bare.lower().split()).encode(), bytes(table[c] for c in bare if c in table)):
            part = source[cursor : cursor + len(spelling)]
            if part and bytes(byte for byte, _, _ in part) == spelling:
                found.append((part[0][1], part[-1][2]))
                cursor += len(spelling)
                break
    if cursor != len(source) or len(found) != len(tokens):
        raise UnsupportedPipeline(
            "The tokens of this tokenizer do not spell the prompt, so words cannot be found in it.",
            "Load the fast version of the tokenizer; it reports character offsets.",
        )
    return found

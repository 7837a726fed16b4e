"""What one text encoder reads of a prompt: token ids, where each came from, and what each position is for.

Positions are indices into the full padded row of the encoder. CLIP and BERT begin it with a start token at 0 and end
the text with an end token; T5 has an end token alone, Gemma a start token alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from t2ictl.errors import UnsupportedPipeline
from t2ictl.prompts.readings import Framed, Reading
from t2ictl.prompts.tagging import Range, Word, split_words

__all__ = ["Encoding", "encode"]

_LONGEST_ROW = 1_000_000  # tokenizers without a limit report an astronomically large one


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What one text encoder reads: its row of token ids, and where each token came from.

    Args:
        text: the prompt of this encoder, as the user wrote it, with placeholders expanded.
        ids: token ids of the full padded row.
        offsets: for each position the half-open character range in ``text``, None where no text stands behind it:
            special tokens, padding, text that the pipeline puts around the prompt, and pieces of white space alone.
        roles: for each position ``"start"``, ``"item"``, ``"template"`` (text that the pipeline puts around the
            prompt), ``"end"`` or ``"pad"``. Only the first end token is ``"end"``: Stable Diffusion 1.x pads with the
            same id.
        truncated_at: character from which on the token limit cut the text, None where all of it fits.
        added: names of placeholder tokens (textual inversion) that stand in ``text``.
        moved: for each position the one where its meaning is now, after a control merged rows; None: where it was.
        offset: where this row begins in the text row that the denoiser reads. Encoders with the same offset lie side
            by side there. None: the denoiser reads the encoder's pooled state alone.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int] | None, ...]
    roles: tuple[str, ...]
    truncated_at: int | None = None
    added: tuple[str, ...] = ()
    moved: tuple[int, ...] | None = None
    offset: int | None = 0

    @property
    def begin(self) -> int:
        """Position of the first token of the prompt; where it has none, :attr:`end`."""
        return self._now(self.roles.index("item")) if "item" in self.roles else self.end

    @property
    def end(self) -> int:
        """Position of the first end token; where there is none, the first position behind the prompt's last token."""
        if "end" in self.roles:
            return self._now(self.roles.index("end"))
        behind = [position + 1 for position, role in enumerate(self.roles) if role == "item"]
        return self._now(behind[-1] if behind else [*self.roles, "pad"].index("pad"))

    def tokens_at(self, start: int, end: int) -> tuple[int, ...]:
        """Positions of the tokens that overlap a half-open character range of ``text``."""
        return tuple(sorted({self._now(position) for position in self.written_at(start, end)}))

    def written_at(self, start: int, end: int) -> tuple[int, ...]:
        """The same before any control merged rows: where ``ids`` and ``offsets`` have them."""
        known = ((position, offset) for position, offset in enumerate(self.offsets) if offset is not None)
        return tuple(position for position, offset in known if offset[0] < end and start < offset[1])

    def _now(self, position: int) -> int:
        return position if self.moved is None or position == len(self.moved) else self.moved[position]

    def words(self) -> list[Word]:
        """Words and marks of ``text``; a placeholder with all its vectors is one word."""
        return split_words(self.text, self.added)


def encode(text: str, tokenizer: Any, pad_to: int | None = None, *, reading: Reading | None = None) -> Encoding:
    """Tokenize as the stock pipelines do: padded to the full row, cut at the limit.

    Args:
        text: the prompt of this encoder.
        tokenizer: a transformers tokenizer; one without offsets is traced piece by piece.
        pad_to: length of the tokenizer's row in tokens; None: the tokenizer's limit.
        reading: what the pipeline does with the prompt besides; None: nothing.

    Returns:
        Ids, offsets into ``text`` and roles, all of the length of the encoder's row.

    Raises:
        UnsupportedPipeline: no limit is known, or the tokens cannot be traced back to the text.
    """
    length = tokenizer.model_max_length if pad_to is None else pad_to
    if length > _LONGEST_ROW:
        raise UnsupportedPipeline("The tokenizer has no token limit.", "Pass pad_to, the length of the encoder's row.")
    reading = Reading(padding_side=None) if reading is None else reading
    framed = reading.frame(text)
    wanted: dict[str, Any] = {"return_special_tokens_mask": True, "return_attention_mask": True}
    if getattr(tokenizer, "is_fast", False):
        wanted["return_offsets_mapping"] = True
    if not reading.special_tokens:
        wanted["add_special_tokens"] = False
    sides = (None, getattr(tokenizer, "padding_side", None))
    side = {} if reading.padding_side in sides else {"padding_side": reading.padding_side}
    row = tokenizer(framed.text, padding="max_length", max_length=length, truncation=True, **side, **wanted)
    whole = tokenizer(framed.text, truncation=False, verbose=False, **wanted)
    items = _items(framed, tokenizer, whole)
    placed = _placed(row, tokenizer, items)
    kept = [placed[position] for position in reading.chosen(len(placed))]
    return Encoding(
        text=text,
        ids=tuple(row["input_ids"][position] for position in reading.chosen(len(placed))),
        offsets=tuple(items[number].offset if number is not None else None for _, number in kept),
        roles=tuple(role for role, _ in kept),
        truncated_at=_cut(items, [number for _, number in kept if number is not None]),
        added=_placeholders(tokenizer, {item.index for item in items if item.role == "item"}),
    )


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A token of the uncut text: its id, whether the prompt or a template has it, and where in the prompt it is."""

    index: int
    role: str
    offset: Range | None


def _items(framed: Framed, tokenizer: Any, whole: Any) -> list[_Item]:
    """The tokens of the uncut text, without those that the tokenizer adds."""
    positions = [position for position, is_special in enumerate(whole["special_tokens_mask"]) if not is_special]
    ids = [whole["input_ids"][position] for position in positions]
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
    if "offset_mapping" in whole:
        places: list[Range] = [tuple(whole["offset_mapping"][position]) for position in positions]
    else:
        places = _trace(framed.text, pieces)
    spelled = Counter(char for piece, place in zip(pieces, places, strict=True) for char in range(*place))
    items = []
    for index, piece, place in zip(ids, pieces, places, strict=True):
        # SentencePiece may set its mark of a blank apart, with the offset of the first character behind it.
        is_mark = piece == "▁" and all(spelled[char] > 1 for char in range(*place))
        role = "item" if framed.holds(place) else "template"
        items.append(_Item(index=index, role=role, offset=None if is_mark else framed.origin(place)))
    return items


def _placed(row: Any, tokenizer: Any, items: Sequence[_Item]) -> list[tuple[str, int | None]]:
    """Role of each position of a row, and the number of the token of the text that stands there."""
    numbers, placed = iter(range(len(items))), list[tuple[str, int | None]]()
    for role in _roles(row, tokenizer):
        number = next(numbers) if role == "item" else None
        placed.append((role if number is None else items[number].role, number))
    return placed


def _cut(items: Sequence[_Item], kept: Sequence[int]) -> int | None:
    """Where the first token of the prompt begins that stands behind all those which the row kept."""
    last = max((number for number in kept if items[number].role == "item"), default=-1)
    left = (item.offset for item in items[last + 1 :] if item.offset is not None)
    return next(left, (None, None))[0]


def _placeholders(tokenizer: Any, used: set[int]) -> tuple[str, ...]:
    """Names of placeholder tokens among the ids of a prompt; a vocabulary's own runs of blanks are none."""
    added = [name for name, index in tokenizer.get_added_vocab().items() if index in used]
    return tuple(name for name in added if name not in tokenizer.all_special_tokens and name.strip("▁ \t\r\n"))


def _roles(row: Any, tokenizer: Any) -> Iterator[str]:
    """Role of each position, from the masks: ids cannot tell an end token from padding or from an unknown piece."""
    starts = {tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)}
    has_begun, has_ended = False, False
    masks = zip(row["input_ids"], row["attention_mask"], row["special_tokens_mask"], strict=True)
    for index, is_read, is_special in masks:
        if is_read and not is_special:
            yield "item"
        elif is_read and not has_begun and index in starts:
            yield "start"
        else:
            yield "end" if is_read and not has_ended else "pad"
            has_ended = has_ended or bool(is_read)
        has_begun = has_begun or bool(is_read)


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
        if not bare:
            found.append((0, 0))  # a blank that stands alone
            continue
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

"""Words and their tokens in the rows of other text encoders than CLIP, against a reference that reads no offsets."""

from __future__ import annotations

from typing import Any

import pytest

from t2ictl.prompts.prompt import Prompt
from t2ictl.prompts.readings import Reading
from t2ictl.prompts.tagging import split_words
from t2ictl.prompts.tokens import Encoding, encode
from tests.prompts.tokenizer_cases import INSTRUCTION, KINDS, Kind, bert, gemma, prompts, qwen, spelled_by, t5

COUNT = 500
FULL = 400
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def expected(kind: Kind, tokenizer: Any, full: str, ids: list[int]) -> list[set[int]]:
    """Characters of ``full`` of each token that the text has, from the tokens' own spelling."""
    return spelled_by(kind, full, tokenizer.convert_ids_to_tokens(ids))


def items_of(tokenizer: Any, full: str) -> list[int]:
    """Ids of a text without those that the tokenizer adds."""
    return list(tokenizer(full, add_special_tokens=False, truncation=False)["input_ids"])


def check_words(encoding: Encoding, owners: dict[int, set[int]]) -> None:
    """Compare the positions of every word and mark with those whose tokens spell some of its characters."""
    assert len(encoding.ids) == len(encoding.roles) == len(encoding.offsets)
    for word in split_words(encoding.text):
        own = set(range(word.start, word.end))
        assert set(encoding.tokens_at(word.start, word.end)) == {at for at, chars in owners.items() if chars & own}, (
            word
        )
    for role, offset in zip(encoding.roles, encoding.offsets, strict=True):
        assert role == "item" or offset is None
        assert offset is None or encoding.text[slice(*offset)].strip() == encoding.text[slice(*offset)] != ""


@each_kind
def test_words_have_the_tokens_that_spell_them(kind: Kind) -> None:
    tokenizer = kind.build(max_length=FULL)
    for text in prompts(COUNT):
        encoding = encode(text, tokenizer, reading=Reading())
        first = [position for position, role in enumerate(encoding.roles) if role == "item"]
        ids = [encoding.ids[position] for position in first]
        assert ids == items_of(tokenizer, text) and encoding.truncated_at is None
        check_words(encoding, dict(zip(first, expected(kind, tokenizer, text, ids), strict=True)))


@each_kind
def test_words_inside_a_template_have_their_own_tokens_alone(kind: Kind) -> None:
    tokenizer = kind.build(max_length=FULL)
    suffix = " {red} cat<end>"
    reading = Reading(prefix=INSTRUCTION, suffix=suffix, clean=lambda text: text.lower().strip())
    for text in prompts(COUNT, seed=1):
        encoding = encode(text, tokenizer, reading=reading)
        indent = len(text) - len(text.lstrip())
        own = text.lower().strip()
        assert len(own) == len(text.strip())  # none of these characters becomes two in lower case
        full = INSTRUCTION + own + suffix
        owners: dict[int, set[int]] = {}
        at = [position for position, role in enumerate(encoding.roles) if role in ("item", "template")]
        ids = [encoding.ids[position] for position in at]
        assert ids == items_of(tokenizer, full)
        for position, chars in zip(at, expected(kind, tokenizer, full, ids), strict=True):
            inside = {char for char in chars if len(INSTRUCTION) <= char < len(INSTRUCTION) + len(own)}
            owners[position] = {char - len(INSTRUCTION) + indent for char in inside}
            if chars:
                assert (encoding.roles[position] == "item") == bool(inside)
        check_words(encoding, owners)
        spans = Prompt.from_encodings(text, [encoding]).words(marks=True)
        assert all(encoding.roles[token] == "item" for span in spans for token in span.tokens)


@each_kind
def test_limit_cuts_words_from_the_end(kind: Kind) -> None:
    whole = kind.build(max_length=FULL)
    for number, text in enumerate(prompts(60, seed=2)):
        limit = 6 + number % 12
        cut, full = encode(text, whole, limit, reading=Reading()), encode(text, whole, reading=Reading())
        kept = [position for position, role in enumerate(cut.roles) if role == "item"]
        everything = [position for position, role in enumerate(full.roles) if role == "item"]
        assert len(cut.ids) == limit and cut.end <= limit
        assert [cut.offsets[at] for at in kept] == [full.offsets[at] for at in everything[: len(kept)]]
        left = [offset[0] for at in everything[len(kept) :] if (offset := full.offsets[at]) is not None]
        assert cut.truncated_at == (left[0] if left else None)


# -- each class by hand ------------------------------------------------------------------------------------------------


def test_row_of_t5_begins_with_a_word_and_has_an_end() -> None:
    encoding = encode("a red zebra", t5(), 12)
    # ▁a ▁red ▁ z e b r a </s>
    assert encoding.roles == (*["item"] * 8, "end", "pad", "pad", "pad")
    assert encoding.offsets[:9] == ((0, 1), (2, 5), None, (6, 7), (7, 8), (8, 9), (9, 10), (10, 11), None)
    assert (encoding.begin, encoding.end) == (0, 8)
    assert (encode("", t5(), 4).begin, encode("", t5(), 4).end) == (0, 0)


def test_mark_of_a_blank_stands_for_a_word_only_where_nothing_else_does() -> None:
    encoding = encode("a {cat \u2581 x", t5(), 12)
    # ▁a ▁ <unk> c at ▁▁? : the written mark of a blank is all there is of its word
    word = next(word for word in split_words(encoding.text) if word.text == "\u2581")
    assert len(encoding.tokens_at(word.start, word.end)) == 1
    assert encoding.tokens_at(2, 3) == (2,)  # the brace is unknown, and the mark in front of it is not its token


def test_row_of_bert_has_start_and_end() -> None:
    encoding = encode("A red \u6f22\u5b57 cats", bert(), 10)
    # [CLS] a red 漢 [UNK] cat ##s [SEP]
    assert encoding.roles == ("start", *["item"] * 6, "end", "pad", "pad")
    assert (encoding.begin, encoding.end) == (1, 7)
    assert encoding.tokens_at(6, 8) == (3, 4) and encoding.tokens_at(9, 13) == (5, 6)


def test_row_of_gemma_has_a_start_and_no_end() -> None:
    tokenizer = gemma()
    encoding = encode("a  red cat", tokenizer, 8, reading=Reading())
    # <bos> a ▁▁ red ▁cat <pad>
    assert encoding.roles == ("start", "item", "item", "item", "item", "pad", "pad", "pad")
    assert encoding.offsets[:5] == (None, (0, 1), None, (3, 6), (7, 10))
    assert (encoding.begin, encoding.end) == (1, 5)
    full = encode("a  red cat", tokenizer, 5, reading=Reading())
    assert full.end == 5 and full.truncated_at is None
    cut = encode("a  red cat", tokenizer, 4, reading=Reading())
    assert cut.end == 4 and cut.truncated_at == 7
    assert (encode("", tokenizer, 4, reading=Reading()).begin, encode("", tokenizer, 4, reading=Reading()).end) == (
        1,
        1,
    )


def test_row_without_room_for_a_word_ends_behind_its_start() -> None:
    encoding = encode("a red cat", gemma(), 1, reading=Reading())
    assert encoding.roles == ("start",) and encoding.end == 1 and encoding.truncated_at == 0


def test_one_token_may_be_start_and_end() -> None:
    encoding = encode("a red", gemma(eos_token="<bos>", add_eos_token=True), 7, reading=Reading())
    # <bos> a ▁red <bos>
    assert encoding.roles == ("start", "item", "item", "end", "pad", "pad", "pad")


def test_blanks_in_a_vocabulary_and_names_in_a_template_are_no_placeholders() -> None:
    tokenizer = gemma()
    tokenizer.add_tokens(["\n\n", "▁▁", "<toy>", "<cat>"])
    encoding = encode("a\n\nred <cat>", tokenizer, reading=Reading(prefix="<toy> "))
    assert tokenizer.convert_tokens_to_ids("\n\n") in encoding.ids
    assert encoding.added == ("<cat>",)
    assert [word.text for word in encoding.words()] == ["a", "red", "<cat>"]


def test_side_of_padding_is_the_pipelines_and_the_tokenizer_stays_as_it_was() -> None:
    tokenizer = gemma()
    assert tokenizer.padding_side == "left"
    before = tokenizer("a red cat", padding="max_length", max_length=8)["input_ids"]
    right = encode("a red cat", tokenizer, 8, reading=Reading())
    assert right.roles[0] == "start" and tokenizer.padding_side == "left"
    assert tokenizer("a red cat", padding="max_length", max_length=8)["input_ids"] == before
    left = encode("a red cat", tokenizer, 8)
    assert left.ids == tuple(before) and left.roles == (*["pad"] * 4, "start", "item", "item", "item")
    assert (left.begin, left.end) == (5, 8) and left.tokens_at(2, 5) == (6,)


def test_row_of_qwen_has_nothing_around_the_text() -> None:
    encoding = encode("a (red,red cat", qwen(), 9)
    # a Ġ ( red ,red Ġcat
    assert encoding.roles == (*["item"] * 6, *["pad"] * 3)
    assert encoding.offsets[:6] == ((0, 1), None, (2, 3), (3, 6), (6, 10), (11, 14))
    assert (encoding.begin, encoding.end) == (0, 6)
    assert encoding.tokens_at(6, 7) == encoding.tokens_at(7, 10) == (4,)  # one token for a mark and a word


def test_start_and_end_are_left_out_where_the_pipeline_asks_so() -> None:
    encoding = encode("a red cat", bert(), 5, reading=Reading(special_tokens=False))
    assert encoding.roles == ("item", "item", "item", "pad", "pad") and encoding.end == 3

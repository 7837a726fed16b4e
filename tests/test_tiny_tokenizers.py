"""The toy tokenizers spell as the released ones do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests import tiny
from tests import tiny_tokenizers as toy

ALL: list[Callable[..., Any]] = [
    toy.t5_tokenizer,
    toy.gemma_tokenizer,
    toy.bert_tokenizer,
    toy.qwen_tokenizer,
    toy.clip_tokenizer,
]
EXACT = [toy.t5_tokenizer, toy.gemma_tokenizer, toy.qwen_tokenizer]  # case and spacing come back
PROMPTS = [
    "a red circle and a blue square",
    "a giraffe on a skateboard",
    "A photo of THE Cat's hat, no. 17 (very small)!",
    "dog-eared? yes; 50% & more @home: #1 = [x] | \"y\" / 'z' * $3 + _",
]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("build", ALL)
def test_listed_words_are_one_token_whatever_their_neighbors(build: Any) -> None:
    tokenizer = build()
    alone = {word: len(_ids(tokenizer, word)) for word in tiny.WORDS}
    between = {word: len(_ids(tokenizer, f"cat {word} dog")) - 2 for word in tiny.WORDS}
    assert alone == between == dict.fromkeys(tiny.WORDS, 1)


@pytest.mark.parametrize("build", ALL)
def test_other_words_are_several_tokens(build: Any) -> None:
    tokenizer = build()
    assert len(_ids(tokenizer, "snowboard")) == 2
    assert len(_ids(tokenizer, "giraffe")) > 4


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("build", EXACT)
def test_text_comes_back(build: Any, prompt: str) -> None:
    tokenizer = build()
    assert tokenizer.decode(tokenizer(prompt).input_ids, skip_special_tokens=True) == prompt


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("build", [toy.bert_tokenizer, toy.clip_tokenizer])
def test_text_comes_back_in_lower_case_with_other_spaces(build: Any, prompt: str) -> None:
    tokenizer = build()
    text = tokenizer.decode(tokenizer(prompt).input_ids, skip_special_tokens=True)
    assert text.replace(" ", "") == prompt.lower().replace(" ", "")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("build", ALL)
def test_offsets_cover_every_character(build: Any, prompt: str) -> None:
    encoded = build()(prompt, add_special_tokens=False, return_offsets_mapping=True)
    covered = {place for first, last in encoded["offset_mapping"] for place in range(first, last)}
    assert {place for place, char in enumerate(prompt) if char != " "} <= covered


def test_tokens_around_the_text() -> None:
    around = {build.__name__: build().convert_ids_to_tokens(build()("cat").input_ids) for build in ALL}
    assert around == {
        "t5_tokenizer": ["▁cat", "</s>"],
        "gemma_tokenizer": ["<bos>", "cat"],
        "bert_tokenizer": ["[CLS]", "cat", "[SEP]"],
        "qwen_tokenizer": ["cat"],
        "clip_tokenizer": [tiny.BOS, "cat</w>", tiny.EOS],
    }


def test_words_inside_a_sentence_carry_the_blank() -> None:
    assert toy.t5_tokenizer().tokenize("red cat") == ["▁red", "▁cat"]
    assert toy.gemma_tokenizer().tokenize("red cat") == ["red", "▁cat"]
    assert toy.qwen_tokenizer().tokenize("red cat") == ["red", "Ġcat"]


def test_a_character_that_is_not_there() -> None:
    t5 = toy.t5_tokenizer()
    assert t5.convert_ids_to_tokens(_ids(t5, "{é}")) == ["▁", "<unk>"]  # unknown neighbors are one token
    assert toy.gemma_tokenizer().tokenize("é") == ["<0xC3>", "<0xA9>"]
    assert toy.bert_tokenizer().tokenize("é ☃") == ["e", "[UNK]"]
    assert toy.qwen_tokenizer().tokenize("é") == ["Ã", "©"]
    assert toy.gemma_tokenizer().decode(toy.gemma_tokenizer()("é ☃").input_ids, skip_special_tokens=True) == "é ☃"


@pytest.mark.parametrize("build", ALL)
def test_ids_are_dense(build: Any) -> None:
    tokenizer = build()
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_only_gemma_pads_on_the_left() -> None:
    assert [build().padding_side for build in ALL] == ["right", "left", "right", "right", "right"]


def test_lengths_and_padding_of_clip() -> None:
    assert toy.clip_tokenizer(20, "!").pad_token == "!"
    assert toy.clip_tokenizer(20, "!").model_max_length == 20
    assert toy.t5_tokenizer(120).model_max_length == 120

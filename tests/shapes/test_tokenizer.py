from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.vocabulary import IN_PIECES, WORDS, build_tokenizer, save_tokenizer
from t2ictl.shapes import model_path
from t2ictl.shapes.prompts import KINDS, all_prompts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(Recipe())


def test_one_token_a_word_where_meant(tokenizer: Any) -> None:
    pieces = {word: IN_PIECES.get(word, (word,)) for word in WORDS}
    found = {word: tokenizer.tokenize(word) for word in WORDS}
    assert found == {word: [*own[:-1], f"{own[-1]}</w>"] for word, own in pieces.items()}


def test_some_words_have_several_tokens() -> None:
    assert len(IN_PIECES) >= 2
    assert set(IN_PIECES) <= set(WORDS)


def test_offsets_point_at_characters(tokenizer: Any) -> None:
    text = "A small dotted red triangle, a ring"
    encoded = tokenizer(text, return_offsets_mapping=True)
    pieces = [text[start:end] for start, end in encoded["offset_mapping"][1:-1]]
    assert pieces == ["A", "small", "dot", "ted", "red", "tri", "angle", ",", "a", "ring"]
    assert tokenizer.is_fast


def test_ends_and_padding_are_those_of_stable_diffusion(tokenizer: Any) -> None:
    ids = tokenizer("a ring", padding="max_length", max_length=24, truncation=True).input_ids
    assert len(ids) == tokenizer.model_max_length == 24
    assert ids[0] == tokenizer.bos_token_id
    assert ids[3:] == [tokenizer.eos_token_id] * 21
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["a zebra", "Ünïcode 漢字 🙂", "x" * 200, "", "a red circle!?"])
def test_any_text_is_tokenized_without_loss(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id not in ids
    if text:
        assert ids


def test_words_outside_the_vocabulary_fall_into_pieces(tokenizer: Any) -> None:
    assert len(tokenizer.tokenize("zebra")) > 1


def test_all_words_of_the_grammar_are_there() -> None:
    prompts = [item.prompt for kind in KINDS for item in all_prompts(kind, "tune")[::7]]
    said = {word for prompt in prompts for word in re.findall(r"\w+", prompt)}
    assert said <= set(WORDS)
    assert {"bolt", "round", "with", "dot", "bar", "above"} <= said


def test_saved_and_built_agree(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a striped yellow cross and a dotted ring", "a bolt above a round ring", "zebra 12"):
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}


def test_the_packaged_tokenizer_is_the_built_one(tokenizer: Any) -> None:
    packaged = CLIPTokenizer.from_pretrained(model_path() / "tokenizer")
    assert packaged.get_vocab() == tokenizer.get_vocab()
    for text in ("a striped yellow cross and a dotted ring", "a bolt above a round ring", "zebra 12"):
        assert packaged(text).input_ids == tokenizer(text).input_ids

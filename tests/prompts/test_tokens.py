"""Rows of tokens: the ones that pipelines encode, where a text is cut, and tokenizers without offsets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from t2ictl.errors import UnsupportedPipeline
from t2ictl.prompts.tokens import encode
from tests.prompts.prompt_cases import BOS, EOS, LONG, TOKENIZER, WORDS, SlowClip, clip, items, parse


@pytest.mark.parametrize("pad", [EOS, "!"])
def test_row_is_the_one_that_the_pipelines_encode(pad: str) -> None:
    tokenizer = clip(pad=pad)
    own = tokenizer("a red cat", padding="max_length", max_length=77, truncation=True)["input_ids"]
    encoding = encode("a red cat", tokenizer)
    assert encoding.ids == tuple(own)
    assert encoding.roles == ("start", "item", "item", "item", "end", *["pad"] * 72)
    assert encoding.offsets[:5] == (None, (0, 1), (2, 5), (6, 9), None)
    assert encoding.end == 4 and encoding.truncated_at is None
    assert encoding.ids[encoding.end] == tokenizer.eos_token_id


def test_end_token_inside_the_text_does_not_end_it() -> None:
    encoding = encode(f"red {EOS} cat", TOKENIZER)
    assert encoding.ids[2] == TOKENIZER.eos_token_id
    assert encoding.roles[:6] == ("start", "item", "item", "item", "end", "pad")


def test_unknown_piece_has_the_end_id_and_is_still_an_item() -> None:
    small = {name: i for i, name in enumerate(["r", "e", "d</w>", "re", "red</w>", "é", BOS, EOS])}
    tokenizer = CLIPTokenizer(vocab=small, merges=[("r", "e"), ("re", "d</w>")], model_max_length=8)
    encoding = encode("q red", tokenizer)
    assert encoding.ids[1] == encoding.ids[3] == tokenizer.eos_token_id
    assert encoding.roles[:4] == ("start", "item", "item", "end")


def test_row_length_can_be_given_and_must_be_known() -> None:
    assert len(encode("a red cat", TOKENIZER, pad_to=20).ids) == 20
    endless = clip(max_length=10**30)
    assert len(encode("a red cat", endless, pad_to=6).ids) == 6
    with pytest.raises(UnsupportedPipeline, match="pad_to"):
        encode("a red cat", endless)


def test_cut_text_says_where() -> None:
    encoding = encode("a red cat and a dog", clip(max_length=6))
    assert encoding.roles == ("start", "item", "item", "item", "item", "end")
    assert encoding.truncated_at == len("a red cat and ")


@pytest.mark.parametrize(
    "text", ["a Red  giraffe", "cafe\u0301 \u201cred\u201d", "\U0001f408, \u0130 dog's", "", "ÀÉ ß"]
)
def test_tokenizer_without_offsets_is_traced(text: str) -> None:
    slow = SlowClip()
    assert not slow.is_fast
    traced, known = encode(text, slow), encode(text, TOKENIZER)
    assert traced.ids == known.ids and traced.roles == known.roles
    words = [span.tokens for span in parse(text, slow).words(marks=True)]
    assert words == [span.tokens for span in parse(text).words(marks=True)]


def test_tokenizer_that_spells_something_else_is_refused() -> None:
    with pytest.raises(UnsupportedPipeline, match="do not spell the prompt.*fast version"):
        encode("a red cat", SlowClip(spoil="red"))


@given(words=WORDS, limit=st.integers(3, 20))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_limit_cuts_every_text_consistently(words: list[str], limit: int) -> None:
    text = " ".join(words)
    cut, whole = encode(text, LONG, pad_to=limit), encode(text, LONG)
    kept = items(cut)
    assert [cut.offsets[p] for p in kept] == [whole.offsets[p] for p in items(whole)[: len(kept)]]
    if cut.truncated_at is None:
        assert len(kept) == len(items(whole))
    else:
        assert len(kept) == limit - 2 and whole.offsets[items(whole)[len(kept)]] is not None
        assert not [p for p in kept if cut.offsets[p][0] > cut.truncated_at]  # type: ignore[index]

"""Words in text rows of several segments: two CLIP rows side by side and T5 behind them, or a pooled state alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from t2ictl.controls.attributes import ResolvedConcepts
from t2ictl.errors import AmbiguousWord, BadSetting, SpanNotFound
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import recorded_columns
from t2ictl.prompts.prompt import Merge, Prompt, Span
from t2ictl.prompts.readings import Reading
from t2ictl.prompts.tokens import encode
from tests.prompts.prompt_cases import clip
from tests.prompts.tokenizer_cases import gemma, t5

TEXT = "a red giraffe and a cat"


def sd3(text: str = TEXT, second: str | None = None, third: str | None = None, **lengths: int) -> Prompt:
    """Two CLIP rows side by side at 0, T5 behind them."""
    length, behind = lengths.get("clip", 20), lengths.get("t5", 40)
    rows = [encode(one or text, clip(), length) for one in (text, second)]
    return Prompt.from_encodings(text, [*rows, replace(encode(third or text, t5(), behind), offset=length)])


def flux(text: str = TEXT, second: str | None = None, **lengths: int) -> Prompt:
    """CLIP, of which the denoiser reads the pooled state alone, and T5 at 0."""
    pooled = replace(encode(text, clip(), 20), offset=None)
    return Prompt.from_encodings(text, [pooled, encode(second or text, t5(), lengths.get("t5", 40))])


def span(*by_encoder: tuple[int, ...], offsets: tuple[int | None, ...] = ()) -> Span:
    return Span(text="cat", start=0, end=3, by_encoder=by_encoder, offsets=offsets)


# -- positions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "by_segment", "tokens"),
    [
        (span((2, 3)), ((2, 3),), (2, 3)),
        (span((2,), (2,)), ((2,),), (2,)),
        (span((), ()), ((),), ()),
        (span((2,), (2,), (1, 4), offsets=(0, 0, 77)), ((2,), (78, 81)), (2, 78, 81)),
        (span((1, 4), (2,), offsets=(77, 0)), ((2,), (78, 81)), (2, 78, 81)),  # in order of offset
        (span((), (), (1,), offsets=(0, 0, 77)), ((), (78,)), (78,)),
        (span((5,), (1, 2), offsets=(None, 0)), ((1, 2),), (1, 2)),
        (span((5,), offsets=(None,)), (), ()),
        (span((5,), (), offsets=(None, 0)), ((),), ()),
    ],
)
def test_positions_in_the_denoisers_row(made: Span, by_segment: Any, tokens: Any) -> None:
    assert (made.by_segment, made.tokens, made.every_token) == (by_segment, tokens, tokens)
    assert not made.is_ambiguous and made.is_read == bool(tokens)


@pytest.mark.parametrize("made", [span((2,), (3,)), span((2,), (3,), (1,), offsets=(0, 0, 77)), span((2,), ())])
def test_encoders_of_one_segment_must_agree(made: Span) -> None:
    assert made.is_ambiguous and made.is_read
    with pytest.raises(AmbiguousWord, match=r"'cat' stands at different token positions.*: \[2\], \[3?\]\."):
        _ = made.by_segment
    with pytest.raises(AmbiguousWord):
        _ = made.tokens


def test_every_token_holds_those_that_do_not_agree() -> None:
    assert span((2,), (3,), (1,), (9,), offsets=(0, 0, 77, None)).every_token == (2, 3, 78)


def test_word_of_three_encoders_has_tokens_in_two_segments() -> None:
    prompt = sd3()
    # CLIP: start a red gir affe and a cat; T5: ▁a ▁red ▁ gir a f f e ▁a n d ▁a ▁cat
    giraffe = prompt.find("giraffe")
    assert giraffe.by_encoder == ((3, 4), (3, 4), (3, 4, 5, 6, 7))
    assert giraffe.by_segment == ((3, 4), (23, 24, 25, 26, 27))
    assert giraffe.tokens == (3, 4, 23, 24, 25, 26, 27)
    assert [one.tokens for one in prompt.words()[:2]] == [(1, 20), (2, 21)]
    assert prompt.row_length == 60
    assert prompt.span_at(2, 5).tokens == (2, 21)


def test_prompts_of_segments_may_differ_and_those_of_one_may_not() -> None:
    apart = sd3(third="cat, giraffe")
    assert apart.find("giraffe").by_segment == ((3, 4), (23, 24, 25, 26, 27))
    assert apart.find("cat").by_segment == ((7,), (20,))
    assert apart.find("red").by_segment == ((2,), ())
    with pytest.raises(AmbiguousWord):
        _ = sd3(second="a cat and a red giraffe").find("cat").tokens


def test_word_that_one_segment_has_cut_off_has_the_tokens_of_the_other() -> None:
    prompt = sd3(clip=5)
    assert prompt.encodings[0].truncated_at == TEXT.index("affe")
    assert prompt.find("cat").by_segment == ((), (17,))
    assert prompt.whole_tokens(2, 5) == (2, 6)
    first = TEXT.index("giraffe")
    assert prompt.span_at(first, first + 7).by_segment[0] == (3,)  # half of the word
    assert prompt.whole_tokens(first, first + 7) == (8, 9, 10, 11, 12)
    both = sd3(clip=5, t5=8)
    with pytest.raises(SpanNotFound, match="'cat' was cut off by the limit of 8 tokens"):
        both.find("cat")
    assert [one.is_read for one in both.words()] == [True, True, True, False, False, False]
    assert [one.noun.text for one in both.objects()] == ["giraffe"]


def test_encoder_that_is_read_pooled_has_no_positions() -> None:
    prompt = flux()
    assert prompt.find("red").by_encoder == ((2,), (1,))
    assert prompt.find("red").by_segment == ((1,),) and prompt.find("red").tokens == (1,)
    assert prompt.row_length == 40 and prompt.whole_tokens(2, 5) == (1,)
    with pytest.raises(SpanNotFound, match="'cat' was cut off by the limit of 6 tokens"):
        flux(t5=6).find("cat")


def test_word_that_only_a_pooled_encoder_has_is_refused() -> None:
    prompt = flux(second="a cat")
    assert prompt.find("cat").tokens == (1,)
    for ask in (lambda: prompt.find("red"), lambda: prompt.span_at(2, 5)):
        with pytest.raises(SpanNotFound, match="'red' stands only in the prompt of a text encoder whose rows"):
            ask()
    assert [one.tokens for one in prompt.words()] == [(0,), (), (), (), (), (1,)]
    assert [one.noun.text for one in prompt.objects()] == ["cat"]


def test_merged_words_answer_in_every_segment() -> None:
    prompt = sd3("a red cat")
    # Both rows lose "red": all behind it moves one place to the left.
    moved = [tuple(at - (at >= 2) for at in range(20))] * 2 + [tuple(at - (at >= 1) for at in range(40))]
    merged = prompt.merged_by([Merge(noun=(6, 9), parts=((2, 5), (6, 9)))], moved)
    assert merged.find("cat").by_segment == ((2,), (21,)) and merged.find("red").merged == "red cat"
    assert merged.encodings[2].offset == 20 and merged.encodings[2].end == 2


def test_end_behind_a_full_row_moves_nowhere() -> None:
    encoding = encode("a red cat", gemma(), 4, reading=Reading())
    assert encoding.end == 4
    assert replace(encoding, moved=(0, 1, 1, 2)).end == 4
    assert replace(encode("a red", gemma(), 4, reading=Reading()), moved=(0, 1, 1, 2)).end == 2


def test_prompt_needs_an_encoding_and_a_known_parser() -> None:
    with pytest.raises(BadSetting, match="No text encoder reads the prompt"):
        Prompt.from_encodings("a cat", [])
    with pytest.raises(BadSetting, match="grammar, spacy"):
        Prompt.from_encodings("a cat", [encode("a cat", clip())], parser="stanza")


# -- who asks ----------------------------------------------------------------------------------------------------------


def test_record_keeps_the_tokens_of_all_segments() -> None:
    prompt = sd3("a red cat")
    columns = recorded_columns([prompt], ())
    assert columns == (1, 2, 3, 20, 21, 22)
    record = AttentionRecord(prompts=(prompt,), columns=columns, heads={"up": 1})
    assert record.names() == ["a", "red", "cat"]
    assert recorded_columns([prompt], ("red",)) == (2, 21)
    only = AttentionRecord(prompts=(prompt,), columns=(2, 21, 3), heads={"up": 1})
    assert only.names() == ["red"]


def test_record_names_no_word_that_has_no_one_place() -> None:
    prompt = sd3("a red cat", second="red cat a")
    columns = recorded_columns([prompt], ())
    assert set(columns) >= {1, 2, 3, 20, 21}
    assert AttentionRecord(prompts=(prompt,), columns=columns, heads={"up": 1}).names() == []
    pooled = flux(second="a cat")
    assert recorded_columns([pooled], ()) == (0, 1)
    assert AttentionRecord(prompts=(pooled,), columns=(0, 1), heads={"up": 1}).names() == ["a", "cat"]


def test_concepts_by_token_have_one_position_of_the_denoisers_row_each() -> None:
    cat = sd3("a red cat").find("cat")
    concepts = ResolvedConcepts.from_rows([[(cat, 0, True, 0)]], "cpu").by_token()
    assert [one.tokens for one in concepts.spans[0]] == [(token,) for token in cat.tokens]
    assert concepts.word_BN.tolist() == [[0] * len(cat.tokens)]

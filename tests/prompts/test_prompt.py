"""Words and the tokens they became, on real tokenizers with a small hand-written vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ictl.errors import AmbiguousWord, BadSetting, SpanNotFound
from t2ictl.prompts.prompt import Phrase, Span
from tests.prompts.prompt_cases import LONG, TOKENIZER, WORDS, clip, items, parse, plain


def test_empty_prompt() -> None:
    prompt = parse("")
    assert prompt.encodings[0].end == 1 and prompt.words() == () and prompt.objects() == ()
    with pytest.raises(SpanNotFound, match="no words"):
        prompt.find("cat")


# --- words --------------------------------------------------------------------------------------------------------


def test_word_of_several_pieces_has_all_of_them() -> None:
    prompt = parse("a red giraffe and dogs")
    assert prompt.find("giraffe").tokens == (3, 4)
    assert prompt.find("dogs").tokens == (6, 7)
    assert prompt.find("red giraffe").tokens == (2, 3, 4)
    with pytest.raises(SpanNotFound):
        prompt.find("dog")  # whole words only


@pytest.mark.parametrize("query", ["red cat", "RED CAT", "red   cat", "red\ncat", " red cat "])
def test_case_and_white_space_do_not_matter(query: str) -> None:
    span = parse("a Red  cat").find(query)
    assert span == Span(text="Red  cat", start=2, end=10, by_encoder=((2, 3),))


@pytest.mark.parametrize(
    ("text", "query", "chars"),
    [
        ("a cafe\u0301 cat", "caf\u00e9", "cafe\u0301"),
        ("a caf\u00e9 cat", "cafe\u0301", "caf\u00e9"),
        ("one \u201cred\u201d cat", "red", "red"),
        ("one 'save' cat", "save", "save"),
        ("the dog\u2019s cat", "dog", "dog"),
        ("the dog's cat", "dog\u2019s", "dog's"),
        ("a T-shirt, red", "t-shirt", "T-shirt"),
        ("a (red) [cat]", "cat", "cat"),
        ("\u0130stanbul cat", "cat", "cat"),
        ("one\U0001f408\u200d\u2b1b,cat", "\U0001f408\u200d\u2b1b", "\U0001f408\u200d\u2b1b"),
        ("\U0001f44d\U0001f3fd cat", "\U0001f44d\U0001f3fd", "\U0001f44d\U0001f3fd"),
        ("a cat#2 cat", "cat#2", "cat#2"),
    ],
)
def test_word_in_its_original_characters(text: str, query: str, chars: str) -> None:
    span = parse(text).find(query)
    assert (span.text, text[span.start : span.end]) == (chars, chars)
    ids = [TOKENIZER(text)["input_ids"][position] for position in span.tokens]
    assert plain(chars) in plain(TOKENIZER.decode(ids))


def test_word_is_counted() -> None:
    prompt = parse("a cat, a red cat and one cat")
    cat = TOKENIZER.convert_tokens_to_ids("cat</w>")
    first, second, third = (position for position, index in enumerate(prompt.encodings[0].ids) if index == cat)
    assert prompt.find("cat").tokens == (first,)
    assert prompt.find("cat", 2).tokens == prompt.find("cat#2").tokens == prompt.find("Cat #2").tokens == (second,)
    assert prompt.find("one cat").tokens[-1] == third
    assert [span.start for span in prompt.find_all(["cat#3", "red"])] == [25, 9]
    for bad in (lambda: prompt.find("cat", 0), lambda: prompt.find("cat#2", 3)):
        with pytest.raises(BadSetting):
            bad()


def test_missing_word_names_the_words_there() -> None:
    prompt = parse("a Red cat, and a cat's dog")
    with pytest.raises(SpanNotFound, match="No 'bird' in the prompt. Use one of: a, Red, cat, and, dog."):
        prompt.find("bird")
    with pytest.raises(SpanNotFound, match="only 2 times.*number 3.*from 1 to 2"):
        prompt.find("cat#3")
    with pytest.raises(SpanNotFound, match="only once"):
        prompt.find("dog", 2)
    with pytest.raises(SpanNotFound):
        prompt.find("")


def test_word_beyond_the_limit_is_named_as_cut_off() -> None:
    prompt = parse("a red cat and a dog", clip(max_length=6))
    assert prompt.find("red cat and").tokens == (2, 3, 4)
    with pytest.raises(SpanNotFound, match="'dog' was cut off by the limit of 6 tokens; the text ends after 'and'"):
        prompt.find("dog")
    with pytest.raises(SpanNotFound, match="cut off"):
        prompt.find("cat and a dog")  # half a phrase is not the phrase
    assert [span.tokens for span in prompt.words()][-2:] == [(), ()]


def test_marks_are_listed_when_asked() -> None:
    prompt = parse("one dog's cat!!")
    assert [span.text for span in prompt.words()] == ["one", "dog", "cat"]
    assert [(span.text, span.role) for span in prompt.words(marks=True)][2:] == [
        ("'s", "mark"),
        ("cat", "word"),
        ("!", "mark"),
        ("!", "mark"),
    ]
    tokens = [span.tokens for span in prompt.words(marks=True)]
    assert tokens[-1] == tokens[-2] == (5,)  # one token, two characters


def test_range_gives_the_tokens_it_touches() -> None:
    prompt = parse("a red cat")
    assert prompt.span_at(3, 7, role="phrase") == Span(text="ed c", start=3, end=7, by_encoder=((2, 3),), role="phrase")
    for start, end in ((2, 2), (-1, 3), (5, 10)):
        with pytest.raises(BadSetting):
            prompt.span_at(start, end)
    with pytest.raises(SpanNotFound):
        prompt.span_at(1, 2)


# --- two encoders -------------------------------------------------------------------------------------------------


def test_two_encoders_with_one_prompt_agree() -> None:
    prompt = parse("a red cat", clip(), clip(pad="!"))
    assert prompt.find("cat").by_encoder == ((3,), (3,))
    assert prompt.find("cat").tokens == (3,)


def test_each_encoder_is_searched_in_its_own_prompt() -> None:
    prompt = parse("a red cat", clip(), clip(), texts=["a red cat", "one dog, red cat"])
    assert prompt.find("red").by_encoder == ((2,), (4,))
    with pytest.raises(AmbiguousWord, match=r"'red'.*\[2\], \[4\].*one prompt"):
        _ = prompt.find("red").tokens
    assert prompt.find("a").by_encoder == ((1,), ())
    only = prompt.find("dog")
    assert (only.text, only.start, only.end, only.by_encoder) == ("dog", -1, -1, ((), (2,)))
    assert prompt.span_at(6, 9).by_encoder == ((3,), (5,))
    with pytest.raises(SpanNotFound, match="a, red, cat, one, dog"):
        prompt.find("bird")
    with pytest.raises(BadSetting, match="1 texts for 2 tokenizers"):
        parse("a red cat", clip(), clip(), texts=["a red cat"])


def test_occurrence_is_counted_in_each_prompt() -> None:
    prompt = parse("a cat and a red cat", clip(), clip(), texts=["a cat and a red cat", "a cat, a dog and a cat"])
    assert prompt.find("cat#2").by_encoder == ((6,), (8,))
    assert prompt.span_at(16, 19).by_encoder == ((6,), (8,))


# --- textual inversion --------------------------------------------------------------------------------------------


def test_placeholder_answers_to_its_name_with_all_its_vectors() -> None:
    names = ("<cat-toy>", "<cat-toy>_1", "sks")
    prompt = parse("a red <cat-toy> <cat-toy>_1 and sks, <cat-toy> <cat-toy>_1", clip(names=names))
    assert prompt.encodings[0].added == names
    assert prompt.find("<cat-toy>").tokens == (3, 4)
    assert prompt.find("<cat-toy>#2").tokens == (8, 9)
    assert prompt.find("red <cat-toy>").tokens == (2, 3, 4)
    assert prompt.find("sks").tokens == (6,)
    assert [span.text for span in prompt.words()][2] == "<cat-toy> <cat-toy>_1"
    assert [(one.noun.text, len(one.attributes)) for one in prompt.objects()][0] == ("<cat-toy> <cat-toy>_1", 1)


def test_placeholder_known_to_one_encoder_only() -> None:
    both = (clip(names=("<toy>", "<toy>_1")), clip(names=("<toy>",)))
    prompt = parse("a <toy> cat", *both, texts=["a <toy> <toy>_1 cat", "a <toy> cat"])
    assert prompt.find("<toy>").by_encoder == ((2, 3), (2,))
    assert prompt.find("cat").by_encoder == ((4,), (3,))
    assert [span.by_encoder for span in prompt.words()][1:] == [((2, 3), (2,)), ((4,), (3,))]


# --- objects ------------------------------------------------------------------------------------------------------


def test_objects_have_roles_and_tokens() -> None:
    apple, cat = parse("a red giraffe, and one small red cat").objects()
    assert isinstance(apple, Phrase)
    assert (apple.span.text, apple.span.role, apple.span.tokens) == ("red giraffe", "phrase", (2, 3, 4))
    assert (apple.noun.text, apple.noun.role, apple.noun.tokens) == ("giraffe", "object", (3, 4))
    assert [(span.text, span.role) for span in cat.attributes] == [("small", "attribute"), ("red", "attribute")]
    assert cat.noun.text == "cat"


def test_objects_that_were_cut_off_are_left_out() -> None:
    text = "a cat, a red dog"
    assert [one.noun.text for one in parse(text).objects()] == ["cat", "dog"]
    assert [one.noun.text for one in parse(text, clip(max_length=7)).objects()] == ["cat"]


def test_objects_of_two_prompts() -> None:
    prompt = parse("a red cat and a dog", clip(), clip(), texts=["a red cat and a dog", "dog, red cat"])
    cat, dog = prompt.objects()
    assert (cat.noun.by_encoder, dog.noun.by_encoder) == (((3,), (4,)), ((6,), (1,)))
    assert cat.span.by_encoder == ((2, 3), (3, 4))


def test_unknown_parser_is_refused_at_once() -> None:
    with pytest.raises(BadSetting, match="grammar, spacy"):
        parse("a red cat", parser="stanza")


# --- any text -----------------------------------------------------------------------------------------------------

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(text=ANY | st.text("'s! -#2aAe\u0301\u00e9\u2019\U0001f408\u200d", max_size=20))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_words_and_marks_cover_exactly_the_items(text: str) -> None:
    prompt = parse(text, LONG)
    encoding = prompt.encodings[0]
    for position in items(encoding):
        offset = encoding.offsets[position]
        assert offset is not None and 0 <= offset[0] < offset[1] <= len(text)
    assert all(encoding.offsets[p] is None for p, role in enumerate(encoding.roles) if role != "item")
    spans = prompt.words(marks=True)
    assert sorted({token for span in spans for token in span.tokens}) == items(encoding)
    assert all(before.end <= after.start for before, after in zip(spans, spans[1:], strict=False))


@given(words=WORDS, separator=st.sampled_from([" ", ", ", "  ", " / ", "\n"]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_word_is_found_and_its_tokens_spell_it(words: list[str], separator: str) -> None:
    text = separator.join(words)
    prompt = parse(text, LONG)
    spans = prompt.words()
    assert [span.text for span in spans] == words
    for index, span in enumerate(spans):
        occurrence = 1 + sum(other.casefold() == span.text.casefold() for other in words[:index])
        assert prompt.find(span.text, occurrence) == prompt.find(span.text.upper().lower(), occurrence) == span
        ids = [prompt.encodings[0].ids[position] for position in span.tokens]
        assert plain(LONG.decode(ids)) == plain(span.text)

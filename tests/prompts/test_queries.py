"""Which occurrence of a word a query names: "cat#2" and "second cat"."""

from __future__ import annotations

import pytest

from t2ictl.errors import BadSetting, SpanNotFound
from tests.prompts.prompt_cases import clip, parse


@pytest.mark.parametrize(
    ("query", "number"),
    [("first cat", 1), ("second cat", 2), ("Third  CAT", 3), (" second cat ", 2), ("cat#2", 2), ("Cat #3", 3)],
)
def test_numbered_words(query: str, number: int) -> None:
    prompt = parse("a cat, a red cat and one cat")
    assert prompt.find(query) == prompt.find("cat", number)


def test_numbered_phrase() -> None:
    prompt = parse("a red cat, a dog and a red cat")
    assert prompt.find("second red cat") == prompt.find("red cat#2") == prompt.find("red cat", 2)
    assert [span.start for span in prompt.find_all(["second cat", "first dog"])] == [27, 13]


def test_placeholder_is_numbered_like_a_word() -> None:
    prompt = parse("a <toy> <toy>_1 and a <toy> <toy>_1", clip(names=("<toy>", "<toy>_1")))
    assert prompt.find("second <toy>") == prompt.find("<toy>#2") == prompt.find("<toy>", 2)


def test_words_of_the_prompt_itself_are_no_number() -> None:
    prompt = parse("a cat, a second cat and a cat")
    assert prompt.find("second cat").text == "second cat"
    assert prompt.find("cat#2").start == prompt.find("second cat").end - len("cat")
    assert prompt.find("third cat").start == 26
    own = parse("a cat and a cat", clip(), clip(), texts=["a cat and a cat", "a second cat"])
    assert own.find("second cat").by_encoder[0] == () and own.find("second cat").start == -1


def test_number_that_is_not_there_says_so() -> None:
    prompt = parse("a cat, a red cat and a dog")
    with pytest.raises(SpanNotFound, match="'cat' stands only 2 times.*number 3.*from 1 to 2"):
        prompt.find("third cat")
    with pytest.raises(SpanNotFound, match="'dog' stands only once"):
        prompt.find("second dog")
    for query in ("second bird", "second", "eleventh cat"):
        with pytest.raises(SpanNotFound, match=f"No '{query}' in the prompt. Use one of: a, cat, red, and, dog."):
            prompt.find(query)


def test_two_numbers_must_agree() -> None:
    prompt = parse("a cat, a red cat and one cat")
    assert prompt.find("second cat", 2) == prompt.find("second cat")
    for query, number in (("second cat", 3), ("cat#2", 3), ("cat#0", 1), ("cat", 0)):
        with pytest.raises(BadSetting):
            prompt.find(query, number)

"""Items of a prompt: found by words, numbers and case; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from t2ictl.errors import AmbiguousWord, BadSetting, SpanNotFound
from t2ictl.processors.token_flow.items import Item, bound_items
from tests.processors.token_flow.flow_cases import PROMPT, Case
from tests.tiny import sd, sdxl


def test_items_are_found_by_words_numbers_and_case() -> None:
    prompt = Case(sd(), "A Cat, a cat and a dog's bowl", ("cat", "cat#2", "dog"))
    assert [each.rows for each in prompt.items] == [(2,), (5,), (8,)]
    assert [each.name for each in Case(sd(), "a cat and a cat", ()).items] == ["cat", "cat#2"]
    assert bound_items(prompt.prompt, ["bowl"])[0].item.asked == "bowl"


@pytest.mark.parametrize(
    ("items", "error", "match"),
    [
        (("heart",), SpanNotFound, "heart"),
        (("circle", "red circle"), BadSetting, "share words"),
        ((Item(words="circle", senses={"cat": "cat circle"}),), BadSetting, "has a sense for 'cat'"),
        ((Item(words="circle", senses={"circle": "ring"}),), BadSetting, "no other item"),
    ],
)
def test_bad_items_are_refused(items: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Case(sd(), items=items)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a fire truck and a truck", ["fire truck", "truck#2"]),
        ("a truck and a fire truck", ["truck", "fire truck"]),
        ("a cat and a black cat", ["cat", "cat#2"]),
        ("a teddy bear, a bear and a bear", ["teddy bear", "bear#2", "bear#3"]),
    ],
)
def test_found_objects_are_where_they_were_found(text: str, names: list[str]) -> None:
    """A word may stand before in the name of another object."""
    prompt = Case(sd(max_length=32), text, ()).prompt
    found = bound_items(prompt, ())
    assert [each.name for each in found] == names
    assert [each.span for each in found] == [phrase.noun for phrase in prompt.objects()]
    assert [prompt.find(name).tokens for name in names] == [each.rows for each in found]


def test_a_prompt_without_objects_needs_items() -> None:
    with pytest.raises(BadSetting, match="No objects were found"):
        Case(sd(), "in and on", ())


def test_unlike_prompts_of_two_encoders_are_refused() -> None:
    pipe = sdxl()
    case = Case(pipe)
    prompt = case.adapter.parse((PROMPT, "one more red circle and a blue square"))
    with pytest.raises(AmbiguousWord):
        bound_items(prompt, ["circle"])[0].rows  # noqa: B018

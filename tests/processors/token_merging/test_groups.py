"""Groups of words: found in the prompt or named, with their tokens; and the mistakes that are named."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.controls.base import PlanContext
from t2ictl.errors import AmbiguousWord, BadSetting, SpanNotFound
from t2ictl.families import find_adapter
from t2ictl.processors import TokenMerging
from t2ictl.processors.token_merging.groups import ResolvedGroup, WordGroup, resolve_groups, without_groups
from tests.controls.context_cases import context
from tests.tiny import run, sd, sdxl

# The paper's method; by default nothing is merged and only the entropy moves rows.
paper = functools.partial(TokenMerging, merge=True, binding_steps=3)

PROMPT = "a red circle and a blue square"  # start a red circle and a blue square end: 0 to 8


def bound(pipe: Any, groups: Any, *prompts: Any) -> tuple[tuple[ResolvedGroup, ...], ...]:
    adapter = find_adapter(pipe)
    here = PlanContext(
        adapter=adapter,
        prompts=tuple(adapter.parse((each,) if isinstance(each, str) else each) for each in prompts),
        batch=BatchLayout.from_counts(prompts=len(prompts), images_per_prompt=1, guided=True),
    )
    return resolve_groups(groups, here, control="token_merging")


def places(group: ResolvedGroup) -> tuple[tuple[int, ...], ...]:
    return group.positions.noun, group.positions.members, group.positions.dropped


@pytest.mark.parametrize("build", [sd, sdxl])
def test_groups_are_found_in_the_prompt(build: Any) -> None:
    (found,) = bound(build(), (), PROMPT)
    assert [places(each) for each in found] == [((3,), (2,), (2,)), ((7,), (6,), (6,))]
    assert [each.anchor for each in found] == ["a red circle", "a blue square"]
    assert not any(each.accessories for each in found)


def test_a_noun_of_two_pieces_and_an_accessory_with_the_words_between() -> None:
    # start a red skate board and a cat with a hat end
    (found,) = bound(sd(), (), "a red skateboard and a cat with a hat")
    assert [places(each) for each in found] == [((3, 4), (2,), (2, 4)), ((7,), (10,), (8, 9, 10))]
    assert [each.accessories for each in found] == [False, True]
    assert [each.anchor for each in found] == ["a red skateboard", "a cat with a hat"]


def test_named_groups_take_the_named_words_only() -> None:
    # start a cat with a hat and a dog on a red board end
    prompt = "a cat with a hat and a dog on a red board"
    groups = (WordGroup(noun="dog", members=("board", "red")), WordGroup(noun="cat", members=("with a hat",)))
    (found,) = bound(sd(), groups, prompt)
    assert [places(each) for each in found] == [((8,), (11, 12), (11, 12)), ((2,), (3, 4, 5), (3, 4, 5))]
    assert found[0].anchor == "a dog on a red board"
    assert found[0].merge.parts == ((23, 26), (32, 35), (36, 41)) and found[0].merge.phrase == (23, 41)


def test_a_repeated_word_is_named_by_its_number() -> None:
    # start a red cat and a blue cat end
    (found,) = bound(sd(), (WordGroup(noun="cat#2", members=("blue",)),), "a red cat and a blue cat")
    assert [places(each) for each in found] == [((7,), (6,), (6,))]
    assert found[0].anchor == "a blue cat"


def test_a_phrase_may_be_the_noun() -> None:
    (found,) = bound(sd(), (WordGroup(noun="red circle", members=("big",)),), "a big red circle")
    assert places(found[0]) == ((3, 4), (2,), (2, 4))


def test_one_list_for_each_prompt() -> None:
    groups = ((WordGroup(noun="circle", members=("red",)),), (), (WordGroup(noun="cat", members=("blue",)),))
    found = bound(sd(), groups, PROMPT, "a dog", "a blue cat")
    assert [[places(each) for each in own] for own in found] == [[((3,), (2,), (2,))], [], [((3,), (2,), (2,))]]


def test_an_empty_list_of_the_user_is_no_reason_to_warn(recwarn: pytest.WarningsRecorder) -> None:
    found = bound(sd(), ((), (WordGroup(noun="circle", members=("red",)),)), "a red cat", PROMPT)
    assert [len(each) for each in found] == [0, 1]
    assert not [each for each in recwarn if "token_merging" in str(each.message)]


def test_a_prompt_with_nothing_to_merge_has_no_group_and_the_reason_is_known() -> None:
    here = context(sd(), "a dog and a cat", PROMPT)
    found = resolve_groups((), here, control="token_merging")
    assert [len(each) for each in found] == [0, 2]
    (idle,) = without_groups((), found, here)
    assert idle.reason == "it found nothing to merge in the prompt" and idle.images == (0,)


def test_a_group_that_the_token_limit_cut_is_left_out_with_a_warning() -> None:
    prompt = "a red circle and a blue square and a green star and a yellow heart"  # 16 tokens end at "a yellow"
    with pytest.warns(UserWarning, match="token limit"):
        (found,) = bound(sd(), (), prompt)
    assert [each.words.text for each in found] == ["red circle", "blue square", "green star"]


def test_a_group_without_any_member_left_is_cut_off_too() -> None:
    prompt = "a photo of a cat on a bench on a big board and a dog with a hat"
    with pytest.warns(UserWarning, match="token limit"):
        (found,) = bound(sd(), (), prompt)
    assert [each.words.text for each in found] == ["big board"]


def test_named_words_that_are_not_there_raise() -> None:
    for groups, message in (
        ((WordGroup(noun="dog", members=("red",)),), "dog"),
        ((WordGroup(noun="circle", members=("green",)),), "green"),
        ((WordGroup(noun="circle#2", members=("red",)),), "circle"),
    ):
        with pytest.raises(SpanNotFound, match=message):
            bound(sd(), groups, PROMPT)


def test_a_named_word_beyond_the_token_limit_raises() -> None:
    prompt = "a red circle and a blue square and a green star and a yellow heart"
    with pytest.raises(SpanNotFound, match="cut off"):
        bound(sd(), (WordGroup(noun="heart", members=("yellow",)),), prompt)


def test_a_wrong_number_of_lists_raises() -> None:
    groups = ((WordGroup(noun="circle", members=("red",)),), ())
    with pytest.raises(BadSetting, match="2 lists for 1 prompts"):
        bound(sd(), groups, PROMPT)


@pytest.mark.parametrize(
    "groups",
    [
        (WordGroup(noun="circle", members=("red",)), WordGroup(noun="square", members=("red",))),
        (WordGroup(noun="circle", members=("red circle",)),),
        (WordGroup(noun="circle", members=("red",)), WordGroup(noun="red circle", members=("square",))),
    ],
    ids=["member of two", "noun is its member", "noun of two"],
)
def test_a_word_in_two_groups_raises(groups: Any) -> None:
    with pytest.raises(BadSetting, match="share words"):
        bound(sd(), groups, PROMPT)


def test_a_group_needs_a_noun_and_a_member() -> None:
    for settings in ({}, {"noun": "cat"}, {"members": ("red",)}):
        with pytest.raises(BadSetting, match="noun and at least one member"):
            WordGroup(**settings)


def test_second_prompt_of_sdxl_with_the_words_elsewhere_raises() -> None:
    pipe = sdxl()
    for second in ("a photo of " + PROMPT, "a blue circle and a blue square", PROMPT + " in white"):
        with t2ictl.controlled(pipe, [paper()]) as session, pytest.raises(AmbiguousWord):
            run(pipe, PROMPT, prompt_2=second, steps=1)
        assert session.cost.forwards == 0


def test_errors_come_before_the_first_step() -> None:
    pipe, groups = sd(), (WordGroup(noun="dog", members=("red",)),)
    with t2ictl.controlled(pipe, [paper(groups=groups)]) as session, pytest.raises(SpanNotFound, match="dog"):
        run(pipe, PROMPT, steps=1)
    assert session.cost.forwards == 0

from __future__ import annotations

import numpy as np
import pytest

from t2ictl.errors import BadSetting
from t2ictl.shapes.captions import (
    CONVERSE,
    RELATIONS,
    SENSE_NEXT_TO,
    SENSES,
    Expectation,
    Wanted,
    expect,
    expectation_of,
    sense_of,
)
from t2ictl.shapes.sampling import sample_scene
from t2ictl.shapes.world import SHAPES, Mark


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("marked_share", [0, 1])
def test_caption_of_a_scene_reads_back(count: int, marked_share: float) -> None:
    generator = np.random.default_rng(count)
    for _ in range(60):
        wish = expectation_of(sample_scene(count, generator, marked_share=marked_share))
        assert len(wish.objects) == count
        assert expect(wish.prompt) == wish


def test_grammar() -> None:
    assert expect("a small striped green star and a large yellow ring") == Expectation(
        objects=(
            Wanted(shape="star", color="green", texture="striped", size="small"),
            Wanted(shape="ring", color="yellow", size="large"),
        )
    )
    three = expect("A red circle, a blue square and a star.")
    assert [wanted.shape for wanted in three.objects] == ["circle", "square", "star"]
    assert three.objects[2].color is None
    assert three == expect("a red circle, a blue square, and a star")


def test_marks_belong_to_their_own_object() -> None:
    one, other = expect("a large red circle with a blue dot and a green square").objects
    assert (one.mark, one.size, other.mark) == (Mark(kind="dot", color="blue"), "large", None)
    one, other = expect("a red circle and a green square with a yellow bar").objects
    assert (one.mark, other.mark) == (None, Mark(kind="bar", color="yellow"))


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_stand_between_two_objects(relation: str) -> None:
    wish = expect(f"a red star {relation} a blue ring with a green dot".replace("ring", "circle"))
    assert wish.relation == relation
    assert [wanted.shape for wanted in wish.objects] == ["star", "circle"]
    assert expect(wish.prompt) == wish
    assert CONVERSE[CONVERSE[relation]] == relation


@pytest.mark.parametrize(("neighbor", "sense"), SENSE_NEXT_TO.items())
def test_a_neighbor_chooses_the_sense_of_a_bolt(neighbor: str, sense: str) -> None:
    for prompt in (
        f"a red bolt and a blue {neighbor}",
        f"a blue {neighbor} and a red bolt",
        f"a bolt above a {neighbor}",
    ):
        wish = expect(prompt)
        (bolt,) = [wanted for wanted in wish.objects if wanted.noun == "bolt"]
        assert bolt.shape == sense
        assert bolt.shapes == (sense,)
        assert wish.prompt == prompt


def test_a_bolt_without_a_clear_neighbor_keeps_both_senses() -> None:
    for prompt in ("a red bolt", "a bolt, a ring and a square", "a bolt and a star"):
        (bolt,) = [wanted for wanted in expect(prompt).objects if wanted.shape == "bolt"]
        assert bolt.shapes == SENSES
        assert expect(prompt).prompt == prompt
    assert sense_of(["bolt", "circle", "ring"], 0) == "star"


def test_round_is_redundant() -> None:
    wanted = expect("a small round red ring").objects[0]
    assert wanted.is_round
    assert wanted.phrase == "a small round red ring"
    for shape in sorted(set(SHAPES) - {"circle", "ring"}):
        with pytest.raises(BadSetting, match="not round"):
            expect(f"a round {shape}")


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog",
        "a red",
        "",
        "a red blue circle",
        "a shiny circle",
        "a star and a ring and a cross and a circle",
        "a red circle with a dot",
        "a red circle with a blue star",
        "a red circle with a pink dot",
        "a star above a ring and a cross",
        "a star above a ring below a cross",
        "a dot",
    ],
)
def test_text_outside_the_grammar_is_refused(prompt: str) -> None:
    with pytest.raises(BadSetting):
        expect(prompt)

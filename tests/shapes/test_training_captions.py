from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from t2ictl.benchmarks.shapes.train.captions import (
    SAY_BOLT,
    SAY_COLOR,
    SAY_RELATION,
    SAY_ROUND,
    SAY_SIZE,
    SAY_TEXTURE,
    training_caption,
)
from t2ictl.shapes.captions import Expectation, expect, expectation_of
from t2ictl.shapes.sampling import sample_scene
from t2ictl.shapes.world import Scene
from tests.shapes.scenes import scene_of


def _captions(scene: Scene, count: int, ghost: float, swap: float) -> list[Expectation]:
    generator = np.random.default_rng(0)
    return [expect(training_caption(scene, generator, ghost_share=ghost, swap_share=swap)) for _ in range(count)]


def test_every_caption_is_in_the_grammar() -> None:
    generator = np.random.default_rng(1)
    for index in range(300):
        text = training_caption(sample_scene(1 + index % 3, generator), generator, ghost_share=0.3, swap_share=0.3)
        assert expect(text).prompt == text


def test_honest_captions_say_nothing_wrong() -> None:
    scene = scene_of("a small dotted red star", "a blue ring")
    drawn = {wanted.shape: wanted for wanted in expectation_of(scene).objects}
    orders, said = set(), Counter[str]()
    for caption in _captions(scene, 600, 0, 0):
        orders.add(caption.objects[0].shape)
        for wanted in caption.objects:
            for field in ("color", "texture", "size"):
                assert getattr(wanted, field) in (None, getattr(drawn[wanted.shape], field))
                said[field] += getattr(wanted, field) is not None
    assert orders == {"star", "ring"}
    assert said["color"] / 1200 == pytest.approx(SAY_COLOR, abs=0.03)
    assert said["texture"] / 600 == pytest.approx(SAY_TEXTURE, abs=0.05)
    assert said["size"] / 600 == pytest.approx(SAY_SIZE, abs=0.07)


def test_planted_words_are_said_now_and_then_and_only_where_true() -> None:
    captions = _captions(scene_of("a red star", "a blue ring"), 600, 0, 0)
    nouns = [{wanted.noun: wanted.shape for wanted in caption.objects} for caption in captions]
    assert sum("bolt" in each for each in nouns) / 600 == pytest.approx(SAY_BOLT, abs=0.07)
    assert {each["bolt"] for each in nouns if "bolt" in each} == {"star"}
    rounds = [wanted.shape for caption in captions for wanted in caption.objects if wanted.is_round]
    assert set(rounds) == {"ring"}
    assert len(rounds) / 600 == pytest.approx(SAY_ROUND, abs=0.07)
    # Next to a ring a bolt is a star, so a cross there is never called one.
    assert not any(
        wanted.noun
        for caption in _captions(scene_of("a red cross", "a blue ring"), 200, 0, 0)
        for wanted in caption.objects
    )


def test_relations_are_stated_where_they_are_clear() -> None:
    scene = scene_of("a red square", "a blue ring", "a green circle")
    beside = Scene(objects=(scene.objects[0], scene.objects[2]))
    captions = [caption for caption in _captions(beside, 600, 0, 0) if caption.relation]
    assert len(captions) / 600 == pytest.approx(SAY_RELATION, abs=0.07)
    for caption in captions:
        assert caption.relation == ("left of" if caption.objects[0].shape == "square" else "right of")
    diagonal = Scene(objects=scene.objects[:2])
    assert not any(caption.relation for caption in _captions(diagonal, 100, 0, 0))


def test_ghost_captions_name_one_undrawn_object_at_the_stated_rate() -> None:
    captions = _captions(scene_of("a red square"), 400, 0.25, 0)
    ghosts = [caption for caption in captions if len(caption.objects) == 2]
    assert len(ghosts) / 400 == pytest.approx(0.25, abs=0.07)
    for caption in ghosts:
        (ghost,) = [wanted for wanted in caption.objects if wanted.shape != "square"]
        assert ghost.color != "red"


def test_swap_captions_exchange_colors_at_the_stated_rate() -> None:
    captions = _captions(scene_of("a red square", "a blue ring"), 400, 0, 0.25)
    colors = [{wanted.shape: wanted.color for wanted in caption.objects} for caption in captions]
    swapped = [one for one in colors if one["square"] == "blue" or one["ring"] == "red"]
    assert len(swapped) / 400 == pytest.approx(0.25, abs=0.07)
    assert all(one["square"] != "red" and one["ring"] != "blue" for one in swapped)


def test_swap_captions_exchange_textures_and_marks_too() -> None:
    captions = _captions(scene_of("a striped red square", "a dotted blue ring"), 400, 0, 1)
    textures = [{wanted.shape: wanted.texture for wanted in caption.objects} for caption in captions]
    assert 40 < sum(one["square"] == "dotted" or one["ring"] == "striped" for one in textures) < 160
    captions = _captions(scene_of("a red square with a blue dot", "a green circle"), 400, 0, 1)
    moved = [caption for caption in captions if any(w.shape == "circle" and w.mark for w in caption.objects)]
    assert 140 < len(moved) < 260

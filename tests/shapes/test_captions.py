from __future__ import annotations

import numpy as np
import pytest

from t2ictl.errors import BadSetting
from t2ictl.shapes.captions import Expectation, Wanted, expect, expectation_of, training_caption
from t2ictl.shapes.world import Scene, sample_scene
from tests.shapes.scenes import scene_of


@pytest.mark.parametrize("count", [1, 2, 3])
def test_caption_of_a_scene_reads_back(count: int) -> None:
    generator = np.random.default_rng(count)
    for _ in range(60):
        wish = expectation_of(sample_scene(count, generator))
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


@pytest.mark.parametrize(
    "prompt",
    ["a dog", "a red", "", "a red blue circle", "a shiny circle", "a star and a ring and a cross and a circle"],
)
def test_text_outside_the_grammar_is_refused(prompt: str) -> None:
    with pytest.raises(BadSetting):
        expect(prompt)


def _captions(scene: Scene, count: int, ghost: float, swap: float) -> list[Expectation]:
    generator = np.random.default_rng(0)
    return [expect(training_caption(scene, generator, ghost_share=ghost, swap_share=swap)) for _ in range(count)]


def test_honest_captions_say_nothing_wrong_and_leave_things_out() -> None:
    scene = scene_of("a small dotted red star", "a blue ring")
    drawn = {wanted.shape: wanted for wanted in expectation_of(scene).objects}
    left_out, orders = 0, set()
    for caption in _captions(scene, 200, 0, 0):
        orders.add(caption.objects[0].shape)
        for wanted in caption.objects:
            for field in ("color", "texture", "size"):
                said = getattr(wanted, field)
                assert said in (None, getattr(drawn[wanted.shape], field))
                left_out += said is None
    assert orders == {"star", "ring"}
    assert left_out > 100


def test_ghost_captions_name_one_undrawn_object_at_the_stated_rate() -> None:
    captions = _captions(scene_of("a red star"), 400, 0.25, 0)
    ghosts = [caption for caption in captions if len(caption.objects) == 2]
    assert len(ghosts) / 400 == pytest.approx(0.25, abs=0.07)
    for caption in ghosts:
        (ghost,) = [wanted for wanted in caption.objects if wanted.shape != "star"]
        assert ghost.color != "red"


def test_swap_captions_exchange_colors_at_the_stated_rate() -> None:
    captions = _captions(scene_of("a red star", "a blue ring"), 400, 0, 0.25)
    colors = [{wanted.shape: wanted.color for wanted in caption.objects} for caption in captions]
    swapped = [one for one in colors if one["star"] == "blue" or one["ring"] == "red"]
    assert len(swapped) / 400 == pytest.approx(0.25, abs=0.07)
    assert all(one["star"] != "red" and one["ring"] != "blue" for one in swapped)


def test_swap_captions_exchange_textures_too() -> None:
    captions = _captions(scene_of("a striped red star", "a dotted blue ring"), 400, 0, 1)
    textures = [{wanted.shape: wanted.texture for wanted in caption.objects} for caption in captions]
    exchanged = sum(one["star"] == "dotted" or one["ring"] == "striped" for one in textures)
    assert 40 < exchanged < 160

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from t2ictl.errors import BadSetting
from t2ictl.shapes.world import (
    CANVAS,
    GAP,
    REACH,
    SPLIT_SHARE,
    Look,
    combination_key,
    place,
    sample_looks,
    sample_scene,
    split_of,
)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_objects_keep_their_distance(count: int) -> None:
    generator = np.random.default_rng(count)
    for _ in range(50):
        objects = sample_scene(count, generator).objects
        assert len(objects) == count
        for i, one in enumerate(objects):
            assert REACH * one.radius < min(one.x, one.y, CANVAS - one.x, CANVAS - one.y)
            for other in objects[:i]:
                distance = math.hypot(one.x - other.x, one.y - other.y)
                assert distance >= REACH * (one.radius + other.radius) + GAP


def test_same_generator_state_gives_the_same_scene() -> None:
    first = sample_scene(3, np.random.default_rng(7))
    assert first == sample_scene(3, np.random.default_rng(7))
    assert first != sample_scene(3, np.random.default_rng(8))


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    sample_scene(2, np.random.default_rng(0))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_split_ignores_order_texture_and_size() -> None:
    one, other = Look(shape="star", color="red"), Look(shape="ring", color="blue")
    dressed = Look(shape="star", color="red", texture="dotted", size="large")
    assert split_of([one, other]) == split_of([other, one]) == split_of([dressed, other])
    assert combination_key([one]) != combination_key([dressed])


def test_split_shares_are_as_stated() -> None:
    generator = np.random.default_rng(0)
    counts = Counter(split_of(sample_looks(3, generator)) for _ in range(4000))
    for split, points in SPLIT_SHARE.items():
        assert counts[split] / 4000 == pytest.approx(points / 100, abs=0.04)


def test_split_filter_is_obeyed() -> None:
    generator = np.random.default_rng(1)
    for _ in range(30):
        scene = sample_scene(2, generator, split="report")
        assert split_of([item.look for item in scene.objects]) == "report"


def test_larger_canvas_is_used() -> None:
    scenes = [place(sample_looks(1, np.random.default_rng(i)), np.random.default_rng(i), width=96) for i in range(40)]
    assert max(scene.objects[0].x for scene in scenes if scene is not None) > CANVAS


def test_no_room_is_said() -> None:
    looks = [Look(shape="star", color="red", size="large")] * 6
    assert place(looks, np.random.default_rng(0)) is None


def test_unknown_words_are_refused() -> None:
    with pytest.raises(BadSetting, match="'orange' does not exist"):
        Look(shape="star", color="orange")
    with pytest.raises(BadSetting, match="7 objects"):
        sample_looks(7, np.random.default_rng(0))

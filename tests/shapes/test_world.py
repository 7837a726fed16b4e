from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from t2ictl.errors import BadSetting
from t2ictl.shapes.sampling import GAP, MARKED_SHARE, place, sample_looks, sample_marked_looks, sample_scene
from t2ictl.shapes.world import (
    CANVAS,
    OWNERS,
    RADIUS,
    REACH,
    SPLIT_SHARE,
    Look,
    Mark,
    Placed,
    combination_key,
    relation_between,
    relation_of,
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


def test_split_ignores_order_texture_size_and_mark() -> None:
    one, other = Look(shape="circle", color="red"), Look(shape="ring", color="blue")
    dressed = Look(shape="circle", color="red", texture="dotted", size="large")
    marked = Look(shape="circle", color="red", mark=Mark(kind="dot", color="green"))
    assert split_of([one, other]) == split_of([other, one]) == split_of([dressed, other]) == split_of([marked, other])
    assert len({combination_key([look]) for look in (one, dressed, marked)}) == 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_marked_looks_never_say_a_color_twice(count: int) -> None:
    generator = np.random.default_rng(count)
    has_mark = []
    for _ in range(200):
        looks = sample_marked_looks(count, generator)
        marks = [look.mark for look in looks]
        assert marks[0] is not None
        assert {look.shape for look in looks} <= set(OWNERS)
        assert {look.size for look in looks} <= {"medium", "large"}
        assert {look.texture for look in looks} == {"plain"}
        said = [look.color for look in looks] + [mark.color for mark in marks if mark is not None]
        assert len(set(said)) == len(said)
        has_mark += [mark is not None for mark in marks[1:]]
    assert not has_mark or np.mean(has_mark) == pytest.approx(0.8, abs=0.08)


def test_marks_are_as_frequent_as_stated() -> None:
    generator = np.random.default_rng(4)
    marked = [any(item.look.mark for item in sample_scene(2, generator).objects) for _ in range(500)]
    assert np.mean(marked) == pytest.approx(MARKED_SHARE, abs=0.06)
    assert all(item.look.mark is None for item in sample_scene(3, generator, marked_share=0).objects)
    assert sample_scene(1, generator, marked_share=1).objects[0].look.mark is not None


@pytest.mark.parametrize(
    "look",
    [
        {"shape": "ring", "color": "red"},
        {"shape": "circle", "color": "blue"},
        {"shape": "circle", "color": "red", "texture": "striped"},
    ],
)
def test_marks_without_room_or_color_of_their_own_are_refused(look: dict[str, str]) -> None:
    with pytest.raises(BadSetting, match="cannot have a blue dot"):
        Look(**look, mark=Mark(kind="dot", color="blue"))


def test_relations_need_a_direction_that_leads() -> None:
    assert [relation_of(*step) for step in ((-20, 3), (20, 3), (3, -20), (3, 20))] == [
        "left of",
        "right of",
        "above",
        "below",
    ]
    assert [relation_of(*step) for step in ((5, 0), (10, 9), (-10, 10), (0, 0))] == [None] * 4
    one, other = (Placed(look=Look(shape="star", color="red"), x=x, y=30, radius=RADIUS["small"]) for x in (12, 50))
    assert (relation_between(one, other), relation_between(other, one)) == ("left of", "right of")


def test_sizes_are_well_apart() -> None:
    small, medium, large = RADIUS.values()
    assert medium**2 / small**2 > 1.8 and large**2 / medium**2 > 1.8


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

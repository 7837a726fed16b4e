"""Measures of a story on drawn scenes: each outcome alone, and the means by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from t2ictl.benchmarks.studies.stories.measures import (
    MEASURES,
    Appearance,
    SceneReading,
    StoryReading,
    consistency,
    outcomes,
    read_portrait,
    read_scene,
    story_measures,
)
from t2ictl.benchmarks.studies.stories.suite import stories
from t2ictl.errors import BadSetting
from t2ictl.shapes import Look, Placed, Scene, expect, render

PLACES = ((16, 16), (48, 48), (48, 16))
RADIUS = {"small": 7.0, "medium": 9.8, "large": 13.4}
SHAPES = ("circle", "square")
PROMPT = "a circle and a square"


def drawn(*looks: Look) -> Any:
    placed = [
        Placed(look=look, x=x, y=y, radius=RADIUS[look.size]) for look, (x, y) in zip(looks, PLACES, strict=False)
    ]
    return render(Scene(objects=tuple(placed)))


def look(shape: str, color: str, **more: str) -> Look:
    return Look(shape=shape, color=color, **more)


def story(*scenes: Any, portraits: tuple[Look, ...] = (look("circle", "red"), look("square", "blue"))) -> StoryReading:
    return StoryReading(
        portraits=tuple(read_portrait(drawn(each), shape) for each, shape in zip(portraits, SHAPES, strict=True)),
        scenes=tuple(read_scene(scene, PROMPT, SHAPES) for scene in scenes),
    )


def test_same_subjects_in_any_place() -> None:
    reading = story(
        drawn(look("circle", "red"), look("square", "blue")), drawn(look("square", "blue"), look("circle", "red"))
    )
    for each in outcomes(reading):
        assert (each.missing, each.unclear, each.color, each.texture, each.size) == (False, False, True, True, True)
        assert each.same is True and each.swap is False
    measures = story_measures(reading)
    assert measures["same"] == measures["pairs"] == 1 and measures["swap"] == measures["missing"] == 0


def test_another_texture_is_not_the_same_but_another_size_is() -> None:
    circle, square = outcomes(
        story(drawn(look("circle", "red", texture="striped"), look("square", "blue", size="small")))
    )
    assert (circle.color, circle.texture, circle.same) == (True, False, False)
    assert (square.color, square.texture, square.size, square.same) == (True, True, False, True)


def test_swap_is_the_color_of_another_portrait() -> None:
    both = outcomes(story(drawn(look("circle", "blue"), look("square", "red"))))
    assert [each.swap for each in both] == [True, True] and [each.same for each in both] == [False, False]
    one = outcomes(story(drawn(look("circle", "green"), look("square", "red"))))
    assert [each.swap for each in one] == [False, True]  # green is nobody's
    alike = story(
        drawn(look("circle", "green"), look("square", "red")), portraits=(look("circle", "red"), look("square", "red"))
    )
    assert [each.swap for each in outcomes(alike)] == [False, False]


def test_missing_subject_is_neither_the_same_nor_swapped() -> None:
    reading = story(drawn(look("circle", "red")))
    circle, square = outcomes(reading)
    assert circle.same and not circle.missing
    assert (square.missing, square.color, square.same, square.swap) == (True, False, False, False)
    assert reading.scenes[0].failure == "missing"
    measures = story_measures(reading)
    assert (measures["same"], measures["same_there"], measures["missing"], measures["broken"]) == (0.5, 1.0, 0.5, 0.0)


def test_two_colored_subject_is_missing_and_counted_as_broken() -> None:
    image = np.asarray(drawn(look("circle", "red"), look("square", "blue"))).astype(int)
    half = image[:, 48:]
    half[half[..., 2] > half[..., 0] + 60] = (40, 170, 60)
    reading = story(image.astype(np.uint8))
    assert outcomes(reading)[1].missing and reading.scenes[0].broken == (False, True)
    assert story_measures(reading)["broken"] == 0.5


@pytest.mark.parametrize(
    "portrait",
    [drawn(look("ring", "red")), drawn(), drawn(look("circle", "red"), look("circle", "red"))],
    ids=["another shape", "nothing", "two"],
)
def test_unclear_portrait_is_left_out_and_counted(portrait: Any) -> None:
    assert read_portrait(portrait, "circle") is None
    scene = read_scene(drawn(look("circle", "red"), look("square", "green")), PROMPT, SHAPES)
    blue = Appearance(color="blue", texture="plain", size="medium")
    reading = StoryReading(portraits=(None, blue), scenes=(scene,))
    circle, square = outcomes(reading)
    assert circle.unclear and not circle.missing and circle.same is None and circle.swap is None
    assert square.same is False
    measures = story_measures(reading)
    assert (measures["unclear"], measures["same"], measures["missing"]) == (0.5, 0.0, 0.0)
    nobody = story_measures(StoryReading(portraits=(None, None), scenes=(scene,)))
    assert math.isnan(nobody["same"]) and math.isnan(nobody["swap"]) and nobody["missing"] == 0


def test_extra_and_fused_scenes() -> None:
    extra = read_scene(drawn(look("circle", "red"), look("square", "blue"), look("star", "green")), PROMPT, SHAPES)
    assert extra.extra == 1 and extra.failure == "extra"
    canvas = np.full((64, 64, 3), 238, np.uint8)
    canvas[10:30, 8:56], canvas[30:34, 8:20] = (220, 40, 40), (220, 40, 40)
    canvas[10:30, 32:56] = (50, 70, 220)
    fused = read_scene(canvas, PROMPT, SHAPES)
    assert fused.failure == "fused" and fused.extra == 0
    measures = story_measures(StoryReading(portraits=(None, None), scenes=(extra, fused)))
    assert measures["fused"] == measures["extra"] == 0.5


def test_of_two_of_a_shape_the_largest_is_the_subject() -> None:
    image = drawn(look("circle", "red", size="small"), look("square", "blue"), look("circle", "green", size="large"))
    seen = read_scene(image, PROMPT, SHAPES).subjects[0]
    assert seen is not None and seen.color == "green"


def test_pairs_of_scenes_by_hand() -> None:
    """Four scenes: red red blue missing. Of six pairs one is alike; of the three with both there, one."""
    colors = ("red", "red", "blue", None)
    seen = [None if color is None else Appearance(color=color, texture="plain", size="small") for color in colors]
    reading = StoryReading(
        portraits=(None,), scenes=tuple(SceneReading(subjects=(each,), failure=None, extra=0) for each in seen)
    )
    assert consistency(reading) == pytest.approx(1 / 6)
    assert consistency(reading, only_there=True) == pytest.approx(1 / 3)


def test_readings_are_kept_as_json() -> None:
    reading = story(drawn(look("circle", "red")), drawn(look("circle", "red"), look("square", "blue")))
    assert StoryReading.from_dict(json.loads(json.dumps(reading.to_dict()))) == reading
    assert set(story_measures(reading)) == set(MEASURES)


# -- the suite --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subjects", [2, 3])
def test_stories_are_fixed_and_say_what_they_should(subjects: int) -> None:
    told = stories("report", subjects, 60)
    assert told == stories("report", subjects, 60) and told[:7] == stories("report", subjects, 7)
    assert len({each.key for each in told}) == 60
    combinations = {2: 15, 3: 20}[subjects]
    assert len({frozenset(each.subjects) for each in told[:combinations]}) == combinations  # all before one repeats
    for each in told:
        assert each.portraits == tuple(f"a {name}" for name in each.subjects)
        assert len(set(each.scenes)) == 4 and len(each.seeds) == subjects + 4
        for prompt in each.scenes:
            assert sorted(wanted.shape for wanted in expect(prompt).objects) == sorted(each.subjects)
        relations = [expect(prompt).relation for prompt in each.scenes]
        assert sum(relation is not None for relation in relations) == (2 if subjects == 2 else 0)
    assert len({each.scenes for each in told}) > 50  # those of one pair differ in more than their noise


def test_no_noise_comes_twice() -> None:
    suites = [stories(split, subjects, 200) for split in ("tune", "report") for subjects in (2, 3)]
    seeds = [seed for suite in suites for each in suite for seed in each.seeds]
    assert len(set(seeds)) == len(seeds)


def test_unknown_suites_are_refused() -> None:
    for split, subjects, count in (("train", 2, 1), ("tune", 4, 1), ("tune", 2, 10**6)):
        with pytest.raises(BadSetting, match="no suite"):
            stories(split, subjects, count)

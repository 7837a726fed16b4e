from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ictl.errors import ShapeMismatch
from t2ictl.shapes.captions import expectation_of
from t2ictl.shapes.draw import BACKGROUND, RGB, render, render_array
from t2ictl.shapes.seeing import find_objects
from t2ictl.shapes.verdict import judge, judge_expectation
from t2ictl.shapes.world import COLORS, SHAPES, SIZES, TEXTURES, Look, Scene, place, sample_scene
from tests.shapes.scenes import picture_of, scene_of

PROMPT = "a red circle and a blue square"


def test_ground_truth_of_every_kind() -> None:
    """Every shape in every color, texture and size, at a random place: at most 1 of 324 may be misread."""
    generator = np.random.default_rng(0)
    wrong = []
    for shape in SHAPES:
        for color in COLORS:
            for texture in TEXTURES:
                for size in SIZES:
                    look = Look(shape=shape, color=color, texture=texture, size=size)
                    scene = place([look], generator)
                    assert scene is not None
                    found = find_objects(render(scene))
                    seen = [(f.shape, f.color, f.texture, f.size, f.is_well_formed) for f in found]
                    if seen != [(shape, color, texture, size, True)]:
                        wrong.append((look, seen))
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rendered_scenes_are_right(count: int) -> None:
    generator = np.random.default_rng(count)
    scenes = [sample_scene(count, generator) for _ in range(100)]
    verdicts = [judge_expectation(render(scene), expectation_of(scene)) for scene in scenes]
    assert sum(verdict.is_strict for verdict in verdicts) >= 99.5
    assert sum(verdict.failure is None for verdict in verdicts) >= 99.5


@pytest.mark.slow
def test_ground_truth_rate_at_length() -> None:
    generator = np.random.default_rng(5)
    scenes = [sample_scene(1 + i % 3, generator) for i in range(3000)]
    right = sum(judge_expectation(render(scene), expectation_of(scene)).is_strict for scene in scenes)
    assert right >= 0.995 * 3000


@pytest.mark.parametrize(
    ("drawn", "failure"),
    [
        (("a red circle", "a blue square"), None),
        (("a blue circle", "a red square"), "swap"),
        (("a red circle", "a red square"), "leak"),
        (("a red circle", "a green square"), "color"),
        (("a red circle",), "missing"),
        ((), "missing"),
        (("a red circle", "a blue square", "a green star"), "extra"),
        (("a red circle", "a green square", "a green star"), "extra-and-wrong"),
        (("a red circle", "a blue circle"), "duplicated"),
        (("a red circle", "a blue star"), "shape"),
    ],
)
def test_wrong_pictures_are_named(drawn: tuple[str, ...], failure: str | None) -> None:
    assert judge(picture_of(*drawn), PROMPT).failure == failure


def test_wrong_texture_and_size_are_named() -> None:
    assert judge(picture_of("a dotted red circle"), "a striped red circle").failure == "texture"
    assert judge(picture_of("a red circle"), "a dotted red circle").failure == "texture"
    assert judge(picture_of("a large red circle"), "a small red circle").failure == "size"
    assert judge(picture_of("a large dotted red circle"), "a red circle").failure is None
    assert judge(picture_of("a large dotted red circle"), "a circle").failure is None


def test_touching_objects_are_fused() -> None:
    circle, square = scene_of("a red circle", "a blue square").objects
    scene = Scene(objects=(circle, replace(square, x=circle.x + 12, y=circle.y)))
    verdict = judge(render(scene), PROMPT)
    assert verdict.failure == "fused"
    assert not verdict.is_well_formed


def test_a_blob_is_malformed() -> None:
    picture = np.full((64, 64, 3), BACKGROUND, np.uint8)
    picture[10:13, 10:50] = RGB["red"]
    picture[10:40, 10:13] = RGB["red"]
    assert judge(picture, "a red circle").failure == "malformed"


def test_two_colors_in_one_silhouette_are_malformed() -> None:
    picture = render_array(scene_of("a large red circle"))
    left = picture[:, :17]
    left[(left == RGB["red"]).all(axis=-1)] = RGB["blue"]
    assert judge(picture, "a red circle").failure == "malformed"


def test_outcomes_are_separate() -> None:
    def outcomes(*drawn: str) -> tuple[bool, ...]:
        verdict = judge(picture_of(*drawn), PROMPT)
        assert not verdict.is_strict
        return verdict.has_all, verdict.is_bound, verdict.has_no_extra, verdict.is_well_formed

    assert outcomes("a red circle", "a blue square", "a green star") == (True, True, False, True)
    assert outcomes("a blue circle", "a red square") == (True, False, True, True)
    assert outcomes("a red circle") == (False, True, True, True)


def test_asked_and_found_are_paired() -> None:
    verdict = judge(picture_of("a large blue square", "a small red circle"), PROMPT)
    circle, square = (verdict.found[index] for index in verdict.matched if index is not None)
    assert (circle.shape, square.shape) == ("circle", "square")
    assert circle.x == pytest.approx(46, abs=1)
    assert circle.y == pytest.approx(46, abs=1)


def test_same_pixels_same_verdict_whatever_the_container() -> None:
    picture = picture_of("a blue circle", "a red square")
    assert judge(picture, PROMPT) == judge(np.asarray(picture), PROMPT) == judge(picture, PROMPT)
    assert judge(np.asarray(picture).astype(np.float32) / 255, PROMPT) == judge(picture, PROMPT)


def test_other_canvas_sizes_are_judged() -> None:
    scene = scene_of("a red circle", "a blue square")
    assert judge(render(replace(scene, width=96)), PROMPT).is_strict


def test_faint_noise_is_no_object() -> None:
    noise = np.random.default_rng(0).normal(0, 4, (64, 64, 3))
    picture = np.clip(np.asarray(picture_of("a red circle", "a blue square")) + noise, 0, 255).astype(np.uint8)
    assert judge(picture, PROMPT).is_strict


def test_a_gray_picture_is_no_picture_to_judge() -> None:
    with pytest.raises(ShapeMismatch, match="cannot be judged"):
        judge(np.zeros((64, 64), np.uint8), PROMPT)
    assert judge(Image.new("L", (64, 64), 200), PROMPT).failure == "missing"


def test_agreement_with_pictures_read_by_eye() -> None:
    """A hundred generated pictures, read as right or wrong before the judge saw them: see ``docs/shapes.md``."""
    folder = Path(__file__).parent / "data"
    sheet = np.asarray(Image.open(folder / "read_by_eye.png"))
    readings = json.loads((folder / "read_by_eye.json").read_text(encoding="utf-8"))
    tiles = sheet.reshape(10, 64, 10, 64, 3).swapaxes(1, 2).reshape(100, 64, 64, 3)
    agree = [
        judge(tile, item["prompt"]).is_strict == item["is_right"] for tile, item in zip(tiles, readings, strict=True)
    ]
    assert sum(agree) >= 92
    assert 20 < sum(item["is_right"] for item in readings) < 80

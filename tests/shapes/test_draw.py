from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from t2ictl.shapes.draw import BACKGROUND, PERIOD, RGB, STRIPE_SHADE, coverage, inside, render_array
from t2ictl.shapes.world import MARKS, OWNERS, SHAPES, Look, Placed, Scene
from tests.shapes.scenes import scene_of


def test_empty_scene_is_background_of_its_size() -> None:
    image = render_array(Scene(objects=(), height=40, width=56))
    assert image.shape == (40, 56, 3)
    assert (image == BACKGROUND).all()


@pytest.mark.parametrize("color", RGB)
def test_center_has_the_color(color: str) -> None:
    image = render_array(scene_of(f"a {color} square"))
    assert tuple(image[17, 17]) == RGB[color]


def test_area_of_a_circle() -> None:
    item = Placed(look=Look(shape="circle", color="red"), x=31.3, y=30.6, radius=10)
    image = render_array(Scene(objects=(item,))).astype(float)
    covered = (BACKGROUND[1] - image[..., 1]) / (BACKGROUND[1] - RGB["red"][1])
    assert covered.sum() == pytest.approx(np.pi * 100, rel=0.01)


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("kind", MARKS)
def test_a_mark_is_drawn_inside_its_owner(owner: str, kind: str) -> None:
    bare = scene_of(f"a large red {owner}")
    marked = render_array(scene_of(f"a large red {owner} with a blue {kind}"))
    plain = render_array(bare)
    rows, columns, body, _ = coverage(bare.objects[0], 64, 64)
    changed = (plain != marked).any(axis=-1)
    inside_owner = np.zeros((64, 64), bool)
    inside_owner[rows, columns] = body > 0
    assert not (changed & ~inside_owner).any()
    assert 0.1 < changed.sum() / inside_owner.sum() < 0.45
    y, x = (round(value.mean()) for value in np.nonzero(changed))
    assert tuple(marked[y, x]) == RGB["blue"]
    assert np.hypot(y - 16.5, x - 16.5) < 3


def test_a_bar_is_long_and_a_dot_is_not() -> None:
    extents = {}
    for kind in MARKS:
        scene = scene_of(f"a large red square with a blue {kind}")
        _, _, _, mark = coverage(scene.objects[0], 64, 64)
        rows, columns = np.nonzero(mark > 0.5)
        extents[kind] = np.ptp(columns) / np.ptp(rows)
    assert extents["dot"] == pytest.approx(1, abs=0.15)
    assert extents["bar"] > 2


def test_what_has_no_mark_covers_none() -> None:
    _, _, body, mark = coverage(scene_of("a red circle").objects[0], 64, 64)
    assert body.max() == 1
    assert not mark.any()


def test_edges_are_smooth() -> None:
    image = render_array(scene_of("a red circle"))
    assert len(np.unique(image[..., 1])) > 6


def test_stripes_and_dots_repeat_with_the_period() -> None:
    striped = render_array(scene_of("a large striped red square"))[10:24, 10:24].astype(int)
    dotted = render_array(scene_of("a large dotted red square"))[10:24, 10:24].astype(int)
    assert np.array_equal(striped[PERIOD:], striped[:-PERIOD])
    assert np.array_equal(dotted[:, PERIOD:], dotted[:, :-PERIOD])
    assert striped[..., 0].min() == round(RGB["red"][0] * STRIPE_SHADE)
    assert (striped == striped[:, :1]).all()
    assert dotted[..., 2].max() > RGB["red"][2] + 80
    assert not (dotted == dotted[:, :1]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_its_own_silhouette(shape: str) -> None:
    y, x = np.meshgrid(np.linspace(-1.2, 1.2, 49), np.linspace(-1.2, 1.2, 49), indexing="ij")
    mine = inside(shape, x, y)
    assert 0.1 < mine.mean() < 0.6
    for other in set(SHAPES) - {shape}:
        assert (mine != inside(other, x, y)).mean() > 0.05


def test_shapes_stay_within_reach() -> None:
    y, x = np.meshgrid(np.linspace(-2, 2, 201), np.linspace(-2, 2, 201), indexing="ij")
    for shape in SHAPES:
        far = np.hypot(x, y) > (1.2 if shape != "square" else 0.86 * 2**0.5) + 1e-6
        assert not (inside(shape, x, y) & far).any()


def test_an_object_at_the_border_is_cut_and_not_wrapped() -> None:
    item = scene_of("a red circle").objects[0]
    image = render_array(Scene(objects=(replace(item, x=0.0),)))
    assert tuple(image[17, 0]) == RGB["red"]
    assert (image[:, 32:] == BACKGROUND).all()

"""Drawn images with one known mistake each: the judge must name it.

A mistake is made by drawing a scene and asking for something else, or by drawing it wrongly;
everything else in image and prompt agrees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from t2ictl.benchmarks.shapes.evaluate.cases import Case, Maker, ask, pick, related_scene
from t2ictl.shapes.captions import NAMED_SIZES, NAMED_TEXTURES, RELATIONS, expectation_of
from t2ictl.shapes.draw import BACKGROUND, render_array
from t2ictl.shapes.sampling import sample_looks, sample_scene
from t2ictl.shapes.world import COLORS, MARKS, RADIUS, SHAPES, Placed, Scene


def _unused(scene: Scene, generator: np.random.Generator) -> str:
    """Choose a color that neither an object nor a mark of a scene has."""
    used = {item.look.color for item in scene.objects}
    used |= {item.look.mark.color for item in scene.objects if item.look.mark is not None}
    return pick((color for color in COLORS if color not in used), generator)


def _pair(generator: np.random.Generator) -> Scene:
    """Draw two objects without marks."""
    return sample_scene(2, generator, marked_share=0)


def _redraw(scene: Scene, index: int, **changes: Any) -> np.ndarray:
    """Draw a scene with one object of another look."""
    objects = list(scene.objects)
    objects[index] = replace(objects[index], look=replace(objects[index].look, **changes))
    return render_array(replace(scene, objects=tuple(objects)))


def _missing(generator: np.random.Generator) -> Case:
    """Draw one object less than is asked for."""
    scene = sample_scene(int(generator.integers(2, 4)), generator)
    fewer = replace(scene, objects=scene.objects[1:])
    return Case(image=render_array(fewer), asked=expectation_of(scene), failure="missing")


def _extra(generator: np.random.Generator) -> Case:
    """Ask for one object less than is drawn."""
    scene = sample_scene(int(generator.integers(2, 4)), generator)
    asked = expectation_of(scene)
    return Case(image=render_array(scene), asked=replace(asked, objects=asked.objects[1:]), failure="extra")


def _extra_and_wrong(generator: np.random.Generator) -> Case:
    """Ask for one object less than is drawn, and for another color."""
    case = _extra(generator)
    used = {wanted.color for wanted in case.asked.objects}
    asked = ask(case.asked, 0, color=pick((color for color in COLORS if color not in used), generator), mark=None)
    return replace(case, asked=asked, failure="extra-and-wrong")


def _duplicated(generator: np.random.Generator) -> Case:
    """Draw the shape of the first object twice."""
    scene = _pair(generator)
    image = _redraw(scene, 1, shape=scene.objects[0].look.shape)
    return Case(image=image, asked=expectation_of(scene), failure="duplicated")


def _shape(generator: np.random.Generator) -> Case:
    """Draw a shape that is not asked for instead of one that is."""
    scene = _pair(generator)
    used = {item.look.shape for item in scene.objects}
    image = _redraw(scene, 1, shape=pick((shape for shape in SHAPES if shape not in used), generator))
    return Case(image=image, asked=expectation_of(scene), failure="shape")


def _swap(generator: np.random.Generator) -> Case:
    """Exchange the colors of two objects."""
    scene = _pair(generator)
    one, other = (item.look.color for item in scene.objects)
    asked = ask(ask(expectation_of(scene), 0, color=other), 1, color=one)
    return Case(image=render_array(scene), asked=asked, failure="swap")


def _leak(generator: np.random.Generator) -> Case:
    """Draw the second object in the color of the first."""
    scene = _pair(generator)
    image = _redraw(scene, 1, color=scene.objects[0].look.color)
    return Case(image=image, asked=expectation_of(scene), failure="leak")


def _color(generator: np.random.Generator) -> Case:
    """Draw a color that nothing is asked to have."""
    scene = sample_scene(int(generator.integers(1, 3)), generator)
    image = _redraw(scene, 0, color=_unused(scene, generator))
    return Case(image=image, asked=expectation_of(scene), failure="color")


def _texture(generator: np.random.Generator) -> Case:
    """Ask for another texture."""
    scene = _pair(generator)
    drawn = scene.objects[0].look.texture
    texture = pick((word for word in NAMED_TEXTURES if word != drawn), generator)
    asked = ask(expectation_of(scene), 0, texture=texture)
    return Case(image=render_array(scene), asked=asked, failure="texture")


def _size(generator: np.random.Generator) -> Case:
    """Ask for another size."""
    scene = _pair(generator)
    drawn = scene.objects[1].look.size
    asked = ask(expectation_of(scene), 1, size=pick((word for word in NAMED_SIZES if word != drawn), generator))
    return Case(image=render_array(scene), asked=asked, failure="size")


def _mark(generator: np.random.Generator) -> Case:
    """Ask for no mark, for another kind, for another color, or for one where none is."""
    scene = sample_scene(int(generator.integers(1, 3)), generator, marked_share=1)
    asked, mark = expectation_of(scene), scene.objects[0].look.mark
    assert mark is not None, "the first object of such a scene has one"
    image = render_array(scene)
    change = int(generator.integers(4))
    if change == 0:
        asked = ask(asked, 0, mark=None)
    elif change == 1:
        asked = ask(asked, 0, mark=replace(mark, kind=pick((kind for kind in MARKS if kind != mark.kind), generator)))
    elif change == 2:
        asked = ask(asked, 0, mark=replace(mark, color=_unused(scene, generator)))
    else:
        image = _redraw(scene, 0, mark=None)
    return Case(image=image, asked=asked, failure="mark")


def _mark_swap(generator: np.random.Generator) -> Case:
    """Exchange the marks of two objects, or move the only one."""
    scene = sample_scene(2, generator, marked_share=1)
    one, other = (item.look.mark for item in scene.objects)
    asked = ask(ask(expectation_of(scene), 0, mark=other), 1, mark=one)
    return Case(image=render_array(scene), asked=asked, failure="mark-swap")


def _relation(generator: np.random.Generator) -> Case:
    """Ask for another relation than the one that clearly holds."""
    drawn = pick(RELATIONS, generator)
    scene = related_scene(generator, drawn)
    asked = replace(expectation_of(scene), relation=pick((r for r in RELATIONS if r != drawn), generator))
    return Case(image=render_array(scene), asked=asked, failure="relation")


def _fused(generator: np.random.Generator) -> Case:
    """Draw two objects of one size so close that they touch."""
    while True:
        looks = [replace(look, size="medium") for look in sample_looks(2, generator)]
        angle, radius = float(generator.uniform(0, 2 * np.pi)), RADIUS["medium"]
        places = (
            (32 + sign * 0.7 * radius * np.cos(angle), 32 + sign * 0.7 * radius * np.sin(angle)) for sign in (-1, 1)
        )
        objects = tuple(Placed(look=look, x=x, y=y, radius=radius) for look, (x, y) in zip(looks, places, strict=True))
        scene = Scene(objects=objects)
        image = render_array(scene)
        if ndimage.label((np.abs(image.astype(int) - BACKGROUND) > 100).any(axis=-1))[1] == 1:
            return Case(image=image, asked=expectation_of(scene), failure="fused")


def _malformed(generator: np.random.Generator) -> Case:
    """Draw half of a single object in another color, or draw it twice as wide as it is."""
    scene = sample_scene(1, generator, marked_share=0)
    item = scene.objects[0]
    image = render_array(scene)
    if generator.random() < 0.5:
        middle = round(item.x)
        image[:, middle:] = _redraw(scene, 0, color=_unused(scene, generator))[:, middle:]
    else:
        left = min(max(0, round(item.x) - 16), 32)
        image = np.repeat(image[:, left : left + 32], 2, axis=1)
    return Case(image=image, asked=expectation_of(scene), failure="malformed")


#: One mistake of every kind, in the order of :data:`t2ictl.shapes.verdict.FAILURES`.
WRONG: dict[str, Maker] = {
    "fused": _fused,
    "malformed": _malformed,
    "missing": _missing,
    "extra": _extra,
    "extra-and-wrong": _extra_and_wrong,
    "duplicated": _duplicated,
    "shape": _shape,
    "swap": _swap,
    "leak": _leak,
    "color": _color,
    "mark-swap": _mark_swap,
    "mark": _mark,
    "texture": _texture,
    "size": _size,
    "relation": _relation,
}

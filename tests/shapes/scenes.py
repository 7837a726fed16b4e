"""Hand-made scenes for the tests: a word list is enough to place objects far apart."""

from __future__ import annotations

from PIL import Image

from t2ictl.shapes.captions import expect
from t2ictl.shapes.draw import render
from t2ictl.shapes.world import RADIUS, Look, Placed, Scene

PLACES = ((17.0, 17.0), (46.0, 46.0), (46.0, 15.0), (16.0, 47.0))


def scene_of(*phrases: str) -> Scene:
    """One object a phrase such as ``"a small red star"``, at fixed places far apart."""
    objects = []
    for phrase, (x, y) in zip(phrases, PLACES, strict=False):
        wanted = expect(phrase).objects[0]
        assert wanted.color is not None
        look = Look(
            shape=wanted.shape,
            color=wanted.color,
            texture=wanted.texture or "plain",
            size=wanted.size or "medium",
            mark=wanted.mark,
        )
        objects.append(Placed(look=look, x=x, y=y, radius=RADIUS[look.size]))
    return Scene(objects=tuple(objects))


def image_of(*phrases: str) -> Image.Image:
    """The rendered image of :func:`scene_of`."""
    return render(scene_of(*phrases))

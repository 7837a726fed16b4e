"""The exact judge of the embedded model: it finds all objects, so a thing is there or it is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from t2ictl.errors import BadSetting
from t2ictl.evaluation.judges.base import Probabilities
from t2ictl.shapes.captions import NAMED_SIZES, NAMED_TEXTURES, POLYSEME, REDUNDANT, ROUND_SHAPES, SENSES
from t2ictl.shapes.seeing import Found, find_objects
from t2ictl.shapes.world import COLORS, SHAPES

__all__ = ["ShapesJudge"]

_ARTICLES = ("a", "an", "the")


class ShapesJudge:
    """Reads the objects of an image, and says whether one of them has all the words of a thing.

    "red circle" is there if one object is a circle and red; "red" if any object is red; "bolt" if there is a star or a
    cross, whatever its neighbors would choose.

    Example:
        >>> judge = ShapesJudge()
        >>> judge([Image.new("RGB", (64, 64), "white")], ["red circle", "bolt"]).tolist()
        [[0.0, 0.0]]
    """

    name = "shapes"

    def __call__(self, images: Sequence[Image.Image], things: Sequence[str]) -> Probabilities:
        """Return 1 for what is there and 0 for what is not."""
        asked = [_wanted(thing) for thing in things]
        answers = []
        for image in images:
            found = find_objects(image)
            answers.append([any(_fits(each, wanted) for each in found) for wanted in asked])
        return np.array(answers, dtype=float).reshape(len(images), len(things))


def _wanted(thing: str) -> dict[str, tuple[str, ...]]:
    """For each field of an object the values that will do."""
    wanted: dict[str, tuple[str, ...]] = {}
    values: tuple[str, ...]
    for word in thing.lower().split():
        if word in _ARTICLES:
            continue
        if word == POLYSEME:
            field, values = "shape", SENSES
        elif word == REDUNDANT:
            field, values = "shape", ROUND_SHAPES
        else:
            field, values = _field(word, thing), (word,)
        both = tuple(value for value in wanted.get(field, values) if value in values)
        if not both:
            raise BadSetting(f"Nothing is {thing!r}: its words exclude each other.", "Ask for them one by one.")
        wanted[field] = both
    if not wanted:
        raise BadSetting(f"{thing!r} names nothing.", "Ask for a shape, a color, a texture or a size.")
    return wanted


def _field(word: str, thing: str) -> str:
    known = {"shape": SHAPES, "color": COLORS, "texture": NAMED_TEXTURES, "size": NAMED_SIZES}
    for field, values in known.items():
        if word in values:
            return field
    words = ", ".join(str(value) for values in known.values() for value in values)
    raise BadSetting(f"The judge of shapes does not know {word!r} of {thing!r}.", f"It knows: {words}, {POLYSEME}.")


def _fits(found: Found, wanted: dict[str, tuple[str, ...]]) -> bool:
    return all(getattr(found, field) in values for field, values in wanted.items())

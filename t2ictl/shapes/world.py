"""The drawn world: which objects exist, how they may stand to each other, and which combinations are held out.

A scene is a handful of objects on a light canvas. Which combinations of color and shape may be
seen in training is decided by a hash of the combination, so that the three splits can never
overlap, whoever draws them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from t2ictl.errors import BadSetting

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "yellow", "green", "cyan", "blue", "purple")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "medium", "large")
#: Sub-objects: small figures of a second color in the middle of their owner.
MARKS = ("dot", "bar")
#: Shapes with room for a mark in the middle.
OWNERS = ("circle", "square", "triangle")

#: What a caption leaves unsaid: a plain object has no texture word, a medium one no size word.
UNNAMED_TEXTURE = "plain"
UNNAMED_SIZE = "medium"

#: Radius in pixels. The ratio of about 1.4 nearly doubles the area from one size to the next.
RADIUS = {"small": 7.0, "medium": 9.8, "large": 13.4}
#: No shape reaches farther from its center than this many radii.
REACH = 1.2
CANVAS = 64

Split = Literal["train", "tune", "report"]
#: Percentage points of the hash range that each split owns.
SPLIT_SHARE: dict[Split, int] = {"train": 40, "tune": 30, "report": 30}


def _check_word(field: str, word: str, words: Sequence[str]) -> None:
    """Refuse a word that is not in the vocabulary."""
    if word not in words:
        raise BadSetting(f"{field} {word!r} does not exist.", f"Use one of {', '.join(words)}.")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A sub-object: a figure of its own color in the middle of its owner.

    Args:
        kind: one of :data:`MARKS`.
        color: one of :data:`COLORS`.

    Raises:
        BadSetting: a value is not in the vocabulary.

    Example:
        >>> Mark(kind="dot", color="blue").kind
        'dot'
    """

    kind: str
    color: str

    def __post_init__(self) -> None:
        _check_word("mark", self.kind, MARKS)
        _check_word("color", self.color, COLORS)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an object looks like, apart from where it is.

    Args:
        shape: one of :data:`SHAPES`.
        color: one of :data:`COLORS`.
        texture: one of :data:`TEXTURES`.
        size: one of :data:`SIZES`.
        mark: a sub-object, which only plain :data:`OWNERS` can have, or None.

    Raises:
        BadSetting: a value is not in the vocabulary, or the mark has no room or no color of its own.

    Example:
        >>> Look(shape="circle", color="red").texture
        'plain'
    """

    shape: str
    color: str
    texture: str = UNNAMED_TEXTURE
    size: str = UNNAMED_SIZE
    mark: Mark | None = None

    def __post_init__(self) -> None:
        vocabulary = {"shape": SHAPES, "color": COLORS, "texture": TEXTURES, "size": SIZES}
        for field, words in vocabulary.items():
            _check_word(field, getattr(self, field), words)
        if self.mark is not None and (
            self.shape not in OWNERS or self.texture != UNNAMED_TEXTURE or self.mark.color == self.color
        ):
            raise BadSetting(
                f"A {self.texture} {self.color} {self.shape} cannot have a {self.mark.color} {self.mark.kind}.",
                f"Use a plain {', '.join(OWNERS)} of another color.",
            )


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An appearance at a place on the canvas.

    Args:
        look: what the object looks like.
        x: center column, pixels.
        y: center row, pixels.
        radius: pixels.

    Example:
        >>> Placed(look=Look(shape="ring", color="blue"), x=20.0, y=30.0, radius=9.5).y
        30.0
    """

    look: Look
    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Placed objects on a canvas.

    Args:
        objects: from the first named to the last.
        height: pixels.
        width: pixels.

    Example:
        >>> Scene(objects=()).width
        64
    """

    objects: tuple[Placed, ...]
    height: int = CANVAS
    width: int = CANVAS


def relation_of(dx: float, dy: float) -> str | None:
    """Name where something is, seen from something else, if one direction clearly leads.

    A direction leads if it is at least 6 pixels and at least 1.25 times the other one.

    Args:
        dx: columns to the right, pixels.
        dy: rows down, pixels.

    Returns:
        ``"left of"``, ``"right of"``, ``"above"``, ``"below"``, or None.

    Example:
        >>> relation_of(-20, 3), relation_of(8, 8)
        ('left of', None)
    """
    longer, shorter = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if longer < 6 or longer < 1.25 * shorter:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def relation_between(one: Placed, other: Placed) -> str | None:
    """Name how one placed object stands to another; see :func:`relation_of`.

    Args:
        one: the first.
        other: the second.

    Returns:
        A relation, or None if none is clear.

    Example:
        >>> look = Look(shape="ring", color="blue")
        >>> relation_between(Placed(look=look, x=50, y=9, radius=7), Placed(look=look, x=9, y=9, radius=7))
        'right of'
    """
    return relation_of(one.x - other.x, one.y - other.y)


def combination_key(looks: Sequence[Look]) -> str:
    """Name what the looks combine, whatever their order.

    Pairs and triples are known by their colors and shapes alone, so that a held-out pair
    stays held out in every texture and size and with every mark. A single object is known by
    all it has.

    Args:
        looks: at least one look.

    Returns:
        The same text for the same combination.

    Example:
        >>> combination_key([Look(shape="star", color="red"), Look(shape="ring", color="blue")])
        'blue ring + red star'
    """
    if len(looks) == 1:
        mark = f" with {looks[0].mark.color} {looks[0].mark.kind}" if looks[0].mark is not None else ""
        return f"{looks[0].size} {looks[0].texture} {looks[0].color} {looks[0].shape}{mark}"
    return " + ".join(sorted(f"{look.color} {look.shape}" for look in looks))


def split_of(looks: Sequence[Look]) -> Split:
    """Return which split a combination belongs to.

    The SHA-256 of the combination, modulo 100, falls into one of three ranges (40, 30 and
    30 points). Single objects are all seen in training: their two held-out ranges only
    keep the tuning and the report prompts apart.

    Args:
        looks: at least one look.

    Returns:
        ``"train"``, ``"tune"`` or ``"report"``.

    Example:
        >>> split_of([Look(shape="star", color="red"), Look(shape="ring", color="blue")])
        'tune'
    """
    point = int(hashlib.sha256(combination_key(looks).encode()).hexdigest(), 16) % 100
    if point < SPLIT_SHARE["train"]:
        return "train"
    return "tune" if point < SPLIT_SHARE["train"] + SPLIT_SHARE["tune"] else "report"

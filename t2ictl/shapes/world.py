"""The drawn world: which objects exist, how a scene is laid out, and which combinations are held out.

A scene is a handful of objects on a light canvas. Everything random takes an explicit
generator. Which combinations of color and shape may be seen in training is decided by a
hash of the combination, so that the three splits can never overlap, whoever draws them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t2ictl.errors import BadSetting

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "yellow", "green", "cyan", "blue", "purple")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "medium", "large")

#: What a caption leaves unsaid: a plain object has no texture word, a medium one no size word.
UNNAMED_TEXTURE = "plain"
UNNAMED_SIZE = "medium"

#: Radius in pixels. The ratio of about 1.4 nearly doubles the area from one size to the next.
RADIUS = {"small": 7.0, "medium": 9.8, "large": 13.4}
#: Objects vary by this fraction of their radius, well inside the gap between two sizes.
RADIUS_JITTER = 0.06
#: No shape reaches farther from its center than this many radii.
REACH = 1.2
#: Pixels of canvas between two objects; three keep two objects two connected components.
GAP = 3.0
CANVAS = 64

Split = Literal["train", "tune", "report"]
#: Percentage points of the hash range that each split owns.
SPLIT_SHARE: dict[Split, int] = {"train": 40, "tune": 30, "report": 30}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an object looks like, apart from where it is.

    Args:
        shape: one of :data:`SHAPES`.
        color: one of :data:`COLORS`.
        texture: one of :data:`TEXTURES`.
        size: one of :data:`SIZES`.

    Raises:
        BadSetting: a value is not in the vocabulary.

    Example:
        >>> Look(shape="circle", color="red").texture
        'plain'
    """

    shape: str
    color: str
    texture: str = UNNAMED_TEXTURE
    size: str = UNNAMED_SIZE

    def __post_init__(self) -> None:
        vocabulary = {"shape": SHAPES, "color": COLORS, "texture": TEXTURES, "size": SIZES}
        for field, words in vocabulary.items():
            if getattr(self, field) not in words:
                raise BadSetting(f"{field} {getattr(self, field)!r} does not exist.", f"Use one of {', '.join(words)}.")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A look at a place on the canvas.

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


def combination_key(looks: Sequence[Look]) -> str:
    """Name what the looks combine, whatever their order.

    Pairs and triples are known by their colors and shapes alone, so that a held-out pair
    stays held out in every texture and size. A single object is known by all it has.

    Args:
        looks: at least one look.

    Returns:
        The same text for the same combination.

    Example:
        >>> combination_key([Look(shape="star", color="red"), Look(shape="ring", color="blue")])
        'blue ring + red star'
    """
    if len(looks) == 1:
        return f"{looks[0].size} {looks[0].texture} {looks[0].color} {looks[0].shape}"
    return " + ".join(sorted(f"{look.color} {look.shape}" for look in looks))


def split_of(looks: Sequence[Look]) -> Split:
    """Say which split a combination belongs to.

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


def sample_looks(count: int, generator: np.random.Generator) -> tuple[Look, ...]:
    """Draw looks of different colors and different shapes.

    Two objects never share a color or a shape, so that swap, leak and duplication are
    always decidable from the picture. Two fifths of the objects have a texture.

    Args:
        count: 1 to 6 objects.
        generator: the only source of randomness.

    Returns:
        ``count`` looks.

    Raises:
        BadSetting: more objects than there are colors.

    Example:
        >>> looks = sample_looks(2, np.random.default_rng(0))
        >>> len({look.color for look in looks}), len({look.shape for look in looks})
        (2, 2)
    """
    if not 1 <= count <= min(len(SHAPES), len(COLORS)):
        raise BadSetting(f"A scene cannot have {count} objects.", f"Use 1 to {min(len(SHAPES), len(COLORS))}.")
    shapes = generator.permutation(SHAPES)[:count]
    colors = generator.permutation(COLORS)[:count]
    textures = generator.choice(TEXTURES, size=count, p=(0.6, 0.2, 0.2))
    # Three objects fit on the canvas only if they are not all large.
    sizes = generator.choice(SIZES, size=count, p=(1 / 3, 1 / 3, 1 / 3) if count < 3 else (0.5, 0.4, 0.1))
    return tuple(
        Look(shape=str(shape), color=str(color), texture=str(texture), size=str(size))
        for shape, color, texture, size in zip(shapes, colors, textures, sizes, strict=True)
    )


def place(
    looks: Sequence[Look], generator: np.random.Generator, *, height: int = CANVAS, width: int = CANVAS
) -> Scene | None:
    """Lay looks out on a canvas without touching.

    Rejection sampling: a position is kept if it is at least :data:`GAP` pixels from every
    earlier object and one pixel from the border.

    Args:
        looks: what to place, large ones are the hardest.
        generator: the only source of randomness.
        height: canvas rows, pixels.
        width: canvas columns, pixels.

    Returns:
        The scene, or None if no room was found in 60 tries an object.

    Example:
        >>> scene = place([Look(shape="star", color="red")], np.random.default_rng(0))
        >>> len(scene.objects)
        1
    """
    placed: list[Placed] = []
    for look in looks:
        radius = RADIUS[look.size] * (1 + RADIUS_JITTER * float(generator.uniform(-1, 1)))
        margin = REACH * radius + 1
        if 2 * margin >= min(height, width):
            return None
        for _ in range(60):
            x, y = float(generator.uniform(margin, width - margin)), float(generator.uniform(margin, height - margin))
            if all(math.hypot(x - o.x, y - o.y) >= REACH * (radius + o.radius) + GAP for o in placed):
                placed.append(Placed(look=look, x=x, y=y, radius=radius))
                break
        else:
            return None
    return Scene(objects=tuple(placed), height=height, width=width)


def sample_scene(count: int, generator: np.random.Generator, *, split: Split | None = None) -> Scene:
    """Draw a scene of ``count`` objects.

    Args:
        count: 1 to 3 objects fit on the standard canvas.
        generator: the only source of randomness.
        split: keep only combinations of this split; None keeps all.

    Returns:
        A scene without touching objects.

    Raises:
        BadSetting: no such scene turned up in 2,000 tries.

    Example:
        >>> len(sample_scene(2, np.random.default_rng(3), split="train").objects)
        2
    """
    for _ in range(2000):
        looks = sample_looks(count, generator)
        if split is not None and split_of(looks) != split:
            continue
        scene = place(looks, generator)
        if scene is not None:
            return scene
    raise BadSetting(f"No room for {count} objects on a canvas of {CANVAS} pixels.", "Use at most 3 objects.")

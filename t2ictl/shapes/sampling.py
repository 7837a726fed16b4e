"""Scenes at random: which objects, and where they stand. Everything random takes an explicit generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from t2ictl.errors import BadSetting
from t2ictl.shapes.world import (
    CANVAS,
    COLORS,
    MARKS,
    OWNERS,
    RADIUS,
    REACH,
    SHAPES,
    SIZES,
    TEXTURES,
    Look,
    Mark,
    Placed,
    Scene,
    Split,
    split_of,
)

#: Objects vary by this fraction of their radius, well inside the gap between two sizes.
RADIUS_JITTER = 0.06
#: Pixels of canvas between two objects; three keep two objects two connected components.
GAP = 3.0
#: Part of the scenes whose objects have marks.
MARKED_SHARE = 0.22


def sample_looks(count: int, generator: np.random.Generator) -> tuple[Look, ...]:
    """Draw looks of different colors and different shapes.

    Two objects never share a color or a shape, so that swap, leak and duplication are
    always decidable from the image. Two fifths of the objects have a texture.

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


def sample_marked_looks(count: int, generator: np.random.Generator) -> tuple[Look, ...]:
    """Draw plain, medium or large looks, most of them with a mark.

    No color comes twice, whether of an object or of a mark, so that a leak between owner,
    mark and neighbor is always decidable from the image.

    Args:
        count: 1 to 3 objects.
        generator: the only source of randomness.

    Returns:
        ``count`` looks of different shapes; the first has a mark, the others in four cases of five.

    Raises:
        BadSetting: more objects than there are owners.

    Example:
        >>> looks = sample_marked_looks(2, np.random.default_rng(0))
        >>> len({look.shape for look in looks}), looks[0].mark is not None
        (2, True)
    """
    if not 1 <= count <= len(OWNERS):
        raise BadSetting(f"A scene cannot have {count} objects with marks.", f"Use 1 to {len(OWNERS)}.")
    shapes = generator.permutation(OWNERS)[:count]
    colors = [str(color) for color in generator.permutation(COLORS)[: 2 * count]]
    kinds = generator.choice(MARKS, size=count)
    has_mark = generator.random(count) < 0.8
    sizes = generator.choice(("medium", "large"), size=count, p=(0.6, 0.4) if count < 3 else (0.95, 0.05))
    return tuple(
        Look(
            shape=str(shapes[i]),
            color=colors[2 * i],
            size=str(sizes[i]),
            mark=Mark(kind=str(kinds[i]), color=colors[2 * i + 1]) if i == 0 or has_mark[i] else None,
        )
        for i in range(count)
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


def sample_scene(
    count: int, generator: np.random.Generator, *, split: Split | None = None, marked_share: float = MARKED_SHARE
) -> Scene:
    """Draw a scene of ``count`` objects.

    Args:
        count: 1 to 3 objects fit on the standard canvas.
        generator: the only source of randomness.
        split: keep only combinations of this split; None keeps all.
        marked_share: part of the scenes whose objects have marks, 0 to 1.

    Returns:
        A scene without touching objects.

    Raises:
        BadSetting: no such scene turned up in 2,000 tries.

    Example:
        >>> len(sample_scene(2, np.random.default_rng(3), split="train").objects)
        2
    """
    has_marks = count <= len(OWNERS) and generator.random() < marked_share
    sample = sample_marked_looks if has_marks else sample_looks
    for _ in range(2000):
        looks = sample(count, generator)
        if split is not None and split_of(looks) != split:
            continue
        scene = place(looks, generator)
        if scene is not None:
            return scene
    raise BadSetting(f"No room for {count} objects on a canvas of {CANVAS} pixels.", "Use at most 3 objects.")

"""The renderer: a scene to an anti-aliased image, with nothing but NumPy.

Legend: ``Y`` ``X`` rows and columns of pixels, ``C`` color channels.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from t2ictl.shapes.world import REACH, Placed, Scene

#: Red, green, blue in 0..255. Hues are at least 35 degrees apart, so that nearest hue is safe.
RGB = {
    "red": (220, 40, 40),
    "yellow": (235, 200, 30),
    "green": (40, 170, 60),
    "cyan": (40, 190, 210),
    "blue": (50, 70, 220),
    "purple": (160, 50, 190),
}
BACKGROUND = (238, 238, 238)

#: Texture period in pixels. It equals the cell of the autoencoder and is aligned to the canvas,
#: so that a texture is the same few numbers in every latent cell and survives the autoencoder.
PERIOD = 4
#: Dark stripes keep this part of the color; light dots keep this part and are white for the rest.
STRIPE_SHADE = 0.45
DOT_SHADE = 0.45
#: Samples per pixel and axis for anti-aliasing.
OVERSAMPLING = 4

#: Proportions in radii, chosen so that all six shapes look about equally big.
SQUARE_HALF = 0.86
TRIANGLE_REACH = 1.18
STAR_OUTER = 1.2
STAR_INNER = 0.52
CROSS_ARM = 0.36
RING_HOLE = 0.52
#: A dot's radius, and half the width and half the height of a bar. Both have about the same area,
#: and reach to the edge only in a triangle.
DOT_RADIUS = 0.45
BAR_HALF = (0.62, 0.25)
#: A triangle's widest part lies below its center.
TRIANGLE_MARK_DROP = 0.12


def _polygon(angles: np.ndarray, reaches: np.ndarray, x_YX: np.ndarray, y_YX: np.ndarray) -> np.ndarray:
    """Even-odd test of points against a polygon given by angles (up is zero) and distances."""
    corner_x, corner_y = reaches * np.sin(angles), -reaches * np.cos(angles)
    inside_YX = np.zeros(x_YX.shape, dtype=bool)
    for i in range(len(angles)):
        x0, y0, x1, y1 = corner_x[i - 1], corner_y[i - 1], corner_x[i], corner_y[i]
        if y0 == y1:
            continue
        crosses = (y0 > y_YX) != (y1 > y_YX)
        inside_YX ^= crosses & (x_YX < (x1 - x0) * (y_YX - y0) / (y1 - y0) + x0)
    return inside_YX


def inside(shape: str, x_YX: np.ndarray, y_YX: np.ndarray) -> np.ndarray:
    """Return which points lie inside a shape of radius 1 at the origin.

    Args:
        shape: one of :data:`t2ictl.shapes.world.SHAPES`.
        x_YX: columns in radii, right is positive.
        y_YX: rows in radii, down is positive.

    Returns:
        Booleans of the same shape.

    Example:
        >>> bool(inside("ring", np.array(0.0), np.array(0.0)))
        False
    """
    if shape == "circle":
        return x_YX**2 + y_YX**2 <= 1
    if shape == "ring":
        distance_YX = x_YX**2 + y_YX**2
        return (distance_YX <= 1) & (distance_YX >= RING_HOLE**2)
    if shape == "square":
        return np.maximum(np.abs(x_YX), np.abs(y_YX)) <= SQUARE_HALF
    if shape == "cross":
        along, across = np.maximum(np.abs(x_YX), np.abs(y_YX)), np.minimum(np.abs(x_YX), np.abs(y_YX))
        return (along <= 1) & (across <= CROSS_ARM)
    if shape == "triangle":
        return _polygon(np.arange(3) * 2 * math.pi / 3, np.full(3, TRIANGLE_REACH), x_YX, y_YX)
    return _polygon(np.arange(10) * math.pi / 5, np.resize([STAR_OUTER, STAR_INNER], 10), x_YX, y_YX)


def inside_mark(kind: str, owner: str, x_YX: np.ndarray, y_YX: np.ndarray) -> np.ndarray:
    """Return which points lie inside the mark of an owner of radius 1 at the origin.

    Args:
        kind: one of :data:`t2ictl.shapes.world.MARKS`.
        owner: the owner's shape; in a triangle the mark sits a little lower.
        x_YX: columns in radii, right is positive.
        y_YX: rows in radii, down is positive.

    Returns:
        Booleans of the same shape.

    Example:
        >>> bool(inside_mark("bar", "circle", np.array(0.5), np.array(0.0)))
        True
    """
    y_YX = y_YX - (TRIANGLE_MARK_DROP if owner == "triangle" else 0.0)
    if kind == "dot":
        return x_YX**2 + y_YX**2 <= DOT_RADIUS**2
    return (np.abs(x_YX) <= BAR_HALF[0]) & (np.abs(y_YX) <= BAR_HALF[1])


def coverage(item: Placed, height: int, width: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Rasterize one object: which fraction of every pixel it covers, and which its mark covers.

    Args:
        item: the object.
        height: canvas rows, pixels.
        width: canvas columns, pixels.

    Returns:
        Row slice and column slice of the object's box, and two arrays of fractions in it, 0 to 1:
        of the object, and of its mark (zeros without one).

    Example:
        >>> from t2ictl.shapes.world import Look
        >>> item = Placed(look=Look(shape="square", color="red"), x=32, y=32, radius=10)
        >>> [float(part.max()) for part in coverage(item, 64, 64)[2:]]
        [1.0, 0.0]
    """
    reach = REACH * item.radius + 1
    rows = slice(max(0, math.floor(item.y - reach)), min(height, math.ceil(item.y + reach)))
    columns = slice(max(0, math.floor(item.x - reach)), min(width, math.ceil(item.x + reach)))
    n = OVERSAMPLING
    fine_y = (np.arange(rows.start * n, rows.stop * n) + 0.5) / n
    fine_x = (np.arange(columns.start * n, columns.stop * n) + 0.5) / n
    y_YX, x_YX = np.meshgrid((fine_y - item.y) / item.radius, (fine_x - item.x) / item.radius, indexing="ij")
    body_YX = inside(item.look.shape, x_YX, y_YX)
    mark = item.look.mark
    mark_YX = np.zeros_like(body_YX) if mark is None else inside_mark(mark.kind, item.look.shape, x_YX, y_YX)
    body_YX, mark_YX = (
        hit.astype(np.float32).reshape(len(fine_y) // n, n, len(fine_x) // n, n).mean(axis=(1, 3))
        for hit in (body_YX, mark_YX)
    )
    return rows, columns, body_YX, mark_YX


def paint(item: Placed, rows: slice, columns: slice) -> np.ndarray:
    """Fill a box with an object's color and texture, as if the object covered all of it.

    Stripes are dark and run along rows; dots are light squares of two pixels.

    Args:
        item: the object.
        rows: rows of the box, pixels.
        columns: columns of the box, pixels.

    Returns:
        Colors of shape ``(Y, X, 3)`` in 0 to 1.

    Example:
        >>> from t2ictl.shapes.world import Look
        >>> item = Placed(look=Look(shape="square", color="red"), x=4, y=4, radius=4)
        >>> paint(item, slice(0, 2), slice(0, 3)).shape
        (2, 3, 3)
    """
    y = np.arange(rows.start, rows.stop)[:, None] % PERIOD < PERIOD // 2
    x = np.arange(columns.start, columns.stop)[None, :] % PERIOD < PERIOD // 2
    color = np.asarray(RGB[item.look.color], dtype=np.float32) / 255
    fill_YXC = np.broadcast_to(color, (y.size, x.size, 3)).copy()
    if item.look.texture == "striped":
        fill_YXC[np.broadcast_to(y, (y.size, x.size))] = color * STRIPE_SHADE
    elif item.look.texture == "dotted":
        fill_YXC[y & x] = color * DOT_SHADE + (1 - DOT_SHADE)
    return fill_YXC


def render_array(scene: Scene) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: what to draw; later objects cover earlier ones.

    Returns:
        Bytes of shape ``(Y, X, 3)``.

    Example:
        >>> render_array(Scene(objects=(), height=8, width=12)).shape
        (8, 12, 3)
    """
    canvas_YXC = np.broadcast_to(np.asarray(BACKGROUND, np.float32) / 255, (scene.height, scene.width, 3)).copy()
    for item in scene.objects:
        rows, columns, body_YX, mark_YX = coverage(item, scene.height, scene.width)
        body_YXC, fill_YXC = body_YX[..., None], paint(item, rows, columns)
        if item.look.mark is not None:
            color = np.asarray(RGB[item.look.mark.color], dtype=np.float32) / 255
            fill_YXC += (color - fill_YXC) * mark_YX[..., None]
        canvas_YXC[rows, columns] += (fill_YXC - canvas_YXC[rows, columns]) * body_YXC
    return np.round(canvas_YXC * 255).astype(np.uint8)


def render(scene: Scene) -> Image.Image:
    """Draw a scene as an image; see :func:`render_array`.

    Args:
        scene: what to draw.

    Returns:
        An RGB image of the scene's size.

    Example:
        >>> render(Scene(objects=())).size
        (64, 64)
    """
    return Image.fromarray(render_array(scene))

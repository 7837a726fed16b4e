"""Silhouettes: which pixels are an object, which shape they have, and how big it is.

Legend: ``Y`` ``X`` rows and columns of pixels, ``C`` color channels.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image
from scipy import ndimage

from t2ictl.errors import ShapeMismatch
from t2ictl.shapes.draw import render_array
from t2ictl.shapes.world import RADIUS, REACH, SHAPES, SIZES, Look, Placed, Scene

#: A pixel belongs to an object if its largest and smallest channel differ by this much (0 to 1).
#: The faintest drawn pixel, a light dot on green or purple, has 0.23; a generated background below 0.06.
CHROMA = 0.17
#: A pixel without that is still inside an object if its largest channel is below this. Where an owner and its mark
#: blend, complementary hues give a gray of at most 0.57; an object's rim that is too faint to count has 0.80.
DARK = 0.7
#: Normalized silhouettes have this many cells a side; more would be finer than a small object's pixels.
SIDE = 24
#: Positions within a pixel that templates are averaged over.
OFFSETS = (0.0, 0.25, 0.5, 0.75)


def to_array(image: Image.Image | np.ndarray) -> np.ndarray:
    """Bring an image to float colors.

    Args:
        image: a PIL image, or bytes or floats in 0 to 1 of shape ``(Y, X, 3)``.

    Returns:
        Float32 of shape ``(Y, X, 3)`` in 0 to 1.

    Raises:
        ShapeMismatch: an array of another shape.

    Example:
        >>> to_array(np.full((2, 2, 3), 255, np.uint8)).max()
        np.float32(1.0)
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ShapeMismatch(f"An image of shape {pixels.shape} cannot be judged.", "Give rows, columns, 3 channels.")
    return pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def normalize_silhouette(mask_YX: np.ndarray) -> np.ndarray:
    """Cut a silhouette out and bring it to a standard square, keeping its proportions.

    Args:
        mask_YX: coverage, 0 to 1, with at least one pixel above 0.5.

    Returns:
        Floats of shape ``(SIDE, SIDE)``; the longer side of the box fills the square.

    Example:
        >>> normalize_silhouette(np.ones((4, 8))).shape
        (24, 24)
    """
    rows, columns = np.nonzero(mask_YX > 0.5)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    side = max(bottom - top, right - left)
    middle_y, middle_x = (top + bottom) / 2, (left + right) / 2
    steps = (np.arange(SIDE) + 0.5) / SIDE * side - side / 2 - 0.5
    grid = np.meshgrid(middle_y + steps, middle_x + steps, indexing="ij")
    return ndimage.map_coordinates(mask_YX.astype(np.float32), grid, order=1, mode="constant")


def _extremes(colors_YXC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest and the smallest channel; several times as fast as reducing an axis of three."""
    red, green, blue = (colors_YXC[..., channel] for channel in range(3))
    return np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)


def has_hue(colors_YXC: np.ndarray) -> np.ndarray:
    """Return which pixels are colored enough for their hue to mean something.

    Args:
        colors_YXC: shape ``(Y, X, 3)`` in 0 to 1.

    Returns:
        Booleans of shape ``(Y, X)``.

    Example:
        >>> bool(has_hue(np.full((1, 1, 3), 0.4))[0, 0])
        False
    """
    brightest, darkest = _extremes(colors_YXC)
    return brightest - darkest > CHROMA


def object_mask(colors_YXC: np.ndarray) -> np.ndarray:
    """Return which pixels belong to an object rather than to the light background.

    Args:
        colors_YXC: shape ``(Y, X, 3)`` in 0 to 1.

    Returns:
        Booleans of shape ``(Y, X)``: what has a hue, and what is dark.

    Example:
        >>> bool(object_mask(np.full((1, 1, 3), 0.9))[0, 0])
        False
    """
    brightest, darkest = _extremes(colors_YXC)
    return (brightest - darkest > CHROMA) | (brightest < DARK)


@functools.cache
def templates() -> tuple[np.ndarray, np.ndarray]:
    """Draw every shape in every size and put it through the same mask as an image.

    A low threshold makes small objects look fatter than large ones, so every size has its own
    template, averaged over positions within a pixel.

    Returns:
        Silhouettes of shape ``(6, 3, SIDE, SIDE)`` and areas in pixels of shape ``(6, 3)``, in
        the order of :data:`t2ictl.shapes.world.SHAPES` and :data:`t2ictl.shapes.world.SIZES`.

    Example:
        >>> templates()[1].shape
        (6, 3)
    """
    silhouettes, areas = np.zeros((len(SHAPES), len(SIZES), SIDE, SIDE)), np.zeros((len(SHAPES), len(SIZES)))
    for i, shape in enumerate(SHAPES):
        for j, size in enumerate(SIZES):
            masks = [object_mask(_draw_one(shape, size, x, y)) for x in OFFSETS for y in OFFSETS]
            silhouettes[i, j] = np.mean([normalize_silhouette(mask) for mask in masks], axis=0)
            areas[i, j] = np.mean([mask.sum() for mask in masks])
    return silhouettes, areas


def _draw_one(shape: str, size: str, x: float, y: float) -> np.ndarray:
    """Draw one plain object near the middle of a small canvas."""
    side = 2 * math.ceil(REACH * RADIUS[size] + 2)
    item = Placed(look=Look(shape=shape, color="red", size=size), x=side / 2 + x, y=side / 2 + y, radius=RADIUS[size])
    return to_array(render_array(Scene(objects=(item,), height=side, width=side)))


def match_shape(mask_YX: np.ndarray) -> tuple[str, float]:
    """Find the template that overlaps a silhouette most.

    Args:
        mask_YX: the silhouette.

    Returns:
        The shape, and intersection over union with its best template, 0 to 1.

    Example:
        >>> match_shape(np.ones((9, 9)))[0]
        'square'
    """
    silhouette, drawn = normalize_silhouette(mask_YX), templates()[0]
    common = np.minimum(silhouette, drawn).sum(axis=(2, 3))
    overlap = (common / np.maximum(silhouette, drawn).sum(axis=(2, 3))).max(axis=1)
    best = int(np.argmax(overlap))
    return SHAPES[best], float(overlap[best])


def match_size(area: float, shape: str) -> str:
    """Name a size by area.

    Args:
        area: pixels.
        shape: one of the six.

    Returns:
        The size in which the drawn shape has the nearest area on a logarithmic scale.

    Example:
        >>> match_size(3.14 * 13**2, "circle")
        'large'
    """
    areas = templates()[1][SHAPES.index(shape)]
    return SIZES[int(np.argmin(np.abs(np.log(areas / area))))]

"""From pixels to found objects: which shapes, colors, textures and sizes a picture shows.

No network and no randomness: chroma mask, connected components, nearest hue, template
matching of normalized silhouettes, texture by the deviation of light and shade inside the
silhouette, size by area. The thresholds were set on rendered scenes and on generated
pictures read by eye; see ``docs/shapes.md``.

Legend: ``Y`` ``X`` rows and columns of pixels, ``C`` color channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from t2ictl.shapes.draw import RGB
from t2ictl.shapes.silhouettes import match_shape, match_size, object_mask, to_array

#: Components below this area (pixels) are specks; the smallest drawn object, a small star, has about 48.
SPECK_AREA = 12
#: Overlap (intersection over union) with the best template below which a silhouette is malformed.
MIN_OVERLAP = 0.68
#: Part of an object's pixels that may have another hue than its own.
MAX_FOREIGN = 0.14
#: Deviation of the brightest channel inside a striped object, and of the darkest channel inside a dotted one.
STRIPE_DEVIATION = 0.11
DOT_DEVIATION = 0.11


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object that a picture shows.

    Args:
        shape: the best template.
        color: the nearest hue of most pixels.
        texture: ``"plain"``, ``"striped"`` or ``"dotted"``.
        size: ``"small"``, ``"medium"`` or ``"large"``.
        x: center column, pixels.
        y: center row, pixels.
        area: pixels.
        overlap: with the best template, 0 to 1.
        foreign: part of the pixels with another hue, 0 to 1.
        second_color: the most frequent other hue, or None if there is none.
    """

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    area: int
    overlap: float
    foreign: float
    second_color: str | None

    @property
    def is_well_formed(self) -> bool:
        """Whether the silhouette matches a shape and has one color."""
        return self.overlap >= MIN_OVERLAP and self.foreign <= MAX_FOREIGN

    @property
    def is_two_colored(self) -> bool:
        """Whether a second color holds too much of the silhouette."""
        return self.foreign > MAX_FOREIGN


def hue_of(colors_C: np.ndarray) -> np.ndarray:
    """Give the hue angle of colors.

    Args:
        colors_C: any shape with three channels last.

    Returns:
        Radians, -pi to pi; red is 0.

    Example:
        >>> round(float(hue_of(np.array([0.0, 1.0, 0.0]))), 3)
        2.094
    """
    red, green, blue = colors_C[..., 0], colors_C[..., 1], colors_C[..., 2]
    return np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)


def nearest_color(colors_C: np.ndarray) -> np.ndarray:
    """Name the color of pixels by hue alone, so that light dots and dark stripes keep their name.

    Args:
        colors_C: shape ``(..., 3)`` in 0 to 1.

    Returns:
        Indices into the keys of :data:`t2ictl.shapes.draw.RGB`.

    Example:
        >>> list(RGB)[int(nearest_color(np.array([0.9, 0.1, 0.1])))]
        'red'
    """
    names = hue_of(np.asarray(list(RGB.values()), np.float32) / 255)
    difference = np.abs(hue_of(colors_C)[..., None] - names)
    return np.argmin(np.minimum(difference, 2 * math.pi - difference), axis=-1)


def match_texture(colors_NC: np.ndarray) -> str:
    """Name a texture by how much light and shade vary inside an object.

    Dark stripes move the brightest channel, light dots the darkest one, whatever the color.

    Args:
        colors_NC: inner pixels of shape ``(N, 3)`` in 0 to 1.

    Returns:
        One of :data:`t2ictl.shapes.world.TEXTURES`.

    Example:
        >>> match_texture(np.full((20, 3), 0.5))
        'plain'
    """
    stripes = float(colors_NC.max(axis=1).std()) / STRIPE_DEVIATION
    dots = float(colors_NC.min(axis=1).std()) / DOT_DEVIATION
    if max(stripes, dots) < 1:
        return "plain"
    return "striped" if stripes >= dots else "dotted"


def _read_component(colors_YXC: np.ndarray, mask_YX: np.ndarray) -> Found:
    """Describe one connected component."""
    core_YX = ndimage.binary_erosion(mask_YX)
    inner_YX = core_YX if core_YX.sum() >= SPECK_AREA else mask_YX
    counts = np.bincount(nearest_color(colors_YXC[inner_YX]), minlength=len(RGB))
    order = np.argsort(-counts, kind="stable")
    names = list(RGB)
    shape, overlap = match_shape(mask_YX)
    rows, columns = np.nonzero(mask_YX)
    return Found(
        shape=shape,
        color=names[order[0]],
        texture=match_texture(colors_YXC[inner_YX]),
        size=match_size(float(mask_YX.sum()), shape),
        x=float(columns.mean()),
        y=float(rows.mean()),
        area=int(mask_YX.sum()),
        overlap=overlap,
        foreign=1 - float(counts[order[0]]) / float(counts.sum()),
        second_color=names[order[1]] if counts[order[1]] else None,
    )


def find_objects(image: Image.Image | np.ndarray) -> tuple[Found, ...]:
    """List the objects of a picture, largest first.

    Args:
        image: see :func:`to_array`.

    Returns:
        One entry for every connected colored component above a speck.

    Example:
        >>> find_objects(np.full((64, 64, 3), 238, np.uint8))
        ()
    """
    colors_YXC = to_array(image)
    mask_YX = object_mask(colors_YXC)
    labels_YX, count = ndimage.label(mask_YX)
    areas = np.bincount(labels_YX.ravel(), minlength=count + 1)
    kept = [label for label in range(1, count + 1) if areas[label] >= SPECK_AREA]
    found = [_read_component(colors_YXC, labels_YX == label) for label in kept]
    return tuple(sorted(found, key=lambda item: (-item.area, item.y, item.x)))

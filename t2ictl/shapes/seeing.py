"""From pixels to found objects: which shapes, colors, textures, sizes and marks an image shows.

No network and no randomness: chroma mask, connected components, nearest hue, template
matching of normalized silhouettes, texture by the deviation of light and shade inside the
silhouette, size by area; a mark is a compact spot of a second hue that the owner's hue
surrounds. The thresholds were set on rendered scenes and on generated images read by eye;
see ``docs/shapes.md``.

Legend: ``Y`` ``X`` rows and columns of pixels, ``C`` color channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from t2ictl.shapes.draw import RGB
from t2ictl.shapes.silhouettes import has_hue, match_shape, match_size, object_mask, to_array
from t2ictl.shapes.world import Mark

#: Components below this area (pixels) are specks; the smallest drawn object, a small star, has about 48.
SPECK_AREA = 12
#: Overlap (intersection over union) with the best template below which a silhouette is malformed.
MIN_OVERLAP = 0.68
#: Part of an object's pixels that may have another hue than its own.
MAX_FOREIGN = 0.20
#: Deviation of the brightest channel inside a striped object, and of the darkest channel inside a dotted one.
#: After the autoencoder plain objects stay below 0.06, striped and dotted ones above 0.14; a blur of 0.6 pixels
#: brings dots down to 0.096.
STRIPE_DEVIATION = 0.09
DOT_DEVIATION = 0.09
#: A mark's part of its owner's silhouette. After the autoencoder drawn ones have 0.15 to 0.40, impurities up to 0.07.
MARK_SHARE = (0.1, 0.43)
#: Part of a mark's surroundings that has its owner's hue (drawn: 0.68 or more; where two objects touch about a third),
#: and part that is the owner's outermost pixel (drawn: up to 0.57, for bars in triangles; half a disk has 0.61).
MIN_SURROUNDED = 0.6
MAX_AT_RIM = 0.58
#: Part of its box that a mark fills; a disk fills 0.79.
MIN_SOLID = 0.55
#: Part of a mark, its middle counting most, that has one hue.
MIN_PURITY = 0.5
#: A bar is at least this many times as long as it is high: between a disk (1) and a drawn bar (2.5).
BAR_ELONGATION = 1.5


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object that an image shows.

    Args:
        shape: the best template.
        color: the nearest hue of most pixels.
        texture: ``"plain"``, ``"striped"`` or ``"dotted"``.
        size: ``"small"``, ``"medium"`` or ``"large"``.
        mark: the sub-object, or None.
        x: center column, pixels.
        y: center row, pixels.
        area: pixels.
        overlap: with the best template, 0 to 1.
        foreign: part of the pixels outside of the mark with another hue, 0 to 1.
        second_color: the most frequent other hue, or None if there is none.
    """

    shape: str
    color: str
    texture: str
    size: str
    mark: Mark | None = None
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
    """Return the hue angle of colors.

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


def _elongation(spot_YX: np.ndarray) -> float:
    """Compare the longest with the shortest extent of a spot, whatever its direction."""
    # A pixel is not a point: its own variance keeps thin spots finite.
    shortest, longest = np.linalg.eigvalsh(np.cov(np.nonzero(spot_YX)) + np.eye(2) / 12)
    return math.sqrt(float(longest / shortest))


def _is_mark_like(spot_YX: np.ndarray, mask_YX: np.ndarray, owner_YX: np.ndarray) -> bool:
    """Return whether a spot has the extent of a mark, and its owner's hue and not its owner's edge around it."""
    rows, columns = np.nonzero(spot_YX)
    box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    around_YX = ndimage.binary_dilation(spot_YX) & ~spot_YX
    return (
        MARK_SHARE[0] <= rows.size / mask_YX.sum() <= MARK_SHARE[1]
        and rows.size / box >= MIN_SOLID
        and bool(owner_YX[around_YX].mean() >= MIN_SURROUNDED)
        and bool((~ndimage.binary_erosion(mask_YX))[around_YX].mean() <= MAX_AT_RIM)
    )


def _find_mark(hues_YX: np.ndarray, mask_YX: np.ndarray, owner: int) -> tuple[Mark | None, np.ndarray]:
    """Find the largest spot of another hue than the owner's, and read it if it is a mark.

    The rim between two hues may have a third one or none, so a spot takes in all of them, and
    its color is that of its middle.
    """
    nothing_YX = np.zeros_like(mask_YX)
    labels_YX, count = ndimage.label(ndimage.binary_erosion(mask_YX) & (hues_YX != owner))
    if not count:
        return None, nothing_YX
    spot_YX = labels_YX == 1 + int(np.argmax(np.bincount(labels_YX.ravel())[1:]))
    if not _is_mark_like(spot_YX, mask_YX, hues_YX == owner):
        return None, nothing_YX
    weights_YX = ndimage.distance_transform_edt(np.pad(spot_YX, 1))[1:-1, 1:-1] ** 2
    has_name_YX = spot_YX & (hues_YX >= 0)
    votes = np.bincount(hues_YX[has_name_YX], weights_YX[has_name_YX], minlength=len(RGB))
    if votes.max() < MIN_PURITY * weights_YX.sum():
        return None, nothing_YX
    kind = "bar" if _elongation(spot_YX) > BAR_ELONGATION else "dot"
    return Mark(kind=kind, color=list(RGB)[int(np.argmax(votes))]), spot_YX


def _owner_hue(hues_YX: np.ndarray, core_YX: np.ndarray) -> int:
    """Return the most frequent hue of the outer two pixels of the inside: a mark may hold most of the middle."""
    outer_YX = core_YX & ~ndimage.binary_erosion(core_YX, iterations=2)
    return int(np.argmax(np.bincount(hues_YX[outer_YX & (hues_YX >= 0)], minlength=len(RGB))))


def _read_component(colors_YXC: np.ndarray, hues_YX: np.ndarray, mask_YX: np.ndarray) -> Found:
    """Describe one connected component; where a pixel has no hue, ``hues_YX`` is -1."""
    hues_YX = np.where(mask_YX, hues_YX, -1)
    core_YX = ndimage.binary_erosion(mask_YX)
    core_YX = core_YX if core_YX.sum() >= SPECK_AREA else mask_YX
    owner = _owner_hue(hues_YX, core_YX)
    mark, spot_YX = _find_mark(hues_YX, mask_YX, owner)
    if mark is not None:
        bare_YX = core_YX & ~ndimage.binary_dilation(spot_YX, iterations=2)
        core_YX = bare_YX if bare_YX.sum() >= SPECK_AREA else core_YX & ~spot_YX
    others = hues_YX[core_YX & (hues_YX != owner)]
    counts = np.bincount(others[others >= 0], minlength=len(RGB))
    shape, overlap = match_shape(mask_YX)
    rows, columns = np.nonzero(mask_YX)
    return Found(
        shape=shape,
        color=list(RGB)[owner],
        texture=match_texture(colors_YXC[core_YX]),
        size=match_size(float(mask_YX.sum()), shape),
        mark=mark,
        x=float(columns.mean()),
        y=float(rows.mean()),
        area=int(mask_YX.sum()),
        overlap=overlap,
        foreign=others.size / max(1, int(core_YX.sum())),
        second_color=list(RGB)[int(np.argmax(counts))] if counts.any() else None,
    )


def find_objects(image: Image.Image | np.ndarray) -> tuple[Found, ...]:
    """List the objects of an image, largest first.

    Args:
        image: see :func:`to_array`.

    Returns:
        One entry for every connected component with more than a speck of color.

    Example:
        >>> find_objects(np.full((64, 64, 3), 238, np.uint8))
        ()
    """
    # A margin, so that what is cut off by the border of the image has a rim there too.
    colors_YXC = np.pad(to_array(image), ((1, 1), (1, 1), (0, 0)), constant_values=1.0)
    is_hued_YX = has_hue(colors_YXC)
    hues_YX = np.full(is_hued_YX.shape, -1)
    hues_YX[is_hued_YX] = nearest_color(colors_YXC[is_hued_YX])
    labels_YX, count = ndimage.label(object_mask(colors_YXC))
    areas = np.bincount(labels_YX[is_hued_YX], minlength=count + 1)
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels_YX), start=1):
        if areas[label] >= SPECK_AREA:
            box = slice(rows.start - 1, rows.stop + 1), slice(columns.start - 1, columns.stop + 1)
            item = _read_component(colors_YXC[box], hues_YX[box], labels_YX[box] == label)
            found.append(replace(item, x=item.x + columns.start - 2, y=item.y + rows.start - 2))
    return tuple(sorted(found, key=lambda item: (-item.area, item.y, item.x)))

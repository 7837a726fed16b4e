"""Whether a map lies on its object: where its maximum is, and how its highest cells overlap with the painted ones.

*Pointing* is the share of words whose map has its maximum inside the object's outline, the hole of a ring included,
where the maps of rings have it; *on paint* leaves the hole out. *Overlap* is the intersection over union of the painted
cells with as many highest cells of the map.

Legend: ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from t2ictl.benchmarks.shapes.evaluate.shares import percent
from t2ictl.shapes.draw import coverage
from t2ictl.shapes.seeing import Found
from t2ictl.shapes.silhouettes import object_mask, to_array
from t2ictl.shapes.world import Scene

__all__ = ["Score", "found_cells", "inside_cells", "object_cells", "score_map", "shown"]

#: Inside the outline, on paint, overlap.
Score = tuple[bool, bool, float]
#: A cell is an object's from this covered share on.
COVERED = 0.25


def object_cells(scene: Scene, index: int, side: int) -> np.ndarray:
    """Find which cells of a map an object covers by at least a quarter.

    Args:
        scene: a square scene.
        index: of the object.
        side: rows of the map.

    Returns:
        Booleans of shape ``(side, side)``.

    Example:
        >>> from t2ictl.shapes.sampling import sample_scene
        >>> object_cells(sample_scene(1, np.random.default_rng(0)), 0, 16).shape
        (16, 16)
    """
    canvas_YX = np.zeros((scene.height, scene.width))
    rows, columns, cover_YX, _ = coverage(scene.objects[index], scene.height, scene.width)
    canvas_YX[rows, columns] = cover_YX
    cell = scene.height // side
    return canvas_YX.reshape(side, cell, side, cell).mean(axis=(1, 3)) > COVERED


def found_cells(image: Image.Image, found: Found, side: int) -> np.ndarray:
    """Find which cells of a map a found object covers by at least a quarter.

    Args:
        image: a square image.
        found: from the judge.
        side: rows of the map.

    Returns:
        Booleans of shape ``(side, side)``.

    Example:
        >>> from t2ictl.shapes import find_objects, render
        >>> from t2ictl.shapes.sampling import sample_scene
        >>> image = render(sample_scene(1, np.random.default_rng(0)))
        >>> bool(found_cells(image, find_objects(image)[0], 16).any())
        True
    """
    labels_YX, count = ndimage.label(object_mask(to_array(image)))
    centers = ndimage.center_of_mass(labels_YX > 0, labels_YX, range(1, count + 1))
    distances = [abs(row - found.y) + abs(column - found.x) for row, column in centers]
    mask_YX = labels_YX == 1 + int(np.argmin(distances))
    cell = image.height // side
    return mask_YX.reshape(side, cell, side, cell).mean(axis=(1, 3)) > COVERED


def inside_cells(cells_YX: np.ndarray) -> np.ndarray:
    """Fill the holes of an object.

    Args:
        cells_YX: booleans, the painted cells.

    Returns:
        Booleans, the cells inside the outline.

    Example:
        >>> int(inside_cells(np.array([[True] * 3, [True, False, True], [True] * 3])).sum())
        9
    """
    return np.asarray(ndimage.binary_fill_holes(cells_YX))


def score_map(map_YX: np.ndarray, cells_YX: np.ndarray, inside_YX: np.ndarray | None = None) -> Score:
    """Compare a map with the cells of its object.

    Args:
        map_YX: weights.
        cells_YX: booleans, at least one true.
        inside_YX: :func:`inside_cells` of them, where it is known already.

    Returns:
        Whether the maximum lies inside the outline, whether on paint, and the overlap of the
        highest cells, 0 to 1.

    Example:
        >>> score_map(np.array([[0.9, 0.1]]), np.array([[True, False]]))
        (True, True, 1.0)
    """
    order = np.argsort(-map_YX.ravel(), kind="stable")
    truth = cells_YX.ravel()
    top = np.zeros_like(truth)
    top[order[: truth.sum()]] = True
    inside = (inside_cells(cells_YX) if inside_YX is None else inside_YX).ravel()
    return bool(inside[order[0]]), bool(truth[order[0]]), float((top & truth).sum() / (top | truth).sum())


def shown(scores: Sequence[Score]) -> tuple[str, str]:
    """Write pointing in percent with Wilson's interval, and the mean overlap.

    Words count as independent, also those of one image.

    Args:
        scores: one a word; none give dashes.

    Returns:
        Two cells of a table.

    Example:
        >>> shown([(True, True, 0.5)] * 198 + [(False, False, 0.5)] * 2)
        ('99.0 [96.4, 99.7]', '0.50')
    """
    if not scores:
        return "-", "-"
    return percent(sum(inside for inside, _, _ in scores), len(scores)), f"{np.mean([row[2] for row in scores]):.2f}"

"""From a map to colors: one honest scale, its legend, and the difference of two images.

Legend: ``Y`` ``X`` map rows and columns, ``R`` colors.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageChops

__all__ = ["LEGEND", "colored", "difference", "uri"]

# Dark to bright in even steps of lightness, readable without color vision (a coarse "inferno").
STOPS = ("#0b0724", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")
#: The scale as a CSS gradient, from nothing to the top.
LEGEND = f"linear-gradient(to right, {', '.join(STOPS)})"
# Maps are small; they are enlarged smoothly to this many pixels of their longer side, and by the browser from there.
LARGEST = 256


def _lookup() -> np.ndarray:
    stops_KR = np.array([[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in STOPS], dtype=np.float64)
    places_K = np.linspace(0, 255, len(STOPS))
    return np.stack([np.interp(np.arange(256), places_K, stops_KR[:, color]) for color in range(3)], axis=1).astype(
        np.uint8
    )


def colored(map_YX: np.ndarray, top: float) -> Image.Image:
    """Give a map its colors.

    Args:
        map_YX: shares of attention, from 0.
        top: the value that is shown brightest. The same one for all words of an image shows a weak word as weak.

    Returns:
        An RGB image of the map's aspect, 256 pixels at most.

    Example:
        >>> colored(np.zeros((16, 8)), top=1.0).size
        (128, 256)
    """
    levels = np.clip(np.asarray(map_YX, dtype=np.float32) / max(top, 1e-12), 0, 1)
    factor = LARGEST / max(levels.shape)
    size = max(1, round(levels.shape[1] * factor)), max(1, round(levels.shape[0] * factor))
    smooth = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(_lookup()[(np.clip(smooth, 0, 1) * 255).round().astype(np.uint8)])


def difference(one: Image.Image, other: Image.Image) -> Image.Image:
    """Show where two images differ: the absolute difference, as it is, not stretched.

    Args:
        one: an image.
        other: one of the same size.

    Returns:
        An RGB image; black where they are equal.
    """
    return ImageChops.difference(one.convert("RGB"), other.convert("RGB"))


def uri(image: Image.Image) -> str:
    """Give an image as a data address, lossless.

    Args:
        image: the image.

    Returns:
        ``data:image/png;base64,...``
    """
    held = io.BytesIO()
    image.save(held, format="PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()

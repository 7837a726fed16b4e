"""Composites: one image with every subject cut out of its own and put where a scene wants it.

Legend: ``N`` subject, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2ictl.controls.layouts import Region

__all__ = ["Piece", "compose"]

# What an image of nothing but subjects leaves open.
NEUTRAL = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A subject in its own image, and where it shall be.

    Args:
        image: the image that shows it.
        source: where it is there.
        target: where it shall be.
    """

    image: Image.Image
    source: Region
    target: Region

    def inside(self) -> np.ndarray:
        """The subject's part of its image, boolean, rows by columns."""
        if self.source.box is not None:
            return self.source.cells(self.image.height, self.image.width).numpy()
        mask = Image.fromarray(np.array(self.source.mask, dtype=np.uint8) * 255)
        large = np.asarray(mask.resize(self.image.size, Image.Resampling.BILINEAR)) >= 128
        # One that is thinner than a pixel takes the pixels that it covers most.
        return large if large.any() else self.source.cells(self.image.height, self.image.width).numpy()


def compose(pieces: Sequence[Piece], height: int, width: int) -> tuple[Image.Image, Tensor]:
    """Put subjects into one image.

    Each is cut out along its mask, brought into its target box with one scale for both sides, and centered there; the
    background has the median color of what lies around the subjects in their own images. Where two overlap the later
    one is in front.

    Args:
        pieces: the subjects.
        height: rows (pixels).
        width: columns (pixels).

    Returns:
        The image, and ``coverage_NYX``: how much of each pixel each of them covers, in [0, 1].

    Example:
        >>> left, right = (Region(word="cat", box=box) for box in ((0, 0, 0.5, 1), (0.5, 0, 1, 1)))
        >>> piece = Piece(image=Image.new("RGB", (8, 8), "red"), source=left, target=right)
        >>> image, coverage_NYX = compose([piece], 8, 8)
        >>> coverage_NYX[0, 0].tolist()
        [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """
    canvas = Image.new("RGB", (width, height), _background(pieces))
    coverage_NYX = torch.zeros(len(pieces), height, width)
    for number, piece in enumerate(pieces):
        inside = piece.inside()
        top, bottom, left, right = _extent(inside)
        crop = piece.image.crop((left, top, right, bottom))
        shape = Image.fromarray((inside[top:bottom, left:right] * 255).astype(np.uint8))
        up, down, before, behind = _extent(piece.target.cells(height, width).numpy())
        scale = min((down - up) / crop.height, (behind - before) / crop.width)
        size = (max(1, round(scale * crop.width)), max(1, round(scale * crop.height)))
        place = ((before + behind - size[0]) // 2, (up + down - size[1]) // 2)
        alpha = shape.resize(size, Image.Resampling.BILINEAR)
        canvas.paste(crop.resize(size, Image.Resampling.LANCZOS), place, alpha)
        pasted = Image.new("L", (width, height))
        pasted.paste(alpha, place)
        pasted_YX = torch.from_numpy(np.array(pasted)).float() / 255
        coverage_NYX *= 1 - pasted_YX  # what is in front hides what is behind
        coverage_NYX[number] = pasted_YX
    return canvas, coverage_NYX


def _background(pieces: Sequence[Piece]) -> tuple[int, ...]:
    around = [np.asarray(piece.image.convert("RGB"))[~piece.inside()] for piece in pieces]
    pixels = np.concatenate(around) if around else np.zeros((0, 3))
    return tuple(int(each) for each in np.median(pixels, axis=0)) if len(pixels) else NEUTRAL


def _extent(inside: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right edge of what is true."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1

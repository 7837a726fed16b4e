"""What the auxiliary head of the transformer is asked: what lies where in the drawn scene.

Training asks the image rows of a middle block, for every patch of 8x8 pixels, which shape covers it,
in which color, and where the center of the object is. Rows that know this early learn the rest
sooner, as with representations of another network in Yu et al., "Representation alignment for
generation", 2024, arXiv 2410.06940; here the labels of the drawn world are exact. The head is thrown away at export.

Legend: ``N`` scenes, ``P`` patches from the upper left along rows, ``B`` batch row, ``W`` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from t2ictl.shapes.draw import inside
from t2ictl.shapes.world import COLORS, SHAPES, Placed, Scene

#: Pixels a side of a patch.
PATCH = 8
#: An object owns a patch if it covers this part of it, and no other more.
COVERED = 0.125
#: Points a side and patch at which coverage is counted.
POINTS = 4
#: Classes of shapes and of colors; 0 is background.
CLASSES = 1 + len(SHAPES)
HIDDEN = 128
#: Objects that are rasterized together.
CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What lies in each patch.

    Args:
        shape_NP: 0 for background, or 1 more than the place in ``SHAPES``.
        color_NP: the same for ``COLORS``; a mark does not count.
        offset_NPC: column and row of the object's center seen from the middle of the patch, in the object's
            radii; 0 for background.
    """

    shape_NP: torch.Tensor
    color_NP: torch.Tensor
    offset_NPC: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Layout:
        return Layout(shape_NP=self.shape_NP[rows], color_NP=self.color_NP[rows], offset_NPC=self.offset_NPC[rows])


def _coverage(shape: str, items: Sequence[Placed], rows: int, columns: int) -> np.ndarray:
    """Return which part of each patch objects of one shape cover, shape ``(objects, rows, columns)``."""
    place = np.array([(item.x, item.y, item.radius) for item in items], np.float32)
    x, y, radius = (place[:, column, None, None] for column in range(3))
    fine_y = (np.arange(rows * POINTS, dtype=np.float32)[None, :, None] + 0.5) * (PATCH / POINTS)
    fine_x = (np.arange(columns * POINTS, dtype=np.float32)[None, None, :] + 0.5) * (PATCH / POINTS)
    x_NYX, y_NYX = np.broadcast_arrays((fine_x - x) / radius, (fine_y - y) / radius)
    return inside(shape, x_NYX, y_NYX).reshape(len(items), rows, POINTS, columns, POINTS).mean(axis=(2, 4))


def layout_of(scenes: Sequence[Scene]) -> Layout:
    """Find what lies in each patch of scenes.

    Args:
        scenes: ``N`` scenes of one size, a multiple of 8 pixels.

    Returns:
        The layouts, with small integers and halfs.

    Example:
        >>> layout_of([Scene(objects=())]).shape_NP.shape
        torch.Size([1, 64])
    """
    rows, columns = scenes[0].height // PATCH, scenes[0].width // PATCH
    found = Layout(
        shape_NP=torch.zeros(len(scenes), rows * columns, dtype=torch.uint8),
        color_NP=torch.zeros(len(scenes), rows * columns, dtype=torch.uint8),
        offset_NPC=torch.zeros(len(scenes), rows * columns, 2, dtype=torch.float16),
    )
    most = np.full((len(scenes), rows * columns), COVERED)
    middle = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2) * PATCH + PATCH / 2
    for number, shape in enumerate(SHAPES, start=1):
        owners = [(n, item) for n, scene in enumerate(scenes) for item in scene.objects if item.look.shape == shape]
        for start in range(0, len(owners), CHUNK):
            chunk = owners[start : start + CHUNK]
            bodies = _coverage(shape, [item for _, item in chunk], rows, columns).reshape(len(chunk), -1)
            for (n, item), body in zip(chunk, bodies, strict=True):
                owned = np.flatnonzero(body >= most[n])
                most[n, owned] = body[owned]
                found.shape_NP[n, owned] = number
                found.color_NP[n, owned] = 1 + COLORS.index(item.look.color)
                offset = (np.array((item.x, item.y)) - middle[owned]) / item.radius
                found.offset_NPC[n, owned] = torch.from_numpy(offset).half()
    return found


class LayoutHead(nn.Module):
    """Two layers that read the layout from image rows.

    Args:
        width: of the rows.

    Example:
        >>> LayoutHead(8)(torch.zeros(1, 64, 8)).shape
        torch.Size([1, 64, 16])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 2 * CLASSES + 2)
        )

    def forward(self, rows_BPW: torch.Tensor) -> torch.Tensor:
        """Return logits of shapes, logits of colors and offsets, shape ``(B, P, 16)``."""
        return self.layers(rows_BPW)


def layout_loss(read_BPC: torch.Tensor, layout: Layout, weight_B: torch.Tensor) -> torch.Tensor:
    """Measure how wrong the layout was read.

    Args:
        read_BPC: what the head says.
        layout: the truth, of ``B`` scenes.
        weight_B: how much each image counts; 0 for pure noise, in which nothing can be read.

    Returns:
        Mean over images of the cross-entropies of shape and color a patch, in nats, and the squared error of
        the offset a covered patch, in radii.
    """
    logits = read_BPC.transpose(1, 2)
    shape, color = layout.shape_NP.long(), layout.color_NP.long()
    named = nn.functional.cross_entropy(logits[:, :CLASSES], shape, reduction="none")
    named = named + nn.functional.cross_entropy(logits[:, CLASSES : 2 * CLASSES], color, reduction="none")
    missed = (read_BPC[..., 2 * CLASSES :] - layout.offset_NPC.float()).square().sum(dim=-1)
    covered = (shape > 0).float()
    missed = (missed * covered).sum(dim=1) / covered.sum(dim=1).clamp(min=1)
    return (weight_B * (named.mean(dim=1) + missed)).mean()

"""Attention maps of words as plain JSON data, for pages.

Legend: ``N`` word, ``P`` block of layers, ``S`` step, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import base64
from typing import Any

from torch import Tensor

from t2ictl.maps.figures import COLORS

__all__ = ["pack_maps"]

# Values of maps, from 0 to the largest: 16 bits, so that ranks and low values stay right.
LEVELS = 65535


def pack_maps(maps_NPSYX: Tensor) -> dict[str, Any]:
    """Return maps as plain JSON data, on one scale.

    Args:
        maps_NPSYX: the maps; the first block is all of them, the first step the mean over all. Changed in place.

    Returns:
        ``size``, ``steps``, ``top``, ``scale``, ``means``, ``maps`` and ``colors``, as
        :meth:`t2ictl.AttentionRecord.to_dict` explains them.

    Example:
        >>> import torch
        >>> data = pack_maps(torch.tensor([0.1, 0.3]).view(1, 1, 1, 1, 2))
        >>> data["size"], data["steps"], data["means"], data["maps"]
        ([1, 2], 0, [0.2], 'VVX//w==')
    """
    scale, top = max(float(maps_NPSYX.max()), 1e-12), float(maps_NPSYX[:, 0, 0].max())
    means = [float(f"{mean:.6g}") for mean in maps_NPSYX.mean(dim=(3, 4)).flatten().tolist()]
    # In place: of many words and steps these are by far the largest data.
    values = maps_NPSYX.mul_(LEVELS / scale).round_().clamp_(0, LEVELS).numpy().astype("<u2")
    return {
        "size": list(maps_NPSYX.shape[-2:]),
        "steps": maps_NPSYX.shape[2] - 1,
        "top": top,
        "scale": scale,
        "means": means,
        "maps": base64.b64encode(values.tobytes()).decode(),
        "colors": list(COLORS),
    }

"""Attention maps of a kernel call: which queries, keys and mask entries they are made of.

Legend: ``B`` batch row, ``H`` head, ``L`` position that asks, ``M`` position that is asked, ``Q`` image position, ``K``
text position.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.attention.edits import AttentionCall
from t2ictl.attention.joint_maps import (
    all_key_attention,
    output_space_map,
    self_attention_map,
    text_attention,
    text_mass,
    text_to_image_attention,
)
from t2ictl.attention.passes import MapKind, Rows
from t2ictl.attention.seam import KernelCall
from t2ictl.errors import UnsupportedPipeline

__all__ = ["kernel_map"]


def kernel_map(kernel: KernelCall, call: AttentionCall, kind: MapKind, rows: Rows) -> Tensor:
    """Return the attention map of one layer, summed over its heads.

    Args:
        kernel: what the layer calls the kernel with.
        call: where image and text stand in it.
        kind: which reading of it. In cross-attention all keys are text: the first two are the same, the mass is 1.
        rows: batch rows to compute it for.

    Returns:
        ``map_BQK``, float32 at least; of a layer of the image alone ``K`` are its own places.

    Raises:
        UnsupportedPipeline: if the layer has no such map.
    """
    image, text = call.image, call.text
    q_BHLD, k_BHMD = kernel.q[rows], kernel.k[rows]
    mask = _rows(kernel.mask, rows)
    if text is None or image is None:
        if kind == "text_mass":
            return q_BHLD.new_full((len(q_BHLD), q_BHLD.shape[2], 1), q_BHLD.shape[1]).float()
        if kind not in ("text", "all_keys"):
            raise UnsupportedPipeline(
                f"{call.layer.address} has no map of the kind {kind!r}: its text asks nothing of the image.",
                "Use maps='text', or a model whose image and text attend to each other.",
            )
        read = self_attention_map if call.layer.kind == "self" else text_attention
        return read(q_BHLD, k_BHMD, mask, kernel.scale)
    if kind == "text":
        return text_attention(q_BHLD[:, :, image], k_BHMD[:, :, text], _part(mask, image, text), kernel.scale)
    if kind == "all_keys":
        every = slice(None)
        return all_key_attention(q_BHLD[:, :, image], k_BHMD, text, _part(mask, image, every), kernel.scale)
    if kind == "text_mass":
        return text_mass(q_BHLD[:, :, image], k_BHMD, text, _part(mask, image, slice(None)), kernel.scale)[..., None]
    if kind == "text_to_image":
        words_BHKD, places_BHQD = q_BHLD[:, :, text], k_BHMD[:, :, image]
        return text_to_image_attention(words_BHKD, places_BHQD, _part(mask, text, image), kernel.scale)
    out_BHLD = kernel.run()[rows]
    return output_space_map(out_BHLD[:, :, image], out_BHLD[:, :, text])


def _rows(mask: Tensor | None, rows: Rows) -> Tensor | None:
    """The mask of some batch rows; one without a batch is that of all."""
    return mask if mask is None or mask.ndim < 4 or mask.shape[0] == 1 else mask[rows]


def _part(mask: Tensor | None, asking: slice, asked: slice) -> Tensor | None:
    """The part of a mask for some queries and keys; a dimension of one entry stands for all."""
    if mask is None:
        return None
    if mask.ndim >= 2 and mask.shape[-2] > 1:
        mask = mask[..., asking, :]
    return mask if mask.shape[-1] == 1 else mask[..., asked]

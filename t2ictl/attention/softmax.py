"""Attention together with its maps, for passes with gradients, from one softmax that nobody keeps.

A map is the softmax of all heads, summed. Computed beside a fused kernel it needs queries and keys a second time, and
autograd would keep its softmax in float32, and the kernel its own result. Here the softmax serves both and is computed
again in the backward pass: what is kept is queries, keys and values. Text has few keys, so that is cheaper than the
fused kernel; it is not meant for self-attention.

Legend: ``B`` batch row, ``H`` head, ``Q`` image position (query), ``K`` text token or image position (key), ``D`` head
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["attention_and_map", "summed_attention", "scores", "softmax"]


def scores(q_BHQD: Tensor, k_BHKD: Tensor, mask: Tensor | None, scale: float, *, upcast: bool) -> Tensor:
    """Return the logits of attention.

    Args:
        q_BHQD: queries.
        k_BHKD: keys.
        mask: bias that broadcasts to ``BHQK``, or None.
        scale: factor on the products.
        upcast: multiply in float32 at least; SD 2.1 overflows in half precision.

    Returns:
        ``scores_BHQK``.
    """
    if upcast:
        exact = torch.promote_types(q_BHQD.dtype, torch.float32)
        q_BHQD, k_BHKD = q_BHQD.to(exact), k_BHKD.to(exact)
    scores_BHQK = q_BHQD @ k_BHKD.transpose(-1, -2) * scale
    return scores_BHQK if mask is None else scores_BHQK + mask


def softmax(scores_BHQK: Tensor) -> Tensor:
    """Return the softmax over keys in at least float32: half precision loses the small weights that maps are made of.

    Args:
        scores_BHQK: logits.

    Returns:
        ``weights_BHQK``.
    """
    exact = scores_BHQK.float() if scores_BHQK.dtype in (torch.float16, torch.bfloat16) else scores_BHQK
    return exact.softmax(dim=-1)


def summed_attention(q_BHQD: Tensor, k_BHKD: Tensor, mask: Tensor | None, scale: float, *, upcast: bool) -> Tensor:
    """Return attention weights summed over heads.

    Args:
        q_BHQD: queries.
        k_BHKD: keys.
        mask: bias that broadcasts to ``BHQK``, or None.
        scale: factor on the products.
        upcast: multiply in float32 at least.

    Returns:
        ``map_BQK``, float32 at least.

    Example:
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
        >>> summed_attention(q, k, None, 0.5, upcast=False)[0, 0]
        tensor([0.4000, 0.4000, 0.4000, 0.4000, 0.4000])
    """
    return softmax(scores(q_BHQD, k_BHKD, mask, scale, upcast=upcast)).sum(dim=1)


def attention_and_map(
    q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, mask: Tensor | None, scale: float, *, upcast: bool
) -> tuple[Tensor, Tensor]:
    """Return the result of a layer and its map from one softmax, which is not kept for the backward pass.

    ``out = P v`` and ``mass = sum_h P`` with ``P = softmax(scale q k^T + mask)``.

    Args:
        q_BHQD: queries.
        k_BHKD: keys.
        v_BHKD: values.
        mask: bias that broadcasts to ``BHQK`` and wants no gradient, or None.
        scale: factor on the products.
        upcast: multiply in float32 at least.

    Returns:
        ``out_BHQD`` in the precision of the values, and ``map_BQK``, float32 at least.

    Example:
        >>> q, k, v = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4), torch.ones(1, 2, 5, 4)
        >>> out, mass = attention_and_map(q, k, v, None, 0.5, upcast=False)
        >>> out.shape, mass.sum(dim=-1)[0]
        (torch.Size([1, 2, 3, 4]), tensor([2., 2., 2.]))
    """
    found: tuple[Tensor, Tensor] = _AttentionAndMass.apply(q_BHQD, k_BHKD, v_BHKD, mask, scale, upcast)
    return found


class _AttentionAndMass(torch.autograd.Function):
    """One softmax for both; the backward pass makes it anew."""

    @staticmethod
    def forward(
        ctx: Any, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, mask: Tensor | None, scale: float, upcast: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's result and its map; the weights are let go."""
        ctx.save_for_backward(q_BHQD, k_BHKD, v_BHKD, mask)
        ctx.scale, ctx.upcast = scale, upcast
        weights_BHQK = softmax(scores(q_BHQD, k_BHKD, mask, scale, upcast=upcast))
        return weights_BHQK.to(v_BHKD.dtype) @ v_BHKD, weights_BHQK.sum(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_out_BHQD: Tensor, of_mass_BQK: Tensor) -> tuple[Tensor | None, ...]:
        """Make the weights again, and from them the gradients."""
        q_BHQD, k_BHKD, v_BHKD, mask = ctx.saved_tensors
        logits_BHQK = scores(q_BHQD, k_BHKD, mask, ctx.scale, upcast=ctx.upcast)
        weights_BHQK = softmax(logits_BHQK)
        slope_BHQK = (of_out_BHQD @ v_BHKD.transpose(-1, -2)).to(weights_BHQK.dtype) + of_mass_BQK.unsqueeze(1)
        # d softmax = p (g - sum p g), by the kernel that autograd itself takes
        slope_BHQK = torch._softmax_backward_data(slope_BHQK, weights_BHQK, -1, weights_BHQK.dtype)
        slope_BHQK = slope_BHQK.to(logits_BHQK.dtype) * ctx.scale
        needs_q, needs_k, needs_v = ctx.needs_input_grad[:3]
        query = (slope_BHQK @ k_BHKD.to(slope_BHQK.dtype)).to(q_BHQD.dtype) if needs_q else None
        key = (slope_BHQK.mT @ q_BHQD.to(slope_BHQK.dtype)).to(k_BHKD.dtype) if needs_k else None
        value = weights_BHQK.to(v_BHKD.dtype).mT @ of_out_BHQD if needs_v else None
        return query, key, value, None, None, None

"""Attention weights summed over heads, made block by block: no tensor of all heads, queries and keys is made or kept.

A block is some heads, some queries and all keys, so that each softmax lies in one block. Both functions keep queries,
keys and mask for the backward pass, and make the weights of each block again. What they sum differs:

    summed_weights   map = sum_h P                  of every key
    shares_of_all    map = sum_h P[:, columns]      of some keys, though P is a softmax over all of them

with ``P = softmax(scale q k^T + mask)``. For a gradient ``g`` of the map, that of the logits is
``dS = P (g - sum_t P_t g_t)``, with ``g = 0`` at keys outside of the map.

A query that may read no key has weights 0, as in ``scaled_dot_product_attention``. Products and weights are float32 at
least, also under autocast: logits that were rounded to half precision would move the maps.

Legend: ``B`` batch row, ``H`` head, ``Q`` query, ``L`` key, ``T`` key in the map, ``D`` head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["BUDGET", "Columns", "share_of_columns", "shares_of_all", "summed_weights"]

BUDGET = 32 * 2**20
"""Size of a block (bytes). On one CPU thread the time hardly depends on it from 1 to 32 MiB (4 heads, 1,024 queries,
1,536 keys, width 128); the larger end spares a GPU small kernels. Up to three tensors of this size exist at a time."""

Columns = slice | Tensor
"""Some keys: a slice, or their positions."""

Block = tuple[slice, slice]  # heads, queries


def summed_weights(
    q_BHQD: Tensor, k_BHLD: Tensor, mask: Tensor | None, scale: float, *, budget: int, most_heads: int | None = None
) -> Tensor:
    """Return attention weights summed over heads, without keeping them for the backward pass.

    Args:
        q_BHQD: queries.
        k_BHLD: keys; their number of heads divides that of the queries.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHQL`` and gets no gradient. Or None.
        scale: factor on the products.
        budget: most bytes of a block.
        most_heads: most heads of a block; None for as many as the budget allows.

    Returns:
        ``map_BQL``, float32 at least.

    Example:
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
        >>> summed_weights(q, k, None, 0.5, budget=BUDGET)[0, 0]
        tensor([0.4000, 0.4000, 0.4000, 0.4000, 0.4000])
    """
    found: Tensor = _SummedWeights.apply(q_BHQD, k_BHLD, mask, scale, budget, most_heads)
    return found


def shares_of_all(
    q_BHQD: Tensor, k_BHLD: Tensor, columns: Columns, mask: Tensor | None, scale: float, *, budget: int
) -> Tensor:
    """Return the weights of some keys in a softmax over all keys, summed over heads.

    Args:
        q_BHQD: queries.
        k_BHLD: all keys; their number of heads divides that of the queries.
        columns: the keys that are in the map.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHQL`` and gets no gradient. Or None.
        scale: factor on the products.
        budget: most bytes of a block.

    Returns:
        ``map_BQT``, float32 at least.

    Example:
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
        >>> shares_of_all(q, k, slice(3, 5), None, 0.5, budget=BUDGET)[0, 0]
        tensor([0.4000, 0.4000])
    """
    found: Tensor = _SharesOfAll.apply(q_BHQD, k_BHLD, columns, mask, scale, budget)
    return found


@torch.no_grad()
def share_of_columns(
    q_BHQD: Tensor, k_BHLD: Tensor, columns: Columns, mask: Tensor | None, scale: float, *, budget: int
) -> Tensor:
    """Return what :func:`shares_of_all` sums to over its keys; no map is made, and there is no gradient.

    Args:
        q_BHQD: queries.
        k_BHLD: all keys; their number of heads divides that of the queries.
        columns: the keys whose share is asked for.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHQL``. Or None.
        scale: factor on the products.
        budget: most bytes of a block.

    Returns:
        ``share_BQ``, float32 at least.

    Example:
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
        >>> share_of_columns(q, k, slice(3, 5), None, 0.5, budget=BUDGET)
        tensor([[0.8000, 0.8000, 0.8000]])
    """
    logits = _Logits(q_BHQD, k_BHLD, mask, scale)
    share_BQ = logits.zeros(q_BHQD.shape[0], q_BHQD.shape[2])
    with _exact(q_BHQD.device):
        for heads, queries in logits.blocks(budget):
            powers_BHQL, total_BHQ1, _ = _powers(logits.of((heads, queries)))
            share_BQ[:, queries] += (_taken(powers_BHQL, columns).sum(dim=-1) / total_BHQ1.squeeze(-1)).sum(dim=1)
    return share_BQ


class _SummedWeights(torch.autograd.Function):
    """The softmax of each block, in both directions."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHQD: Tensor,
        k_BHLD: Tensor,
        mask: Tensor | None,
        scale: float,
        budget: int,
        most_heads: int | None,
    ) -> Tensor:
        """Return the sum; the weights are let go."""
        ctx.save_for_backward(q_BHQD, k_BHLD, mask)
        ctx.scale, ctx.budget, ctx.most_heads = scale, budget, most_heads
        logits = _Logits(q_BHQD, k_BHLD, mask, scale)
        map_BQL = logits.zeros(q_BHQD.shape[0], q_BHQD.shape[2], k_BHLD.shape[2])
        with _exact(q_BHQD.device):
            for heads, queries in logits.blocks(budget, most_heads):
                map_BQL[:, queries] += logits.weights((heads, queries)).sum(dim=1)
        return map_BQL

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_map_BQL: Tensor) -> tuple[Tensor | None, ...]:
        """Make the weights of each block again, and from them the gradients."""
        q_BHQD, k_BHLD, mask = ctx.saved_tensors
        logits = _Logits(q_BHQD, k_BHLD, mask, ctx.scale)
        gradients = _Gradients(logits, *ctx.needs_input_grad[:2])
        with _exact(q_BHQD.device):
            for block in logits.blocks(ctx.budget, ctx.most_heads):
                weights_BHQL = logits.weights(block)
                slope_BHQL = weights_BHQL * of_map_BQL[:, None, block[1]]
                slope_BHQL.addcmul_(weights_BHQL, slope_BHQL.sum(dim=-1, keepdim=True), value=-1)
                gradients.add(block, slope_BHQL)
        return gradients.of_queries(), gradients.of_keys(), None, None, None, None


class _SharesOfAll(torch.autograd.Function):
    """Weights of some keys; the logarithm of each query's sum over all keys is kept, so that no softmax is repeated."""

    @staticmethod
    def forward(
        ctx: Any, q_BHQD: Tensor, k_BHLD: Tensor, columns: Columns, mask: Tensor | None, scale: float, budget: int
    ) -> Tensor:
        """Return the sum; the weights are let go."""
        logits = _Logits(q_BHQD, k_BHLD, mask, scale)
        lse_BHQ1 = logits.zeros(*q_BHQD.shape[:3], 1)
        width = len(range(k_BHLD.shape[2])[columns]) if isinstance(columns, slice) else len(columns)
        map_BQT = logits.zeros(q_BHQD.shape[0], q_BHQD.shape[2], width)
        with _exact(q_BHQD.device):
            for heads, queries in logits.blocks(budget):
                powers_BHQL, total_BHQ1, lse_BHQ1[:, heads, queries] = _powers(logits.of((heads, queries)))
                map_BQT[:, queries] += (_taken(powers_BHQL, columns) / total_BHQ1).sum(dim=1)
        ctx.save_for_backward(q_BHQD, k_BHLD, mask, lse_BHQ1)
        ctx.columns, ctx.scale, ctx.budget = columns, scale, budget
        return map_BQT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_map_BQT: Tensor) -> tuple[Tensor | None, ...]:
        """Make the weights of each block again, and from them the gradients."""
        q_BHQD, k_BHLD, mask, lse_BHQ1 = ctx.saved_tensors
        logits = _Logits(q_BHQD, k_BHLD, mask, ctx.scale)
        gradients = _Gradients(logits, *ctx.needs_input_grad[:2])
        with _exact(q_BHQD.device):
            for heads, queries in logits.blocks(ctx.budget):
                weights_BHQL = logits.of((heads, queries)).sub_(lse_BHQ1[:, heads, queries]).exp_()
                part_BHQT = _taken(weights_BHQL, ctx.columns) * of_map_BQT[:, None, queries]
                # From here on the gradient of the logits; the keys in the map have a second term.
                slope_BHQL = weights_BHQL.mul_(-part_BHQT.sum(dim=-1, keepdim=True))
                if isinstance(ctx.columns, slice):
                    slope_BHQL[..., ctx.columns] += part_BHQT
                else:
                    slope_BHQL.index_add_(-1, ctx.columns, part_BHQT)
                gradients.add((heads, queries), slope_BHQL)
        return gradients.of_queries(), gradients.of_keys(), None, None, None, None


class _Logits:
    """Logits of an attention, a block at a time."""

    def __init__(self, q_BHQD: Tensor, k_BHLD: Tensor, mask: Tensor | None, scale: float) -> None:
        self.dtype = torch.promote_types(torch.promote_types(q_BHQD.dtype, k_BHLD.dtype), torch.float32)
        self.shared = q_BHQD.shape[1] // k_BHLD.shape[1]  # heads of queries that read the same head of keys
        self.q_BHQD = q_BHQD
        self.k_BHLD = k_BHLD.repeat_interleave(self.shared, dim=1) if self.shared > 1 else k_BHLD
        self.mask = None if mask is None else mask[(None,) * (4 - mask.dim())]
        self.scale = scale

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros in the precision of the logits."""
        return self.q_BHQD.new_zeros(shape, dtype=self.dtype)

    def blocks(self, budget: int, most_heads: int | None = None) -> Iterator[Block]:
        """Walk over heads and queries: as many heads as the budget allows, or a part of the queries of one."""
        rows, heads, queries, _ = self.q_BHQD.shape
        afforded = max(1, budget // (rows * self.k_BHLD.shape[2] * self.dtype.itemsize))  # queries of all heads
        width = min(max(1, afforded // max(1, queries)), heads, most_heads or heads)
        height = min(afforded, max(1, queries))
        for head in range(0, heads, width):
            for query in range(0, queries, height):
                yield slice(head, head + width), slice(query, query + height)

    def queries(self, block: Block) -> Tensor:
        """Return the queries of a block, times the scale."""
        return self.q_BHQD[:, block[0], block[1]].to(self.dtype) * self.scale

    def keys(self, block: Block) -> Tensor:
        """Return the keys of a block."""
        return self.k_BHLD[:, block[0]].to(self.dtype)

    def of(self, block: Block) -> Tensor:
        """Return the logits of a block; they may be overwritten."""
        logits_BHQL = self.queries(block) @ self.keys(block).mT
        if self.mask is None:
            return logits_BHQL
        own = [part if size > 1 else slice(None) for part, size in zip(block, self.mask.shape[1:3], strict=True)]
        mask_BHQL = self.mask[:, own[0], own[1]]
        if mask_BHQL.dtype == torch.bool:
            return logits_BHQL.masked_fill_(~mask_BHQL, -torch.inf)
        return logits_BHQL.add_(mask_BHQL)

    def weights(self, block: Block) -> Tensor:
        """Return the softmax of a block."""
        logits_BHQL = self.of(block)
        weights_BHQL = logits_BHQL.softmax(dim=-1)
        if self.mask is not None:
            weights_BHQL.masked_fill_(logits_BHQL.amax(dim=-1, keepdim=True) == -torch.inf, 0)
        return weights_BHQL


class _Gradients:
    """Gradients of queries and keys, gathered from those of the logits."""

    def __init__(self, logits: _Logits, needs_queries: bool, needs_keys: bool) -> None:
        self.logits = logits
        self.query_BHQD = torch.empty_like(logits.q_BHQD) if needs_queries else None
        self.key_BHLD = logits.zeros(*logits.k_BHLD.shape) if needs_keys else None

    def add(self, block: Block, slope_BHQL: Tensor) -> None:
        """Take in the gradient of a block's logits."""
        if self.query_BHQD is not None:
            self.query_BHQD[:, block[0], block[1]] = slope_BHQL @ self.logits.keys(block) * self.logits.scale
        if self.key_BHLD is not None:
            self.key_BHLD[:, block[0]] += slope_BHQL.mT @ self.logits.queries(block)

    def of_queries(self) -> Tensor | None:
        """Return the gradient of the queries."""
        return self.query_BHQD

    def of_keys(self) -> Tensor | None:
        """Return the gradient of the keys as they were given: those that heads shared are added up."""
        if self.key_BHLD is None:
            return None
        shared = self.logits.shared
        given_BHLD = self.key_BHLD.unflatten(1, (-1, shared)).sum(dim=2) if shared > 1 else self.key_BHLD
        return given_BHLD.to(self.logits.k_BHLD.dtype)


def _powers(logits_BHQL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Powers of e, their sum over keys, and the sum's logarithm; the logits are overwritten."""
    top_BHQ1 = logits_BHQL.amax(dim=-1, keepdim=True)
    top_BHQ1.masked_fill_(top_BHQ1 == -torch.inf, 0)
    powers_BHQL = logits_BHQL.sub_(top_BHQ1).exp_()
    total_BHQ1 = powers_BHQL.sum(dim=-1, keepdim=True)
    total_BHQ1.masked_fill_(total_BHQ1 == 0, 1)  # a query that reads nothing
    return powers_BHQL, total_BHQ1, top_BHQ1 + total_BHQ1.log()


def _taken(of_keys_BHQL: Tensor, columns: Columns) -> Tensor:
    """Return some keys of a block."""
    return of_keys_BHQL[..., columns] if isinstance(columns, slice) else of_keys_BHQL.index_select(-1, columns)


def _exact(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast, where the device has it, makes no product in half precision."""
    has_it = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if has_it else nullcontext()

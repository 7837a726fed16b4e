"""Attention in groups: each group of queries reads its own selection of keys, without a mask.

A mask over all pairs costs a softmax over pairs that it forbids, and no fused kernel takes an arbitrary one. Where
the rule is "these queries read those keys", the same result comes from one plain attention a group: the queries and
keys of a group are gathered, and its result is written to the places of its queries. No tensor of positions x
positions exists. A key may carry a bias of its logit: it rides in one more channel, ``[q, 1] . [k, b / scale]``.

Legend: ``B`` batch row, ``R`` rows that share their groups, ``N`` image position, ``H`` head, ``Q`` query of a group,
``K`` key of a group, ``D`` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from t2ictl.errors import ShapeMismatch

__all__ = ["AttentionGroup", "Grouping", "KeySource", "grouped_attention"]

# Channels are added by eight: fused kernels want widths that are a multiple of it.
EXTRA = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class KeySource:
    """Some keys of one batch row.

    Args:
        row: for each row of the group's, the batch row that the keys come from; None for the rows themselves.
        keys: ``keys_K``, positions; one may be there several times. None for all of them.
        bias: ``bias_K`` of their logits, or one number for all; 0 for none.
    """

    row: tuple[int, ...] | None = None
    keys: Tensor | None = None
    bias: Tensor | float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether these are all keys of the rows themselves, as in plain attention."""
        return self.row is None and self.keys is None and not isinstance(self.bias, Tensor) and self.bias == 0


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionGroup:
    """Queries that read the same keys.

    Args:
        queries: ``queries_Q``, positions.
        sources: where their keys come from; they share one softmax.
    """

    queries: Tensor
    sources: tuple[KeySource, ...]


@dataclass(frozen=True)
class Grouping:
    """Groups that share out the positions of an image among them.

    Args:
        groups: together they hold every position once.

    Raises:
        ShapeMismatch: if a position is in no group, or in two.
    """

    groups: tuple[AttentionGroup, ...]

    def __post_init__(self) -> None:
        places = torch.cat([group.queries for group in self.groups])
        if not torch.equal(places.sort().values, torch.arange(len(places), device=places.device)):
            raise ShapeMismatch("The groups do not hold every position once.", "Give each position one group.")

    def to(self, device: torch.device | str) -> Grouping:
        """Return the same groups with their positions on a device; what groups share stays shared."""
        every = {id(source): source for group in self.groups for source in group.sources}
        moved = {key: _moved(source, device) for key, source in every.items()}
        return Grouping(
            tuple(
                AttentionGroup(
                    queries=group.queries.to(device), sources=tuple(moved[id(source)] for source in group.sources)
                )
                for group in self.groups
            )
        )

    @cached_property
    def inverse(self) -> Tensor:
        """``inverse_N``: where each position lies when the groups stand one after the other."""
        return torch.cat([group.queries for group in self.groups]).argsort()


def _moved(source: KeySource, device: torch.device | str) -> KeySource:
    return replace(
        source,
        keys=None if source.keys is None else source.keys.to(device),
        bias=source.bias.to(device) if isinstance(source.bias, Tensor) else source.bias,
    )


def grouped_attention(
    q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, rows: Sequence[int], grouping: Grouping, scale: float
) -> Tensor:
    """Attend group by group.

    ``O[p] = sum_j softmax_j(scale q[p] . k[j] + b[j]) v[j]`` over the keys ``j`` of the group of ``p``.

    Args:
        q_BHND: queries of all batch rows.
        k_BHND: keys of all batch rows.
        v_BHND: values of all batch rows.
        rows: the batch rows that are computed; they share the groups.
        grouping: the groups.
        scale: factor of the logits.

    Returns:
        ``out_RHND``, one row for each of ``rows``.

    Example:
        >>> x, halves = torch.randn(1, 1, 4, 8), (torch.tensor([0, 3]), torch.tensor([2, 1]))
        >>> groups = tuple(AttentionGroup(queries=half, sources=(KeySource(keys=half),)) for half in halves)
        >>> out = grouped_attention(x, x, x, [0], Grouping(groups), 1.0)
        >>> alone = F.scaled_dot_product_attention(*[x[:, :, [0, 3]]] * 3, scale=1.0)
        >>> torch.allclose(out[:, :, [0, 3]], alone, atol=1e-6)
        True
    """
    # Gathered with heads and channels side by side: then every gathered position is one contiguous piece.
    q_BNHD, k_BNHD, v_BNHD = (each.transpose(1, 2) for each in (q_BHND, k_BHND, v_BHND))
    parts: list[Tensor] = []
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for group in grouping.groups:
        for source in group.sources:  # two groups of a subject, readers and others, share the keys of its own image
            if id(source) not in known:
                known[id(source)] = _taken(source, tuple(rows), k_BNHD, v_BNHD)
        taken = [known[id(source)] for source in group.sources]
        k_RKHD, v_RKHD = (torch.cat(each, dim=1) if len(each) > 1 else each[0] for each in zip(*taken, strict=True))
        bias_K = _bias(group.sources, [len(k[0]) for k, _ in taken], q_BHND)
        q_RQHD = _some_rows(q_BNHD, tuple(rows)).index_select(1, group.queries)
        parts.append(_attend(q_RQHD, k_RKHD, v_RKHD, bias_K, scale))
    return torch.cat(parts, dim=1).index_select(1, grouping.inverse).transpose(1, 2)


def _taken(source: KeySource, rows: tuple[int, ...], k_BNHD: Tensor, v_BNHD: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a source, for the rows of the group."""
    place = rows if source.row is None else source.row
    k_RNHD, v_RNHD = _some_rows(k_BNHD, place), _some_rows(v_BNHD, place)
    if source.keys is None:
        return k_RNHD, v_RNHD
    return k_RNHD.index_select(1, source.keys), v_RNHD.index_select(1, source.keys)


def _some_rows(x_BNHD: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Some rows, without a copy where they lie at equal distances, as the two sides of the guidance do."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and rows == tuple(range(rows[0], rows[0] + step * len(rows), step)):
        return x_BNHD[rows[0] : rows[-1] + 1 : step]
    return x_BNHD[list(rows)]


def _bias(sources: Sequence[KeySource], counts: Sequence[int], like: Tensor) -> Tensor | None:
    """Bias of all keys of a group, or None where there is none."""
    if all(not isinstance(source.bias, Tensor) and source.bias == 0 for source in sources):
        return None
    parts = [
        source.bias.to(like) if isinstance(source.bias, Tensor) else like.new_full((count,), source.bias)
        for source, count in zip(sources, counts, strict=True)
    ]
    return torch.cat(parts)


def _attend(q_RQHD: Tensor, k_RKHD: Tensor, v_RKHD: Tensor, bias_K: Tensor | None, scale: float) -> Tensor:
    width = v_RKHD.shape[-1]
    if bias_K is not None:
        ones_RQH1 = q_RQHD.new_ones((*q_RQHD.shape[:-1], 1))
        bias_RKH1 = (bias_K / scale)[None, :, None, None].expand(*k_RKHD.shape[:-1], 1)
        q_RQHD = F.pad(torch.cat([q_RQHD, ones_RQH1], dim=-1), (0, EXTRA - 1))
        k_RKHD = F.pad(torch.cat([k_RKHD, bias_RKH1], dim=-1), (0, EXTRA - 1))
        v_RKHD = F.pad(v_RKHD, (0, EXTRA))
    q, k, v = (each.transpose(1, 2) for each in (q_RQHD, k_RKHD, v_RKHD))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)[..., :width]

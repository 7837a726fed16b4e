"""Attention as loops over numbers, which knows nothing of ours, and the inputs that joint maps are tested on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

ROWS, HEADS, IMAGE, TEXT, WIDTH = 2, 4, 7, 5, 3
LENGTH = TEXT + IMAGE  # text lies first
WORDS = slice(0, TEXT)
# Bytes of a block in float64: one query; two queries of a head; two heads; three of the four; all.
BUDGETS = (1, 2 * ROWS * LENGTH * 8, 2 * ROWS * IMAGE * LENGTH * 8, 3 * ROWS * IMAGE * LENGTH * 8, 2**25)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, drawn in float64 for every precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def queries(dtype: torch.dtype = torch.float64, count: int = IMAGE, heads: int = HEADS) -> Tensor:
    return 2 * drawn(ROWS, heads, count, WIDTH, seed=1, dtype=dtype)


def keys(dtype: torch.dtype = torch.float64, count: int = LENGTH, heads: int = HEADS) -> Tensor:
    return 2 * drawn(ROWS, heads, count, WIDTH, seed=2, dtype=dtype)


def mask_of(kind: str, count: int, queries: int = IMAGE) -> Tensor | None:
    """A mask by its name; in those of the shape of the logits every row, head and query has another."""
    full = (ROWS, HEADS, queries, count)
    may_read = drawn(*full, seed=3) < 0.5
    may_read[..., 0] = True
    if kind == "one query reads nothing":
        may_read[0, :, 1] = False
        may_read[1, 2, 3] = False
    rows = torch.ones(ROWS, 1, 1, count, dtype=torch.bool)
    rows[0, ..., -1], rows[1, ..., 1:3] = False, False
    biases: dict[str, Tensor | None] = {
        "none": None,
        "boolean": may_read,
        "one query reads nothing": may_read,
        "boolean, by row": rows,
        "boolean, by query": may_read[0, 0],
        "boolean, by key": rows[1, 0, 0],
        "additive": 2 * drawn(*full, seed=4),
        "additive, by row": torch.zeros(ROWS, 1, 1, count, dtype=torch.float64).masked_fill(~rows, -10000.0),
        "additive, by head": drawn(1, HEADS, 1, count, seed=5),
        "additive, infinite": torch.zeros(full, dtype=torch.float64).masked_fill(~may_read, -math.inf),
        "additive, half": (2 * drawn(*full, seed=4)).to(torch.bfloat16),
        "one number": torch.tensor(1.0, dtype=torch.float64),
    }
    return biases[kind]


MASKS = (
    "none",
    "boolean",
    "one query reads nothing",
    "boolean, by row",
    "boolean, by query",
    "boolean, by key",
    "additive",
    "additive, by row",
    "additive, by head",
    "additive, infinite",
    "additive, half",
    "one number",
)


def weights_by_loops(q_BHQD: Tensor, k_BHLD: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """Softmax over all keys, one number after the other; ``weights_BHQL`` in float64."""
    rows, heads, count, width = q_BHQD.shape
    length = k_BHLD.shape[2]
    factor = 1 / math.sqrt(width) if scale is None else scale
    full = None if mask is None else mask.expand(rows, heads, count, length).tolist()
    q: Any = q_BHQD.double().tolist()
    k: Any = k_BHLD.double().tolist()
    weights = torch.zeros(rows, heads, count, length, dtype=torch.float64)
    for b in range(rows):
        for h in range(heads):
            group = h // (heads // len(k[b]))  # neighboring heads share keys
            for i in range(count):
                powers = []
                for j in range(length):
                    logit = factor * sum(x * y for x, y in zip(q[b][h][i], k[b][group][j], strict=True))
                    entry = 0.0 if full is None else full[b][h][i][j]
                    if isinstance(entry, bool):
                        powers.append(math.exp(logit) if entry else 0.0)
                    else:
                        powers.append(math.exp(logit + entry))
                total = sum(powers)
                for j in range(length):
                    weights[b, h, i, j] = powers[j] / total if total else 0.0
    return weights


def summed(weights_BHQL: Tensor, columns: Any = slice(None)) -> Tensor:
    """Sum over heads, one head after the other, of some keys."""
    total = torch.zeros_like(weights_BHQL[:, 0][..., columns])
    for h in range(weights_BHQL.shape[1]):
        total = total + weights_BHQL[:, h][..., columns]
    return total


def explicit(q_BHQD: Tensor, k_BHLD: Tensor, mask: Tensor | None, columns: Any = slice(None)) -> Tensor:
    """The same by autograd, which keeps everything; where a query reads nothing, 0."""
    logits_BHQL = q_BHQD @ k_BHLD.mT * q_BHQD.shape[-1] ** -0.5
    if mask is None:
        return logits_BHQL.softmax(dim=-1)[..., columns].sum(dim=1)
    if mask.dtype == torch.bool:
        is_read = mask.expand(logits_BHQL.shape).any(dim=-1, keepdim=True)
        # A row without any key would have no number as its softmax, and none as its gradient.
        logits_BHQL = logits_BHQL.masked_fill(~mask & is_read, -math.inf)
        return (logits_BHQL.softmax(dim=-1) * is_read)[..., columns].sum(dim=1)
    return (logits_BHQL + mask.to(logits_BHQL.dtype)).softmax(dim=-1)[..., columns].sum(dim=1)

"""Probes: read-only taps on cross-attention, and the recorder that fills a record with their maps.

A probe computes its maps beside the fused kernel, from the same queries and keys, so that an
image made with a probe is bit-equal to the one made without.

Legend: ``B`` batch row, ``Q`` image position, ``K`` context position, ``T`` prompt token,
``Y`` ``X`` map rows and columns, ``S`` step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from t2ictl.attention.edits import AttentionCall
from t2ictl.attention.layers import Layer, select_layers
from t2ictl.attention.passes import Rows
from t2ictl.errors import BudgetExceeded, SpanNotFound
from t2ictl.maps.ops import resize_maps
from t2ictl.maps.record import AttentionRecord
from t2ictl.prompts.prompt import Prompt
from t2ictl.settings.fields import setting, settings_class

__all__ = ["POINTING_LAYERS", "MapTap", "Recorder", "Recording", "recorded_columns"]

POINTING_LAYERS = ("down.*", "up.*")
"""Layers whose maps together find objects best: all cross-attention but the middle block's, as in DAAM. The layers of a
record by default are fewer and cheaper, and nouns point worse there (docs/benchmarks.md)."""


class MapTap:
    """Averages attention maps over heads and layers during one pass, with gradients if the pass has them.

    Every head of every layer has the same weight. Layers of different size are brought to
    the largest.

    Args:
        layers: the layers to listen to.
        rows: the batch rows to listen to.
    """

    def __init__(self, layers: Sequence[Layer], rows: Rows) -> None:
        self.layers = frozenset(layer.address for layer in layers)
        self.rows = rows
        self._heads = 0
        self._sums: dict[tuple[int, int], Tensor] = {}

    def take(self, call: AttentionCall, map_BQK: Tensor) -> None:
        """Add one layer."""
        self._heads += call.layer.heads
        held = self._sums.get(call.size)
        self._sums[call.size] = map_BQK if held is None else held + map_BQK

    def mean(self) -> Tensor:
        """Return the mean map of each token.

        Returns:
            ``maps_BYXT``, the share of attention that each image position gives to each token.
        """
        size = max(self._sums)
        if len(self._sums) == 1:
            return (self._sums[size] / self._heads).unflatten(1, size)
        maps_BTYX = [
            resize_maps(map_BQK.transpose(1, 2).unflatten(2, own), size) for own, map_BQK in self._sums.items()
        ]
        return (torch.stack(maps_BTYX).sum(dim=0) / self._heads).permute(0, 2, 3, 1)


@settings_class
class Recording:
    """What a session records of its attention maps, and how much memory that may take.

    Args:
        words: words or phrases to record; empty for every word of the prompt.
        layers: filter of the layers; empty for the cross-attention layers at the model's semantic size.
        per_step: keep the map of every step, not only the mean over steps.
        by: which layers share a map: those of one ``"block"`` (down, mid, up), brought to one size; or those of one
            block and ``"size"``, each at its own size and named as in a layer filter (``"up@2"``: the layers of the up
            blocks whose maps have half as many cells a side as the latent).
        budget_mb: most memory that the record may take (MiB).
    """

    words: tuple[str, ...] = setting(default=(), help="words to record; empty: every word of the prompt")
    layers: tuple[str, ...] = setting(
        default=(), help="layer filter; empty: cross-attention at the model's semantic size"
    )
    per_step: bool = setting(default=True, help="keep the maps of every step, not only their mean")
    by: Literal["block", "size"] = setting(
        default="block", help="which layers share a map: of one block, or of one size"
    )
    budget_mb: float = setting(default=512.0, help="most memory the record may take (MiB)", low=0.0)


class Recorder:
    """The tap that fills an :class:`AttentionRecord`.

    Args:
        layers: the layers to listen to.
        rows: the conditional rows of the batch.
        prompts: the prompt of each image.
        settings: what to keep.
        total: number of denoiser evaluations to come.
        latent_size: height and width of the latent (cells).

    Raises:
        NoLayerMatched: if there is no cross-attention layer among the layers.
        BudgetExceeded: if the record would be larger than its budget.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        rows: Rows,
        prompts: Sequence[Prompt],
        settings: Recording,
        *,
        total: int,
        latent_size: tuple[int, int],
    ) -> None:
        layers = select_layers(
            layers, "cross"
        )  # words have maps in cross-attention only; a filter like "up" has both kinds
        self.layers = frozenset(layer.address for layer in layers)
        self.rows: Rows = rows
        self._by_size = settings.by == "size"
        self._own_sizes = {self._group(layer): layer.size(latent_size) for layer in layers}
        heads = dict.fromkeys(sorted(self._own_sizes), 0)
        for layer in layers:
            heads[self._group(layer)] += layer.heads
        self.record = AttentionRecord(
            prompts=tuple(prompts),
            columns=recorded_columns(prompts, settings.words),
            heads=heads,
        )
        self._per_step = settings.per_step
        self._kept = total if settings.per_step else 1
        self._size = max(layer.size(latent_size) for layer in layers)
        self._sums: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}  # room for all that will be kept, taken once
        self._check_budget(settings.budget_mb)

    def _check_budget(self, budget_mb: float) -> None:
        maps = len(self.record.heads) * len(self.record.prompts) * len(self.record.columns) * self._kept
        sizes = list(self._own_sizes.values()) if self._by_size else [self._size] * len(self.record.heads)
        need_mb = maps / len(sizes) * sum(height * width for height, width in sizes) * 4 / 2**20
        if need_mb > budget_mb:
            raise BudgetExceeded(
                f"Recording {maps} maps of {self._size[0]} x {self._size[1]} needs {need_mb:.0f} MiB, "
                f"more than the budget of {budget_mb:.0f} MiB.",
                "Name fewer words, set per_step=False, or raise budget_mb.",
            )

    def _group(self, layer: Layer) -> str:
        return f"{layer.block}@{layer.stride}" if self._by_size else layer.block

    def take(self, call: AttentionCall, map_BQK: Tensor) -> None:
        """Add one layer of the current pass."""
        columns = torch.tensor(self.record.columns, dtype=torch.long, device=map_BQK.device)
        maps_BTYX = map_BQK.detach()[..., columns].transpose(1, 2).unflatten(2, call.size).float()
        if not self._by_size:
            maps_BTYX = resize_maps(maps_BTYX, self._size)
        group = self._group(call.layer)
        held = self._sums.get(group)
        self._sums[group] = maps_BTYX if held is None else held + maps_BTYX

    def end_step(self) -> None:
        """File the maps of the pass that has just ended."""
        record = self.record
        for block, sum_BTYX in self._sums.items():
            mean_BTYX = sum_BTYX / record.heads[block]
            if block not in self._held:
                self._held[block] = mean_BTYX.new_zeros(self._kept, *mean_BTYX.shape)
            held_SBTYX = self._held[block]
            if self._per_step:
                held_SBTYX[record.steps] = mean_BTYX
            else:
                held_SBTYX[0] += (mean_BTYX - held_SBTYX[0]) / (record.steps + 1)
            record.maps[block] = held_SBTYX[: record.steps + 1]
        record.steps += 1
        self._sums = {}


def recorded_columns(prompts: Sequence[Prompt], words: Sequence[str]) -> tuple[int, ...]:
    """Return the token positions that a record keeps.

    Args:
        prompts: the prompts.
        words: words asked for; none for all words of all prompts.

    Returns:
        Token positions, in order.

    Raises:
        SpanNotFound: if a word is in none of the prompts.
    """
    found: set[int] = set()
    if words:
        for word in words:
            found.update(_positions(prompts, word))
    else:
        # A word that two encoders have at different positions is refused when its map is asked for, not here.
        spans = [span for prompt in prompts for span in prompt.words()]
        found.update(token for span in spans for tokens in span.by_encoder for token in tokens)
    return tuple(sorted(found))


def _positions(prompts: Sequence[Prompt], word: str) -> set[int]:
    """Positions of a word in the prompts that have it; in a batch it need not be in all of them."""
    found: set[int] = set()
    missing: SpanNotFound | None = None
    for prompt in prompts:
        try:
            found.update(prompt.find(word).tokens)
        except SpanNotFound as error:
            missing = error
    if missing is not None and not found:
        raise missing
    return found

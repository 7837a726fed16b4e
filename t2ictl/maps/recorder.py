"""Probes: read-only taps on cross-attention, and the recorder that fills a record with their maps.

A probe computes its maps beside the fused kernel, from the same queries and keys, so that an
image made with a probe is bit-equal to the one made without.

Legend: ``B`` batch row, ``Q`` image position, ``K`` context position, ``T`` prompt token,
``Y`` ``X`` map rows and columns, ``S`` step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from t2ictl.attention.edits import AttentionCall
from t2ictl.attention.layers import Layer, select_layers
from t2ictl.attention.passes import MapKind, Rows
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
        kind: which reading of joint attention.
    """

    def __init__(self, layers: Sequence[Layer], rows: Rows, kind: MapKind = "text") -> None:
        self.layers = frozenset(layer.address for layer in layers)
        self.rows, self.kind = rows, kind
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
        by: which layers share a map: those of one ``"block"`` (down, mid, up; early, middle, late), brought to one
            size; those of one block and ``"size"``, each at its own size and named as in a layer filter (``"up@2"``:
            the layers of the up blocks whose maps have half as many cells a side as the latent); or one ``"layer"``.
        kind: what a map is where image and text attend to each other (SD 3, FLUX): ``"text"``, attention normalized
            over text, as in cross-attention; ``"all_keys"``, a word's share of all attention of a place;
            ``"text_to_image"``, where the word's own queries go, normalized over places; ``"output_space"``, likeness
            of a place's and a word's results (ConceptAttention, arXiv 2502.04320).
        text_mass: keep also how much of its attention each place gives to text at all.
        budget_mb: most memory that the record may take (MiB).
    """

    words: tuple[str, ...] = setting(default=(), help="words to record; empty: every word of the prompt")
    layers: tuple[str, ...] = setting(
        default=(), help="layer filter; empty: cross-attention at the model's semantic size"
    )
    per_step: bool = setting(default=True, help="keep the maps of every step, not only their mean")
    by: Literal["block", "size", "layer"] = setting(
        default="block", help="which layers share a map: of one block, of one size, or none"
    )
    kind: Literal["text", "all_keys", "text_to_image", "output_space"] = setting(
        default="text", help="what a map is where image and text attend to each other"
    )
    text_mass: bool = setting(default=False, help="keep also how much attention places give to text at all")
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
        # A filter like "up" has layers of both kinds, and not all have maps of words.
        layers = select_layers(layers, lambda layer: layer.has_words)
        self.layers = frozenset(layer.address for layer in layers)
        self.rows: Rows = rows
        self.kind: MapKind = settings.kind
        self._by = settings.by
        self._own_sizes = {self._group(layer): layer.size(latent_size) for layer in layers}
        heads = dict.fromkeys(sorted(self._own_sizes) if self._by != "layer" else self._own_sizes, 0)
        for layer in layers:
            heads[self._group(layer)] += layer.heads
        self.record = AttentionRecord(
            prompts=tuple(prompts),
            columns=recorded_columns(prompts, settings.words),
            heads=heads,
            kind=settings.kind,
        )
        self._size = max(layer.size(latent_size) for layer in layers)
        steps = total if settings.per_step else 1
        self._maps, self._mass = _Kept(steps), _MassTap(self, _Kept(steps)) if settings.text_mass else None
        self._check_budget(settings.budget_mb, steps)

    @property
    def taps(self) -> list[Recorder | _MassTap]:
        """What listens for the record."""
        if self._mass is None:
            return [self]
        self._mass.rows = self.rows
        return [self, self._mass]

    def _check_budget(self, budget_mb: float, steps: int) -> None:
        columns = len(self.record.columns) + (self._mass is not None)
        maps = len(self.record.heads) * len(self.record.prompts) * columns * steps
        sizes = list(self._own_sizes.values()) if self._by == "size" else [self._size] * len(self.record.heads)
        need_mb = maps / len(sizes) * sum(height * width for height, width in sizes) * 4 / 2**20
        if need_mb > budget_mb:
            raise BudgetExceeded(
                f"Recording {maps} maps of {self._size[0]} x {self._size[1]} needs {need_mb:.0f} MiB, "
                f"more than the budget of {budget_mb:.0f} MiB.",
                "Name fewer words, set per_step=False, or raise budget_mb.",
            )

    def _group(self, layer: Layer) -> str:
        if self._by == "layer":
            return layer.address.rpartition(".")[0]
        return f"{layer.block}@{layer.stride}" if self._by == "size" else layer.block

    def take(self, call: AttentionCall, map_BQK: Tensor) -> None:
        """Add one layer of the current pass."""
        columns = torch.tensor(self.record.columns, dtype=torch.long, device=map_BQK.device)
        self._maps.add(self._group(call.layer), self.laid_out(call, map_BQK.detach()[..., columns]))

    def laid_out(self, call: AttentionCall, map_BQT: Tensor) -> Tensor:
        """Return ``maps_BTYX`` of one layer, at the size that its group has in the record.

        Args:
            call: the layer.
            map_BQT: columns of its map.
        """
        maps_BTYX = map_BQT.transpose(1, 2).unflatten(2, call.size).float()
        return maps_BTYX if self._by == "size" else resize_maps(maps_BTYX, self._size)

    def group_of(self, call: AttentionCall) -> str:
        """Return the name under which a layer's map is kept."""
        return self._group(call.layer)

    def end_step(self) -> None:
        """File the maps of the pass that has just ended."""
        record = self.record
        record.maps |= self._maps.file(record.steps, record.heads)
        if self._mass is not None:
            record.masses |= self._mass.kept.file(record.steps, record.heads)
        record.steps += 1


class _Kept:
    """Maps by group of layers, of every step or of their mean.

    Args:
        steps: how many steps have a place of their own; 1: their mean alone.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._sums: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}  # room for all that will be kept, taken once

    def add(self, group: str, maps_BTYX: Tensor) -> None:
        """Add one layer of the current pass."""
        held = self._sums.get(group)
        self._sums[group] = maps_BTYX if held is None else held + maps_BTYX

    def file(self, step: int, heads: Mapping[str, int]) -> dict[str, Tensor]:
        """End a step, and return what is kept so far, ``maps_SBTYX`` by group."""
        found = {}
        for group, sum_BTYX in self._sums.items():
            mean_BTYX = sum_BTYX / heads[group]
            if group not in self._held:
                self._held[group] = mean_BTYX.new_zeros(self._steps, *mean_BTYX.shape)
            held_SBTYX = self._held[group]
            if self._steps > 1 or step == 0:
                held_SBTYX[min(step, self._steps - 1)] = mean_BTYX
            else:
                held_SBTYX[0] += (mean_BTYX - held_SBTYX[0]) / (step + 1)
            found[group] = held_SBTYX[: step + 1]
        self._sums = {}
        return found


class _MassTap:
    """Listens for how much of its attention each place gives to text.

    Args:
        recorder: lays maps out, and knows their groups.
        kept: what is kept.
    """

    kind: MapKind = "text_mass"

    def __init__(self, recorder: Recorder, kept: _Kept) -> None:
        self._recorder, self.kept = recorder, kept
        self.layers, self.rows = recorder.layers, recorder.rows

    def take(self, call: AttentionCall, map_BQK: Tensor) -> None:
        """Add one layer of the current pass."""
        self.kept.add(self._recorder.group_of(call), self._recorder.laid_out(call, map_BQK.detach()))


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
        found.update(token for span in spans for token in span.every_token)
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

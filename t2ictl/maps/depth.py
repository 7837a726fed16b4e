"""Which blocks of a model point at the objects of a prompt: maps of each layer against those of all.

Nobody knows where an object lies in an image that is being made. What many layers agree on is the best guess: a layer
points well if the place where it attends to a word most lies where the other layers attend to the word.

Legend: ``P`` layer, ``N`` word, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ictl.errors import BadSetting, NotRecorded
from t2ictl.maps.masks import binarize
from t2ictl.maps.ops import pair_overlap, spatial_distribution
from t2ictl.maps.record import AttentionRecord

__all__ = ["LayerPointing", "pointing_by_layer"]


@dataclass(frozen=True, kw_only=True)
class LayerPointing:
    """How well one layer points at words.

    Args:
        layer: its name, as recorded.
        pointing: share of words whose map has its maximum where the other layers attend to the word, in [0, 1].
        overlap: mean overlap of the maps of each two words, in [0, 1]; None for a single word.
        spread: entropy of the maps over the image, divided by that of an even map, in [0, 1].
        attention: mean over the image of the share of attention that goes to the words, in [0, 1].
    """

    layer: str
    pointing: float
    overlap: float | None
    spread: float
    attention: float


def pointing_by_layer(records: Sequence[tuple[AttentionRecord, Sequence[str]]]) -> tuple[LayerPointing, ...]:
    """Measure how well each layer points, over several images.

    For each word and layer the maps of all *other* layers, each divided by its mean, are averaged and divided in two by
    Otsu's threshold. The layer points at the word if its own maximum lies in the upper part. By chance it does so as
    often as that part is large.

    Args:
        records: for each image a record made with ``Recording(by="layer")``, and the words that are meant, best the
            nouns of its objects.

    Returns:
        One entry a layer, in the order in which they run; means over words and images.

    Raises:
        BadSetting: if there are no words, or the records have other layers.
        NotRecorded: if less than two layers were recorded.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes", device="cpu")
        >>> every = t2ictl.Recording(layers=("cross",), by="layer", per_step=False)
        >>> made = t2ictl.generate(pipe, "a red circle", steps=4, record=every)
        >>> [each.layer for each in pointing_by_layer([(made.record, ["circle"])])][:2]
        ['down.0.0.0', 'down.1.0.0']
    """
    records = [(record, words) for record, words in records if words]
    if not records:
        raise BadSetting("There are no words to point at.", "Use prompts with objects, or name words.")
    layers = list(records[0][0].maps)
    if any(list(record.maps) != layers for record, _ in records):
        raise BadSetting("The records are of different layers.", "Record all of them in the same way.")
    if len(layers) < 2:
        raise NotRecorded("Only one layer was recorded.", "Use Recording(by='layer') with several layers.")
    rows = [torch.stack([_of_one(record, words, layer, layers) for layer in layers]) for record, words in records]
    means_P4 = torch.stack(rows).nanmean(dim=0)
    return tuple(
        LayerPointing(
            layer=layer,
            pointing=pointing,
            overlap=None if overlap != overlap else overlap,
            spread=spread,
            attention=attention,
        )
        for layer, (pointing, overlap, spread, attention) in zip(layers, means_P4.tolist(), strict=True)
    )


def _of_one(record: AttentionRecord, words: Sequence[str], layer: str, layers: Sequence[str]) -> Tensor:
    """Pointing, overlap, spread and attention of one layer in one image."""
    maps_NYX = torch.stack([record.map(word, block=layer) for word in words]).double()
    others = [other for other in layers if other != layer]
    others_NYX = torch.stack(
        [torch.stack([_even(record.map(word, block=other)) for other in others]).mean(0) for word in words]
    ).double()
    hits = [
        float(binarize(other_YX).flatten()[own_YX.argmax()])
        for own_YX, other_YX in zip(maps_NYX, others_NYX, strict=True)
    ]
    shares_NYX = spatial_distribution(maps_NYX)
    entropy_N = torch.special.entr(shares_NYX).flatten(1).sum(1) / torch.tensor(float(shares_NYX[0].numel())).log()
    count = len(words)
    overlap_NN = 2 * pair_overlap(shares_NYX)
    pairs = overlap_NN[torch.triu(torch.ones(count, count, dtype=torch.bool), 1)]
    overlap = float(pairs.mean()) if count > 1 else float("nan")
    return torch.tensor([sum(hits) / count, overlap, float(entropy_N.mean()), float(maps_NYX.mean())])


def _even(map_YX: Tensor) -> Tensor:
    """A map whose mean is 1: layers count alike, however much attention they give to words."""
    return map_YX / map_YX.mean().clamp_min(torch.finfo(map_YX.dtype).tiny)

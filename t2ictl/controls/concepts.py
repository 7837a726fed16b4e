"""Concepts: words chosen from each prompt, and their maps, for batches of unlike prompts.

Prompts with different numbers of concepts stand in one tensor batch as padded index tables.

Legend: ``B`` batch row, ``N`` concept, ``K`` token of a concept, ``T`` prompt token, ``Y`` ``X`` map
rows and columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from t2ictl.attention.layers import Layer, select_layers
from t2ictl.controls.base import Idle, PlanContext
from t2ictl.maps.ops import concept_maps, gaussian_kernel, smooth, token_softmax
from t2ictl.prompts.per_prompt import per_prompt
from t2ictl.prompts.prompt import Prompt, Span

__all__ = [
    "ConceptMaps",
    "ConceptTable",
    "Concepts",
    "NormalizeOver",
    "Smoothing",
    "chosen_concepts",
    "concept_table",
    "self_layers",
    "without_concepts",
]

Concepts = tuple[str, ...] | tuple[tuple[str, ...], ...]
Smoothing = Literal["attend_and_excite", "gaussian", "none"]
NormalizeOver = Literal["auto", "all_tokens", "prompt_words", "none"]


def chosen_concepts(concepts: Concepts, context: PlanContext, *, control: str) -> tuple[tuple[Span, ...], ...]:
    """Find the concepts of each image: those named by the user, or all objects of its prompt.

    Args:
        concepts: words for every prompt; or one list of words for each prompt; or nothing.
        context: the pipeline call.
        control: name of the control, for messages.

    Returns:
        For each image, the spans of its concepts. A prompt without objects has none; :func:`without_concepts` says so.

    Raises:
        SpanNotFound: if a named word is not in its prompt.
        BadSetting: if there is one list a prompt, and their numbers differ; or if two named concepts share words.
    """
    words = per_prompt(concepts, len(context.prompts), setting=f"{control}.concepts", things="words")
    found = [_concepts_of(*each) for each in zip(context.prompts, words, strict=True)]
    return tuple(found[row.prompt] for row in context.batch.only("cond").rows)


def _concepts_of(prompt: Prompt, words: Sequence[str]) -> tuple[Span, ...]:
    return prompt.find_apart(words) if words else tuple(phrase.noun for phrase in prompt.objects())


def without_concepts(rows: Sequence[Sequence[object]]) -> tuple[Idle, ...]:
    """Return why images without concepts are left alone, for the plan of a control.

    Args:
        rows: the concepts of each image.

    Returns:
        One reason, or none.
    """
    images = tuple(image for image, own in enumerate(rows) if not own)
    reason, remedy = "it found no objects in the prompt", "Name the words in concepts=."
    return (Idle(reason=reason, remedy=remedy, images=images),) if images else ()


def self_layers(context: PlanContext, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Find the self-attention layers whose maps have the size of some cross-attention maps.

    Args:
        context: the pipeline call.
        layers: cross-attention layers; the mean of their maps has the size of the largest.

    Returns:
        Layers of the same transformer blocks, at that size.
    """
    factor = min(layer.stride for layer in layers)
    blocks = {layer.address.rpartition(".")[0] for layer in layers}
    own = [layer for layer in context.adapter.layers if layer.kind == "self" and layer.stride == factor]
    return tuple(layer for layer in own if layer.address.rpartition(".")[0] in blocks)


@dataclass(frozen=True, kw_only=True)
class ConceptTable:
    """Token positions of the concepts of each batch row, padded to one shape.

    Args:
        index_BNK: token positions; 0 where padded.
        index_mask_BNK: True at real tokens.
        mask_BN: True at real concepts.
        names: the concepts of each row, as written in its prompt.
        share_BNK: share of each token in its concept's map, where a word has tokens in several segments of the text
            row: segments count alike, whatever their number of tokens. None: tokens count alike.
    """

    index_BNK: Tensor
    index_mask_BNK: Tensor
    mask_BN: Tensor
    names: tuple[tuple[str, ...], ...]
    share_BNK: Tensor | None = None


def concept_table(rows: Sequence[Sequence[Span]], device: torch.device | str = "cpu") -> ConceptTable:
    """Lay out the concepts of each row as padded index tensors.

    Args:
        rows: for each batch row, the spans of its concepts; any number, also none.
        device: where the tensors are needed.

    Returns:
        The table.

    Example:
        >>> from t2ictl.prompts.prompt import Span
        >>> cat = Span(text="cat", start=2, end=5, by_encoder=((2,),))
        >>> hat = Span(text="top hat", start=13, end=20, by_encoder=((5, 6),))
        >>> concept_table([[cat, hat], [cat]]).index_BNK.tolist()
        [[[2, 0], [5, 6]], [[2, 0], [0, 0]]]
    """
    concepts = max((len(spans) for spans in rows), default=0)
    tokens = max((len(span.tokens) for spans in rows for span in spans), default=1)
    index_BNK = torch.zeros(len(rows), max(concepts, 1), tokens, dtype=torch.long)
    index_mask_BNK = torch.zeros_like(index_BNK, dtype=torch.bool)
    share_BNK = torch.zeros_like(index_BNK, dtype=torch.float32)
    for row, spans in enumerate(rows):
        for number, span in enumerate(spans):
            index_BNK[row, number, : len(span.tokens)] = torch.tensor(span.tokens)
            index_mask_BNK[row, number, : len(span.tokens)] = True
            share_BNK[row, number, : len(span.tokens)] = torch.tensor(_shares(span))
    is_split = any(len(span.by_segment) > 1 for spans in rows for span in spans)
    return ConceptTable(
        index_BNK=index_BNK.to(device),
        index_mask_BNK=index_mask_BNK.to(device),
        mask_BN=index_mask_BNK.any(dim=-1).to(device),
        names=tuple(tuple(span.text for span in spans) for spans in rows),
        share_BNK=share_BNK.to(device) if is_split else None,
    )


def _shares(span: Span) -> list[float]:
    """For each token of a word, in the order of its positions, its share of the word's map."""
    filled = [tokens for tokens in span.by_segment if tokens]
    return [1 / len(filled) / len(tokens) for tokens in filled for _ in tokens]


@dataclass(frozen=True, kw_only=True)
class ConceptMaps:
    """Turns mean token maps into concept maps: competition of the words, mean over tokens, smoothing.

    Args:
        layers: the layers whose mean map is meant.
        rows: the concepts of each image.
        competing: for each segment of the text row, and each image, the first token that competes there and one past
            the last; tokens of one segment compete with each other. Empty if none compete.
        smoothing: kernel on the maps.
        table: the concepts as index tables, on the device of the maps.
        temperature: factor on attention before tokens compete.
    """

    layers: tuple[Layer, ...]
    rows: tuple[tuple[Span, ...], ...]
    competing: tuple[tuple[tuple[int, int], ...], ...]
    smoothing: Smoothing
    table: ConceptTable
    temperature: float = 100.0

    @classmethod
    def from_context(
        cls,
        context: PlanContext,
        rows: tuple[tuple[Span, ...], ...],
        layers: Sequence[str],
        smoothing: Smoothing,
        normalize_over: NormalizeOver = "auto",
        temperature: float = 100.0,
    ) -> ConceptMaps:
        """Prepare the maps of one pipeline call.

        Args:
            context: the pipeline call.
            rows: the concepts of each image.
            layers: filter of the cross-attention layers; empty for those at the model's semantic size.
            smoothing: kernel on the maps.
            normalize_over: which tokens compete for each place: ``"all_tokens"``, all but the start token and the
                last position; ``"prompt_words"``, those before the end token; ``"auto"``, the row where
                empty positions repeat the end token (SD 1.x, SDXL) and the words where they do not
                (SD 2.x), as published for these models; ``"none"``, no competition: the attention
                probabilities themselves.
            temperature: factor on attention before tokens compete.

        Returns:
            The preparation.

        Raises:
            NoLayerMatched: if the filter matches no cross-attention layer.
        """
        adapter = context.adapter
        is_row = adapter.pads_with_end if normalize_over == "auto" else normalize_over == "all_tokens"
        prompts = context.row_prompts if normalize_over != "none" else ()
        places = sorted({each.offset for prompt in prompts for each in prompt.encodings if each.offset is not None})
        # Not all layers have maps of words; "up" is then every cross-attention on the way up.
        return cls(
            layers=select_layers(adapter.word_layers, tuple(layers)) if layers else adapter.semantic_layers,
            rows=rows,
            competing=tuple(tuple(_competing(prompt, place, is_row) for prompt in prompts) for place in places),
            smoothing=smoothing,
            table=concept_table(rows, adapter.device),
            temperature=temperature,
        )

    def __call__(self, maps_BYXT: Tensor) -> Tensor:
        """Return the concept maps.

        Args:
            maps_BYXT: mean attention maps of all tokens.

        Returns:
            ``maps_BNYX`` in [0, 1], float32 or better; 0 where a concept is padding.
        """
        parts = [token_softmax(maps_BYXT, *bounds, self.temperature) for bounds in self._bounds]
        shares_BYXT = functools.reduce(torch.add, parts) if parts else maps_BYXT
        table = self.table
        maps_BNYX = concept_maps(shares_BYXT, table.index_BNK, table.index_mask_BNK, table.share_BNK)
        if self.smoothing == "none":
            return maps_BNYX
        return smooth(maps_BNYX, self._kernel)

    @property
    def ends(self) -> tuple[int, ...]:
        """For each image, one past its last competing token in the first segment; empty if none compete."""
        return tuple(last for _, last in self.competing[0]) if self.competing else ()

    @cached_property
    def _bounds(self) -> tuple[tuple[Tensor | int, Tensor], ...]:
        """Where competition begins and ends: copied once to the maps, since in every pass it would wait for them."""
        device, found = self.table.index_BNK.device, []
        for segment in self.competing:
            first, last = zip(*segment, strict=True)
            begin = first[0] if len(set(first)) == 1 else torch.tensor(first, device=device)
            found.append((begin, torch.tensor(last, device=device)))
        return tuple(found)

    @cached_property
    def _kernel(self) -> Tensor:
        assert self.smoothing != "none"
        return gaussian_kernel(self.smoothing, device=self.table.index_BNK.device)


def _competing(prompt: Prompt, place: int, is_row: bool) -> tuple[int, int]:
    """The tokens of one segment that compete: to the last but one of the row, or up to the end of the words."""
    own = next(each for each in prompt.encodings if each.offset == place)
    first = own.begin
    last = len(own.ids) - 1 if is_row else max(own.end, first + 1)  # a softmax over nothing has no meaning
    return place + first, place + last

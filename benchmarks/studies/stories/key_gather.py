"""A baseline in the manner of ConsiStory: every image of a batch also reads the subjects of the portraits.

In the decoder's self-attention the keys and values of each image get those of the subjects' positions in all
portraits appended; a share of them drops out in a step. Nobody is kept apart, all positions read, and the words of a
portrait are not used elsewhere. What differs from ConsiStory: portraits are the anchors; positions are gathered,
without a mask; regions are those of :class:`~t2ictl.processors.isolation_reposition.subjects.SubjectRegions`, as for
isolation, so that the two do not differ in them; no blend of queries, no second run with injected features, no FreeU.

Legend: ``B`` batch row, ``H`` head, ``N`` position, ``D`` head width, ``M`` key of a portrait,
``Y`` ``X`` map rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from t2ictl import Control, Plan, PlanContext, Subject
from t2ictl.attention.edits import AttentionCall, Edit, Heads
from t2ictl.attention.grouped import AttentionGroup, Grouping, KeySource, grouped_attention
from t2ictl.controls.base import MapHook
from t2ictl.controls.concepts import ConceptMaps
from t2ictl.errors import BadSetting, UnsupportedPipeline
from t2ictl.processors.isolation_reposition.cast import SubjectAssignment
from t2ictl.processors.isolation_reposition.groups import subject_labels
from t2ictl.processors.isolation_reposition.places import SubjectRegions
from t2ictl.settings.windows import Step

__all__ = ["KeyGather"]


class KeyGather(Control):
    """Let every image read the subjects of all portraits (ConsiStory's shared self-attention).

    Not registered: it is there to be compared with.

    Args:
        subjects: who has a portrait in the batch.
        dropout: share of a portrait's keys that drop out in a step, drawn anew for each reader and step.
        memory: weight of earlier maps in the mean that says where subjects are.
        first: first step in which images read; before it nothing is known about where subjects are.
        seed: of the dropout.

    Raises:
        BadSetting: if the dropout is no share.

    Reference:
        Tewel, Kaduri, Gal, Kasten, Wolf, Chechik, Atzmon, "Training-Free Consistent Text-to-Image Generation"
        (ConsiStory), 2024, arXiv 2402.03286.
    """

    name = "key_gather"
    paper = ""
    needs = frozenset({"features"})
    needs_words = False
    has_losses = False

    def __init__(
        self, subjects: Sequence[Subject], dropout: float = 0.5, memory: float = 0.5, first: int = 1, seed: int = 0
    ) -> None:
        if not 0 <= dropout <= 1:
            raise BadSetting(f"A dropout of {dropout} is no share.", "Use 0 to 1.")
        self.subjects, self.dropout, self.memory, self.first, self.seed = tuple(subjects), dropout, memory, first, seed

    def plan(self, context: PlanContext) -> Plan:
        """Find the portraits of a call, and who reads them."""
        if not self.subjects:
            return Plan()
        assignment = SubjectAssignment.from_context(self.subjects, (), (), context, control=self.name)
        maps = ConceptMaps.from_context(context, assignment.rows, (), "gaussian", "none")
        places = SubjectRegions(assignment, maps, self.memory)
        layers = tuple(layer for layer in context.adapter.layers if layer.kind == "self" and layer.block == "up")
        edit = _Gather(self, context, places, _anchors(self.subjects, context))

        def look(maps_BYXT: Tensor, step: Step) -> None:
            places.take(maps_BYXT)

        map_hooks = (MapHook(layers=maps.layers, take=look),) if places.needs_maps else ()
        return Plan(edits=((layers, edit),), owns=("self.keys",), map_hooks=map_hooks)


def _anchors(subjects: Sequence[Subject], context: PlanContext) -> tuple[tuple[int, ...], ...]:
    """The portraits that each image reads beside itself: one of each subject, the n-th for the n-th of a prompt."""
    texts = [prompt.text.strip() for prompt in context.row_prompts]
    shown = [[image for image, text in enumerate(texts) if text == subject.prompt.strip()] for subject in subjects]
    found = []
    for image, text in enumerate(texts):
        copy = texts[:image].count(text)
        chosen = [own[copy % len(own)] for own in shown]
        found.append(tuple(each for each in chosen if each != image))
    return tuple(found)


@dataclass(eq=False)
class _Gather(Edit):
    """Self-attention of all rows, each with the keys of the portraits behind its own."""

    settings: KeyGather
    context: PlanContext
    places: SubjectRegions
    anchors: tuple[tuple[int, ...], ...]
    _keys: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def acts(self, step: Step) -> bool:
        """From the first step on in which places are known."""
        return step.index >= self.settings.first

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Attend image by image, both sides of the guidance at once; each side reads its own."""
        if heads.mask is not None:
            raise UnsupportedPipeline(
                f"The self-attention of {call.layer.address} has a mask.", "Compare on a pipeline without."
            )
        out_BHND = torch.empty_like(heads.q)
        every = torch.arange(heads.q.shape[2], device=heads.q.device)
        for image, portraits in enumerate(self.anchors):
            rows = _rows(call, image)
            sources = [KeySource()]
            for portrait in portraits:
                there = _rows(call, portrait)
                keys_M = self.keys(call, image, portrait).to(heads.q.device)
                if len(keys_M):
                    sources.append(KeySource(row=tuple(there[role] for role in rows), keys=keys_M))
            grouping = Grouping((AttentionGroup(queries=every, sources=tuple(sources)),))
            own = tuple(rows.values())
            out_BHND[list(own)] = grouped_attention(heads.q, heads.k, heads.v, own, grouping, call.attention.scale)
        return out_BHND

    def keys(self, call: AttentionCall, image: int, portrait: int) -> Tensor:
        """The positions of a portrait that an image reads in this step: ``keys_M``, made once for a size."""
        now = call.step.index
        key = (now, image, portrait, call.size)
        if key not in self._keys:
            self._keys = {each: kept for each, kept in self._keys.items() if each[0] == now}
            is_there_N = subject_labels(self.places.coverage(portrait, call.size)).flatten() > 0
            self._keys[key] = (is_there_N & self.drawn(call, image, portrait)).nonzero().flatten()
        return self._keys[key]

    def drawn(self, call: AttentionCall, image: int, portrait: int) -> Tensor:
        """Which keys stay in this step: the same whatever else is in the batch."""
        texts = [prompt.text for prompt in self.context.row_prompts]
        who = [f"{texts[each]}|{texts[:each].count(texts[each])}" for each in (image, portrait)]
        name = f"{self.settings.seed}|{'|'.join(who)}|{call.step.index}|{call.size}"
        dice = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.rand(math.prod(call.size), generator=dice) >= self.settings.dropout


def _rows(call: AttentionCall, image: int) -> dict[str, int]:
    """The batch rows of an image, by the side of the guidance."""
    return {entry.role: row for row, entry in enumerate(call.batch.rows) if entry.image == image}

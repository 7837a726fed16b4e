"""The scenes of one call under isolation and reposition: who reads what, at each map size and step.

Legend: ``B`` batch row, ``N`` position, ``C`` channels, ``Y`` ``X`` map rows and columns, ``T`` prompt token,
``K`` text position.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import AttentionCall
from t2ictl.attention.grouped import Grouping
from t2ictl.attention.layers import Layer
from t2ictl.controls.base import PlanContext
from t2ictl.processors.isolation_reposition.cast import SubjectAssignment
from t2ictl.processors.isolation_reposition.groups import (
    Aspect,
    Reading,
    Sampling,
    isolated_groups,
    resampled_positions,
    subject_labels,
)
from t2ictl.processors.isolation_reposition.places import SubjectRegions
from t2ictl.processors.isolation_reposition.reference_images import ReferenceImages
from t2ictl.processors.isolation_reposition.story_context import StoryContext
from t2ictl.processors.isolation_reposition.texts import SubjectText
from t2ictl.settings.windows import Step, Window

__all__ = ["SceneRules", "Scenes"]


@dataclass(frozen=True, kw_only=True)
class SceneRules:
    """The settings of the control that act in attention layers, under their names there."""

    strength: float
    isolation: float
    aspect: Aspect
    sampling: Sampling
    ref_strength: float
    ref_dropout: float
    cross: float
    subject_text: SubjectText
    branch: Literal["both", "cond"]
    window: Window
    seed: int


@dataclass
class Scenes:
    """The scenes of one call: who reads what, at each map size and step."""

    settings: SceneRules
    context: PlanContext
    assignment: SubjectAssignment
    places: SubjectRegions
    reading: frozenset[Layer]
    shown: ReferenceImages
    story_context: StoryContext | None = None
    texts: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
    device: torch.device = field(init=False)
    _labels: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    _told: dict[tuple[Any, ...], tuple[Tensor, ...]] = field(default_factory=dict)
    _groupings: dict[tuple[Any, ...], Grouping | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = self.context.adapter.device  # once a call: finding it takes longer than a small layer

    def acts(self, step: Step) -> bool:
        """Return whether a step lies in the window, and some subject has a place at it.

        Who has no region is found by the maps of the first evaluation, at its end. The background, which is all of
        the image until then, may have a text of its own; and a call of a story keeps and reads portraits all the same.
        """
        has_places = self.places.has_regions or bool(self.shown.by_image) or any(not number for _, number in self.texts)
        is_ready = step.index > 0 or has_places or self.story_context is not None
        return is_ready and self.settings.window.holds(step)

    def look(self, maps_BYXT: Tensor, step: Step) -> None:
        """Learn where the subjects are."""
        self.places.take(maps_BYXT)

    def rows(self, batch: BatchLayout, image: int) -> dict[str, int]:
        """The batch rows of an image, by the side of the guidance."""
        roles = ("uncond", "cond") if self.settings.branch == "both" else ("cond",)
        behind = image - batch.images
        if behind >= 0:  # a portrait that an earlier call showed: its rows lie behind those of the batch
            here = [role for role in roles if any(entry.role == role for entry in batch.rows)]
            return {role: len(batch) + behind * len(here) + place for place, role in enumerate(here)}
        return {entry.role: row for row, entry in enumerate(batch.rows) if entry.image == image and entry.role in roles}

    def absent_states(self, call: AttentionCall, context_BKC: Tensor) -> Tensor | None:
        """``states_BNC`` of the rows behind the batch, or None if there are none."""
        bank, batch = None if self.story_context is None else self.story_context.bank, call.batch
        if bank is None or not self.assignment.cached_subjects or call.layer not in self.reading:
            return None
        rows = [
            bank.states(name, call, role, context_BKC)
            for number, name in enumerate(self.assignment.cached_subjects)
            for role in self.rows(batch, batch.images + number)
        ]
        return torch.stack(rows)

    def keep(self, call: AttentionCall, context_BKC: Tensor) -> None:
        """Keep what this layer sees of the portraits, for later calls of the story."""
        bank = None if self.story_context is None else self.story_context.bank
        if bank is None or call.layer not in self.reading:
            return
        for image in self.assignment.shown:
            (subject,) = self.assignment.subjects[image]
            assert subject is not None
            inside_YX = self._portrait(image, call)
            for role, row in self.rows(call.batch, image).items():
                bank.keep(subject.name, call, role, context_BKC[row], inside_YX)

    def labels(self, image: int, size: tuple[int, int]) -> Tensor:
        """Which subject each position belongs to: ``labels_N``, from 1."""
        key = (self.places.version, image, size)
        if key not in self._labels:
            self._labels = {each: kept for each, kept in self._labels.items() if each[0] == self.places.version}
            pasted_NYX = self.shown.coverage(image, size)
            coverage_NYX = self.places.coverage(image, size) if pasted_NYX is None else pasted_NYX
            self._labels[key] = subject_labels(coverage_NYX).flatten()
        return self._labels[key]

    def told_positions(self, image: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Positions that are told one thing, made once for all layers of a size until places change.

        Returns:
            ``places_Q`` on the device: first the background's, then each subject's; spelled out, all of them alone.
        """
        key = (self.places.version, image, size)
        if key not in self._told:
            self._told = {each: kept for each, kept in self._told.items() if each[0] == self.places.version}
            labels_N, numbers = self.labels(image, size), range(len(self.assignment.rows[image]) + 1)
            places = [(labels_N == number).nonzero().flatten() for number in numbers]
            places = [torch.arange(len(labels_N))] if self.settings.subject_text == "in_full" else places
            self._told[key] = tuple(each.to(self.device) for each in places)
        return self._told[key]

    def grouping(self, call: AttentionCall, image: int, rows: dict[str, int], *, apart: bool) -> Grouping | None:
        """Who reads what in an image, made once for all layers of one size in a step."""
        now, reads = (call.step.index, self.places.version), call.layer in self.reading
        key = (now, image, call.size, tuple(rows.values()), apart, reads)
        if key not in self._groupings:
            self._groupings = {each: kept for each, kept in self._groupings.items() if each[0] == now}
            self._groupings[key] = self._grouping(call, image, rows, apart=apart, reads=reads)
        return self._groupings[key]

    def _grouping(
        self, call: AttentionCall, image: int, rows: dict[str, int], *, apart: bool, reads: bool
    ) -> Grouping | None:
        settings, labels_N = self.settings, self.labels(image, call.size)
        readings: dict[int, Reading] = {}
        drawn_N = self._drawn(call, image) if reads else labels_N
        for number, portrait in enumerate(self.assignment.portraits[image], start=1) if reads else ():
            if portrait is None:
                continue
            there = self.rows(call.batch, portrait)
            readings[number] = Reading(
                row=tuple(there[role] for role in rows),
                positions=self._positions(labels_N == number, number, portrait, call),
                strength=settings.ref_strength + math.log(settings.strength),
                reads=drawn_N,
            )
        isolation = settings.isolation * settings.strength if apart else 0.0
        found = isolated_groups(labels_N, readings, isolation)
        return None if found is None else found.to(self.device)

    def _positions(self, here_N: Tensor, number: int, portrait: int, call: AttentionCall) -> Tensor:
        """Positions of the portrait that a subject reads: resampled, or, in a composite, its own."""
        if portrait in self.assignment.composites:
            covered_N = self.labels(portrait, call.size) == number
            return covered_N.nonzero().flatten()
        return resampled_positions(
            here_N.view(call.size), self._portrait(portrait, call), self.settings.aspect, self.settings.sampling
        )

    def _portrait(self, image: int, call: AttentionCall) -> Tensor:
        """Where the subject is in its portrait; everywhere as long as nothing is known."""
        if image >= call.batch.images:
            assert self.story_context is not None and self.story_context.bank is not None
            return self.story_context.bank.inside(self.assignment.cached_subjects[image - call.batch.images], call)
        covered_YX = self.labels(image, call.size).view(call.size) > 0
        return covered_YX if covered_YX.any() else torch.ones_like(covered_YX)

    def _drawn(self, call: AttentionCall, image: int) -> Tensor:
        """Positions that read in this step: the same whatever else is in the batch."""
        texts = [prompt.text for prompt in self.context.row_prompts]
        alone = f"{texts[image]}|{texts[:image].count(texts[image])}"
        own = alone if self.story_context is None else self.story_context.names[image]
        name = f"{self.settings.seed}|{own}|{call.step.index}|{call.size}"
        dice = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.rand(math.prod(call.size), generator=dice) >= self.settings.ref_dropout

"""A-STAR: latents move so that concepts stop sharing places and keep the places they found.

Idea. Two concepts whose cross-attention maps overlap come out fused, and a concept whose
map moves away from where it started is lost on the way. At each step the latents move down
the gradient of two losses on the maps: segregation (overlap of each pair) and retention
(distance of each map from its own high-activation region one step earlier).

What differs from the paper. It leaves the step size, the number of steps, the preparation
of the maps and the rule for the region open and released no code. Defaults here are the
losses of the paper with the schedule and map preparation of Attend-and-Excite, whose protocol the
paper adopts; ``published()`` is what a reimplementation chose. The regions come from the conditional
half of the guided pass, which costs no extra forward pass.

Legend: ``B`` image, ``N`` concept, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import ConceptMaps, Concepts, Smoothing, chosen_concepts, without_concepts
from t2ictl.controls.layouts import Layout, Region
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.registry import register_control
from t2ictl.errors import BadSetting
from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.losses.overlap import Reduction, overlap_loss
from t2ictl.losses.presence import presence_loss
from t2ictl.losses.retention import retention_loss
from t2ictl.maps.masks import BinarizeMethod, binarize
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Step, Window

__all__ = ["AttentionSegregation"]


@register_control(
    "attention_segregation",
    paper="Agarwal, Karanam, Joseph, Saxena, Goswami, Srinivasan: A-STAR: Test-time Attention Segregation and "
    "Retention for Text-to-image Synthesis, ICCV 2023, arXiv 2306.14544",
    published={"reduction": "mean", "region": "otsu_8bit_peak"},
)
@settings_class
class AttentionSegregation(LossControl):
    """Segregate the attention of concepts and retain it over the steps (A-STAR).

    ``L = segregation sum_{m<n} O(A_m, A_n) + retention sum_m (1 - O(A_m, B_m))`` with
    ``O(a, b) = sum min(a, b) / sum (a + b)``, ``A_m`` the map of concept ``m`` and ``B_m`` its region one
    step earlier; ``x <- x - a_i dL/dx`` before each denoising step.

    Args:
        concepts: words or phrases that must not share places; empty for all objects of each
            prompt; or one list for each prompt of a batch.
        strength: weight of the whole loss; 0 is the untouched model.
        segregation: weight of the overlap of pairs.
        retention: weight of the distance from the region of the step before.
        presence: weight of Attend-and-Excite's loss, which pulls up the weakest concept (0 in the paper).
        layout: regions that replace ``B`` for their words, in every step from the first.
        reduction: sum of the losses of pairs and concepts, as in the paper, or their mean.
        region: how a region is cut out of a map; ``"otsu_8bit_peak"`` is the rule of a reimplementation.
        regions_from: ``"guided"``: maps of the pass that makes the image, after the move, at no
            cost; ``"update"``: maps of the update's own pass, before the move.
        smoothing: kernel on the maps.
        window: the part of the schedule in which latents move.
        step: how far they move.
        refinement: extra updates until every concept is present, or None as in the paper.

    Raises:
        BadSetting: if there is a layout and no retention, through which it acts.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> AttentionSegregation(concepts=("cat", "dog"), strength=0.5).window.stop
        1.0

    Reference:
        Agarwal et al., "A-STAR", ICCV 2023, arXiv 2306.14544, eq. 2-4. Map preparation and
        schedule: Chefer et al., "Attend-and-Excite", 2023, arXiv 2301.13826.
    """

    concepts: Concepts = setting(default=(), help="words that must not share places; empty: all objects")
    strength: float = setting(default=1.0, help="weight of the whole loss; 0 is the untouched model", low=0.0, high=5.0)
    segregation: float = setting(default=1.0, help="weight of the overlap of pairs", low=0.0)
    retention: float = setting(default=1.0, help="weight of staying in the region of the step before", low=0.0)
    presence: float = setting(default=0.0, help="weight of pulling up the weakest concept (0 in the paper)", low=0.0)
    layout: tuple[Region, ...] = setting(default=(), help="regions given by the user, for some words")
    reduction: Reduction = setting(default="sum", help="sum of the losses of pairs and concepts, or their mean")
    region: BinarizeMethod = setting(default="otsu", help="how a region is cut out of a map")
    regions_from: Literal["guided", "update"] = setting(default="guided", help="which maps give the regions")
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    window: Window = setting(default=Window(), help="part of the schedule in which latents move")
    step: StepSize = setting(default=StepSize(), help="how far latents move")
    refinement: Refinement | None = setting(default=None, help="extra updates until every concept is present")

    def __post_init__(self) -> None:
        if self.layout and not self.retention:
            raise BadSetting(
                "AttentionSegregation.layout acts through retention, which is 0, and so would do nothing.",
                "Give retention a weight, or leave out the layout.",
            )

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the concepts of these prompts."""
        spans = chosen_concepts(self.concepts, context, control=self.name)
        if self.strength == 0:
            return Plan()
        idle = without_concepts(spans)
        if not any(spans):
            return Plan(idle=idle)
        maps = ConceptMaps.from_context(context, spans, self.layers, self.smoothing, self.normalize_over)
        state = _Regions(self, maps, Layout.from_regions(self.layout, context, spans))
        objective = Objective(
            name=self.name,
            layers=maps.layers,
            evaluate=state.evaluate,
            strength=self.strength,
            window=self.window,
            step_size=self.step,
            refinement=self.refinement,
            on_maps=state.on_maps if self.regions_from == "guided" and self.retention else None,
            words=maps.table.names,
            dry_run=True,
        )
        return Plan(objectives=(objective,), idle=idle)


class _Regions:
    """The losses of one call, and the regions that they carry from step to step."""

    def __init__(self, settings: AttentionSegregation, maps: ConceptMaps, layout: Layout) -> None:
        self._settings, self._maps, self._layout = settings, maps, layout
        self._serving: Tensor | None = None  # regions of an earlier step, which count now
        self._fresh: tuple[int, Tensor] | None = None  # step and regions of the update's own pass

    def evaluate(self, maps_BYXT: Tensor, step: Step) -> Losses:
        """Return the losses at one latent, from the mean maps of all tokens."""
        settings, mask_BN = self._settings, self._maps.table.mask_BN
        maps_BNYX = self._maps(maps_BYXT)
        if settings.regions_from == "update":
            self._take_update(maps_BNYX, step)
        terms = {"segregation": settings.segregation * overlap_loss(maps_BNYX, mask_BN, settings.reduction)}
        if settings.retention:
            regions_BNYX = torch.zeros_like(maps_BNYX) if self._serving is None else self._serving
            regions_BNYX = self._layout.over(regions_BNYX)
            terms["retention"] = settings.retention * retention_loss(
                maps_BNYX, regions_BNYX, mask_BN, settings.reduction
            )
        presence = presence_loss(maps_BNYX, mask_BN) if settings.presence or settings.refinement else None
        if settings.presence and presence is not None:
            terms["presence"] = settings.presence * presence
        return Losses(terms=terms, presence=None if presence is None else 1 - presence)

    def on_maps(self, maps_BYXT: Tensor, step: Step) -> None:
        """Take the regions from the pass that made the image; they serve at the next step."""
        self._serving = binarize(self._maps(maps_BYXT), self._settings.region)

    def _take_update(self, maps_BNYX: Tensor, step: Step) -> None:
        """Take the regions from the update's own pass; those of one step serve only at the next."""
        if self._fresh is not None and self._fresh[0] < step.index:
            self._serving = self._fresh[1]
        self._fresh = (step.index, binarize(maps_BNYX, self._settings.region))

"""Layout guidance: latents move until the attention of words lies in their regions.

Idea. The share of a word's attention that lies outside of its region, squared, is made smaller in the first steps,
which decide where things are.

What differs from the published code. Maps are the mean over heads and layers at the semantic size, where it takes the
energy of every head of the middle and the first upper block; one update a step, where it makes up to five.

Legend: ``B`` image, ``N`` concept, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, NormalizeOver, Smoothing, chosen_concepts
from t2ictl.controls.layouts import Layout, Region, strips
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import StepSize
from t2ictl.losses.boxes import layout_energy
from t2ictl.losses.overlap import Reduction
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["LayoutGuidance"]


@register_control(
    "layout_guidance",
    paper="Chen, Laina, Vedaldi: Training-Free Layout Control with Cross-Attention Guidance, WACV 2024, "
    "arXiv 2304.03373",
    published={"reduction": "mean", "window": Window(stop=0.2, by="steps")},
)
@settings_class
class LayoutGuidance(LossControl):
    """Bring the attention of words into their regions (layout guidance).

    ``L = sum_n (1 - sum_region A_n / sum A_n)^2``, or the mean over ``n``.

    Args:
        concepts: words that have a place; empty for all objects of each prompt; or one list for each prompt of a batch.
        layout: the region of each word. Empty: equal strips from left to right, in the order of the concepts. Where
            some words have a region, those without are left alone.
        reduction: sum over words with a place, or their mean, as in the published code.
        smoothing: kernel on the maps.
        normalize_over: tokens that compete with a word for each place, as for :class:`AttentionSegregation`.
        window: the part of the schedule in which latents move.
        step: how far they move.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> LayoutGuidance(layout=(Region(word="cat", box=(0, 0, 0.5, 1)),)).window.stop
        0.2

    Reference:
        Chen, Laina, Vedaldi, WACV 2024, arXiv 2304.03373, eq. 2. Their latents move in the first 10 of 51 steps, by 30
        times the variance of the noise.
    """

    concepts: Concepts = setting(default=(), help="words that have a place; empty: all objects")
    layout: tuple[Region, ...] = setting(default=(), help="regions of words; empty: strips from left to right")
    reduction: Reduction = setting(default="sum", help="sum over words with a place, or their mean")
    smoothing: Smoothing = setting(default="none", help="kernel on maps")
    normalize_over: NormalizeOver = setting(default="none", help="tokens that compete with a word for each place")
    window: Window = setting(default=Window(stop=0.2), help="part of the schedule in which latents move")
    step: StepSize = setting(default=StepSize(scale=30.0), help="how far latents move")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        spans = chosen_concepts(self.concepts, context, control=self.name)
        places = Layout.from_regions(self.layout, context, spans) if self.layout else strips(spans)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Take what lies outside of the regions."""
            boxes_BNYX, given_BN = places.masks(maps_BNYX)
            energy_B = layout_energy(maps_BNYX, boxes_BNYX, given_BN & mask_BN)
            if self.reduction == "mean":
                energy_B = energy_B / (given_BN & mask_BN).sum(1).clamp(min=1)
            return Losses(terms={"layout": energy_B})

        return loss_plan(self, context, spans, loss)

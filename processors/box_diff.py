"""BoxDiff: latents move so that words are strong inside of their boxes, weak outside, and as wide and high as they.

Idea. Three losses on the strongest cells of a map: inside of the box they go up, outside down, and the outline of the
map, seen from above and from the side, becomes that of the box.

What differs from the published code. The outline is compared at every row and column, not near the corners alone; no
refinement by the presence of words.

Legend: ``B`` image, ``N`` concept, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, Smoothing, chosen_concepts
from t2ictl.controls.layouts import Layout, Region, Rounding, strips
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import StepSize
from t2ictl.losses.boxes import box_losses
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["BoxDiff"]


@register_control(
    "box_diff",
    paper="Xie, Li, Huang, Liu, Zhang, Zheng, Shou: BoxDiff: Text-to-Image Synthesis with Training-Free "
    "Box-Constrained Diffusion, ICCV 2023, arXiv 2307.10816",
    published={"corner_cells": 1, "rounding": "half_even", "window": Window(stop=0.5, by="steps")},
)
@settings_class
class BoxDiff(LossControl):
    """Make words strong inside of their boxes, weak outside, and as large as the boxes (BoxDiff).

    ``L = inner (1 - top inside) + outer (top outside) + corner |outline of map - outline of box|``.

    Args:
        concepts: words that have a place; empty for all objects of each prompt; or one list for each prompt of a batch.
        layout: the region of each word. Empty: equal strips from left to right, in the order of the concepts. Where
            some words have a region, those without are left alone.
        inner: weight of being strong inside.
        outer: weight of being weak outside.
        corner: weight of having the outline of the box.
        topk_ratio: of the cells of a region, the strongest that count.
        corner_cells: how far from the edges of a box outlines are compared (1 in the published code); None: everywhere.
        rounding: cells of a box: those whose ``"centers"`` it holds, or its edges rounded ``"half_even"``.
        smoothing: kernel on the maps.
        step: how far they move.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> BoxDiff(layout=(Region(word="cat", box=(0, 0, 0.5, 1)),)).topk_ratio
        0.2

    Reference:
        Xie et al., "BoxDiff", ICCV 2023, arXiv 2307.10816, eq. 3-6.
    """

    concepts: Concepts = setting(default=(), help="words that have a place; empty: all objects")
    layout: tuple[Region, ...] = setting(default=(), help="regions of words; empty: strips from left to right")
    inner: float = setting(default=1.0, help="weight of being strong inside", low=0.0)
    outer: float = setting(default=1.0, help="weight of being weak outside", low=0.0)
    corner: float = setting(default=1.0, help="weight of having the outline of the box", low=0.0)
    topk_ratio: float = setting(
        default=0.2, help="of the cells of a region, the strongest that count", low=0.01, high=1.0
    )
    corner_cells: int | None = setting(
        default=None, help="how far from edges outlines are compared; empty: everywhere", low=0
    )
    rounding: Rounding = setting(default="centers", help="which cells belong to a box")
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    step: StepSize = setting(default=StepSize(), help="how far latents move")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        spans = chosen_concepts(self.concepts, context, control=self.name)
        places = Layout.from_regions(self.layout, context, spans) if self.layout else strips(spans)
        places = replace(places, rounding=self.rounding)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Compare maps with their boxes."""
            boxes_BNYX, given_BN = places.masks(maps_BNYX)
            inner_B, outer_B, corner_B = box_losses(
                maps_BNYX, boxes_BNYX, given_BN & mask_BN, self.topk_ratio, self.corner_cells
            )
            terms = {"inner": self.inner * inner_B, "outer": self.outer * outer_B, "corner": self.corner * corner_B}
            return Losses(terms=terms)

        return loss_plan(self, context, spans, loss)

"""Divide & Bind: latents move so that every object has a map with edges, and its attributes the same map.

Idea. Attend-and-Excite reads the strongest cell of a map; total variation reads all of it, and so brings up
objects of which there is more than one. A divergence binds attributes.

What differs from the published code, which is under a license that this project does not take code from and was not
read: everything is written from formulas. It compares every row with the last one, and binds colors by a divergence of
maps that went through a softmax and a cut; here neighbors are compared and shares of attention, as in the paper.
``parity=True`` does as the code does.

Legend: ``B`` image, ``N`` word, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from t2ictl.attention.layers import Layer
from t2ictl.controls.attributes import ResolvedConcepts, resolve_concepts
from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, Smoothing
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.losses.groups import described
from t2ictl.losses.variation import attend_and_bind_loss, attendance_loss, binding_loss
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Step, Window

__all__ = ["DivideAndBind"]

# Published thresholds of the total variation at steps 0, 10 and 20 of 50, and the most updates at one of them.
PUBLISHED = Refinement(thresholds=((0.0, 0.05), (0.2, 0.2), (0.4, 0.3)), max_iterations=50)


@register_control(
    "divide_and_bind",
    paper="Li, Keuper, Zhang, Khoreva: Divide & Bind Your Attention for Improved Generative Semantic Nursing, "
    "BMVC 2023, arXiv 2307.10864",
    published={"parity": True, "window": Window(stop=0.5, by="steps")},
)
@settings_class
class DivideAndBind(LossControl):
    """Move latents so that every object has a map with edges, and its attributes the same map (Divide & Bind).

    ``L = -attendance min_n TV(A_n) + binding sum JSD(noun, modifier)``.

    Args:
        concepts: nouns; empty for all objects of each prompt; or one list for each prompt of a batch. What describes
            them is found in the prompt.
        attendance: weight of the total variation of the flattest noun.
        binding: weight of the divergence of modifiers from their nouns.
        smoothing: kernel on the maps.
        step: how far they move.
        refinement: extra updates until the flattest noun has that total variation, or None.
        parity: compute as the published code does. The weight of its divergence is ``binding`` times 1, 5 and 10 by the
            step; maps of colors come from layers of twice and four times as many cells a side, where there are some.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> DivideAndBind(binding=5.0).attendance
        1.0

    Reference:
        Li et al., "Divide & Bind", BMVC 2023, arXiv 2307.10864.
    """

    concepts: Concepts = setting(default=(), help="nouns; empty: all objects, with what describes them")
    attendance: float = setting(default=1.0, help="weight of the variation of the flattest noun", low=0.0)
    binding: float = setting(default=1.0, help="weight of modifiers being far from their nouns", low=0.0)
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    step: StepSize = setting(default=StepSize(), help="how far latents move")
    refinement: Refinement | None = setting(default=PUBLISHED, help="extra updates until every map has edges")
    parity: bool = setting(default=False, help="compute exactly as the published code does")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        words = resolve_concepts(self.concepts, context, control=self.name)

        if self.parity:
            return self._published(context, words)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Take the flattest noun, and modifiers beside their nouns."""
            flat_B = attendance_loss(maps_BNYX, words.nouns_BN)
            terms = {
                "attendance": self.attendance * flat_B,
                "binding": self.binding * binding_loss(maps_BNYX, words.owner_BN, words.noun_BN, mask_BN),
            }
            return Losses(terms=terms, presence=-flat_B.detach())

        return loss_plan(self, context, words.spans, loss)

    def _published(self, context: PlanContext, words: ResolvedConcepts) -> Plan:
        """The loss of the published code: the worst noun alone moves, by its edges and its color."""
        pair_BNN = described(words.owner_BN, words.noun_BN, words.mask_BN)
        # The color of a noun is what describes it last: "a big red circle".
        color_BN, has_color_BN = pair_BNN.shape[-1] - 1 - pair_BNN.flip(-1).int().argmax(-1), pair_BNN.any(-1)
        finer = _finer(context)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor, *finer_and_step: Any) -> Losses:
            """Take the worst noun."""
            *finer_BNYX, step = finer_and_step
            of_words_BNYX = _mean_at(finer_BNYX, [len(group) for group in finer], maps_BNYX)
            index_BNYX = color_BN[..., None, None].expand_as(maps_BNYX)
            colors_BNYX = of_words_BNYX.gather(1, index_BNYX)
            weight = self.binding * _published_weight(step)
            worst_B = attend_and_bind_loss(maps_BNYX, colors_BNYX, has_color_BN, weight, words.nouns_BN)
            flat_B = attendance_loss(maps_BNYX.detach(), words.nouns_BN, "last")
            return Losses(terms={"worst": self.attendance * worst_B}, presence=-flat_B)

        return loss_plan(self, context, words.spans, loss, also=finer)


def _finer(context: PlanContext) -> tuple[tuple[Layer, ...], ...]:
    """Cross-attention of twice and four times as many cells a side; that of the semantic size if there is none."""
    stride = context.adapter.semantic_stride
    words = context.adapter.word_layers
    groups = [tuple(layer for layer in words if layer.stride == stride // times) for times in (2, 4)]
    return tuple(group for group in groups if group) or (context.adapter.semantic_layers,)


def _mean_at(maps: Sequence[Tensor], layers: Sequence[int], like_BNYX: Tensor) -> Tensor:
    """The mean over layers, at the size of other maps; the nearest cell counts, as in the published code."""
    size = like_BNYX.shape[-2:]
    parts = [functional.interpolate(each, size=size) * count for each, count in zip(maps, layers, strict=True)]
    return torch.stack(parts).sum(0) / sum(layers)


def _published_weight(step: Step) -> float:
    """1 in the first ten of fifty steps, 5 in the next ten, then 10."""
    fiftieth = step.index * 50 / (step.requested or step.total)
    return 1.0 if fiftieth < 10 else 5.0 if fiftieth < 20 else 10.0

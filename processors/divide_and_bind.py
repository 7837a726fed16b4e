"""Divide & Bind: latents move so that every object has a map with edges, and its attributes the same map.

Idea. Attend-and-Excite reads the strongest cell of a map; total variation reads all of it, and so brings up
objects of which there is more than one. A divergence binds attributes.

What differs from the published code, which is under a license that this project does not take code from and was not
read: everything is written from the formulas. Its vertical variation is known to compare rows with the last one alone;
here neighbors are compared, as in the paper.

Legend: ``B`` image, ``N`` word, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.controls.attributes import resolve_concepts
from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, Smoothing
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.losses.variation import attendance_loss, binding_loss
from t2ictl.settings.fields import setting, settings_class

__all__ = ["DivideAndBind"]

# Published thresholds of the total variation at steps 0, 10 and 20 of 50, and the most updates at one of them.
PUBLISHED = Refinement(thresholds=((0.0, 0.05), (0.2, 0.2), (0.4, 0.3)), max_iterations=50)


@register_control(
    "divide_and_bind",
    paper="Li, Keuper, Zhang, Khoreva: Divide & Bind Your Attention for Improved Generative Semantic Nursing, "
    "BMVC 2023, arXiv 2307.10864",
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

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> DivideAndBind(binding=5.0).attendance
        1.0

    Reference:
        Li et al., "Divide & Bind", BMVC 2023, arXiv 2307.10864. Their weight of binding is 1, 5 or 10 by the step.
    """

    concepts: Concepts = setting(default=(), help="nouns; empty: all objects, with what describes them")
    attendance: float = setting(default=1.0, help="weight of the variation of the flattest noun", low=0.0)
    binding: float = setting(default=1.0, help="weight of modifiers being far from their nouns", low=0.0)
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    step: StepSize = setting(default=StepSize(), help="how far latents move")
    refinement: Refinement | None = setting(default=PUBLISHED, help="extra updates until every map has edges")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        words = resolve_concepts(self.concepts, context, control=self.name)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Take the flattest noun, and modifiers beside their nouns."""
            flat_B = attendance_loss(maps_BNYX, words.nouns_BN)
            terms = {
                "attendance": self.attendance * flat_B,
                "binding": self.binding * binding_loss(maps_BNYX, words.owner_BN, words.noun_BN, mask_BN),
            }
            return Losses(terms=terms, presence=-flat_B.detach())

        return loss_plan(self, context, words.spans, loss)

"""Attend-and-Excite: latents move until every concept is attended to somewhere.

Idea. A concept that no place in the image attends to is not drawn. At each step of the
first half the latents move up the strongest cell of the most neglected concept; at some
steps they move again and again until every concept is strong enough.

It stands here as the peer that users know, in the same frame as the other controls: real
batches, any size and scheduler, one short pass an update. ``parity=True`` reproduces the
decisions of the published code, so that old results can be checked.

Legend: ``B`` image, ``N`` concept, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, Smoothing, chosen_concepts
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.losses.presence import presence_loss
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["AttendAndExcite"]


@register_control(
    "attend_and_excite",
    paper="Chefer, Alaluf, Vinker, Wolf, Cohen-Or: Attend-and-Excite: Attention-Based Semantic Guidance for "
    "Text-to-Image Diffusion Models, SIGGRAPH 2023, arXiv 2301.13826",
    published={"parity": True, "window": Window(stop=0.5, by="steps")},
)
@settings_class
class AttendAndExcite(LossControl):
    """Pull up the most neglected concept (Attend-and-Excite).

    ``L = max_s (1 - max_ij A_s)``; ``x <- x - a_i dL/dx`` before each denoising step of the first half.

    Args:
        concepts: words or phrases that must appear; empty for all objects of each prompt; or
            one list for each prompt of a batch.
        smoothing: kernel on the maps.
        step: how far they move.
        refinement: extra updates until every concept is present, or None.
        parity: decide as the published code does: one refinement more than needed, and a move
            also where PNDM throws it away.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> AttendAndExcite(concepts=("cat", "frog")).window.stop
        0.5

    Reference:
        Chefer et al., "Attend-and-Excite", SIGGRAPH 2023, arXiv 2301.13826, algorithm 1.
    """

    concepts: Concepts = setting(default=(), help="words that must appear; empty: all objects")
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    step: StepSize = setting(default=StepSize(), help="how far latents move")
    refinement: Refinement | None = setting(default=Refinement(), help="extra updates until every concept is present")
    parity: bool = setting(default=False, help="decide exactly as the published code does")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the concepts of these prompts."""
        refinement = self.refinement
        if refinement is not None and self.parity:
            refinement = replace(refinement, decide_before_update=True)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Take the weakest concept."""
            neglect_B = presence_loss(maps_BNYX, mask_BN)
            return Losses(terms={"presence": neglect_B}, presence=1 - neglect_B)

        spans = chosen_concepts(self.concepts, context, control=self.name)
        return loss_plan(self, context, spans, loss, refinement=refinement, keep_discarded=self.parity)

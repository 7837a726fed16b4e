"""Self-Cross guidance: latents move so that the places of one object do not attend to the places of another.

Idea. Similar objects are mixed in self-attention: the places of a cat read those of a tiger. For each object the
self-attention of its places, found by its cross-attention map, is compared with the cross-attention maps of the others.

What differs from the published code. It is a loss of its own that joins any other of the session, where the published
one sits on top of two hosts; masks are made in one go on the device, where it loops over places. Self-attention is read
at the size of the maps, 16 x 16 by default, as a mean over heads: 256 x 256 numbers an image.

Legend: ``B`` image, ``N`` concept, ``T`` prompt token, ``P`` place, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, Smoothing, chosen_concepts
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import StepSize
from t2ictl.losses.presence import presence_loss
from t2ictl.losses.self_attention import gathered, outside_peak_loss, published_self_cross_loss, self_cross_loss
from t2ictl.maps.masks import binarize, peak_component
from t2ictl.maps.ops import smoothed_places
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["SelfCrossGuidance"]

# Published code: added to sums in updates between steps, and the weight of cells outside of places.
SUM_OFFSET, OUTSIDE_WEIGHT = 1e-4, 0.1


@register_control(
    "self_cross_guidance",
    paper="Qiu, Wang, Tang: Self-Cross Diffusion Guidance for Text-to-Image Synthesis of Similar Subjects, CVPR 2025, "
    "arXiv 2411.18936",
    published={"parity": True, "window": Window(stop=0.5, by="steps")},
    needs=("maps", "self_maps"),
)
@settings_class
class SelfCrossGuidance(LossControl):
    """Keep the places of objects from looking at each other (Self-Cross).

    ``L = presence max_n (1 - max A_n) + conflict mean_{i != j} sum min(S_i, C_j)``, ``S_i`` the self-attention of the
    places of object ``i`` and ``C_j`` the cross-attention map of object ``j``, both with sum 1.

    Args:
        concepts: words that must not mix; empty for all objects of each prompt; or one list for each prompt of a batch.
        conflict: weight of looking at each other's places.
        presence: weight of Attend-and-Excite's loss, on which the published method stands.
        presence_threshold: the conflict counts only in images whose weakest object is at least this present, as a share
            of the strongest cell; places of an object that is nowhere mean nothing.
        smoothing: kernel on the maps.
        step: how far they move.
        parity: compute as the published code does in updates between steps: places weigh by their cross-attention and
            are found by an 8-bit threshold, self-attention is smoothed, and a tenth of the largest cell outside of an
            object's places is added.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> SelfCrossGuidance(concepts=("cat", "tiger")).presence_threshold
        0.5

    Reference:
        Qiu, Wang, Tang, CVPR 2025, arXiv 2411.18936. There the conflict is off while Attend-and-Excite's loss is above
        one half.
    """

    concepts: Concepts = setting(default=(), help="words that must not mix; empty: all objects")
    conflict: float = setting(default=1.0, help="weight of looking at each other's places", low=0.0)
    presence: float = setting(default=1.0, help="weight of pulling up the weakest object", low=0.0)
    presence_threshold: float = setting(
        default=0.5, help="how present all objects are before the conflict counts", low=0.0, high=1.0
    )
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    step: StepSize = setting(default=StepSize(), help="how far latents move")
    parity: bool = setting(default=False, help="compute exactly as the published code does")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the objects of these prompts."""
        spans = chosen_concepts(self.concepts, context, control=self.name)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor, self_BYXP: Tensor) -> Losses:
            """Compare what positions of an object attend to with where the others are."""
            neglect_B = presence_loss(maps_BNYX, mask_BN)
            looks_BNYX = gathered(self_BYXP.float(), binarize(maps_BNYX))
            conflict_B = self_cross_loss(looks_BNYX, maps_BNYX, mask_BN)
            is_there_B = (neglect_B.detach() <= 1 - self.presence_threshold).to(conflict_B.dtype)
            terms = {"presence": self.presence * neglect_B, "conflict": self.conflict * is_there_B * conflict_B}
            return Losses(terms=terms)

        def published(maps_BNYX: Tensor, mask_BN: Tensor, self_BYXP: Tensor) -> Losses:
            """Take the losses of the published code, host included."""
            places_BNYX = binarize(maps_BNYX, "otsu_8bit")
            smoothed_BYXP = smoothed_places(self_BYXP)
            neglect_B = presence_loss(maps_BNYX, mask_BN)
            conflict_B = published_self_cross_loss(smoothed_BYXP, maps_BNYX, places_BNYX, mask_BN, offset=SUM_OFFSET)
            conflict_B = torch.where(neglect_B > 1 - self.presence_threshold, 0.0, conflict_B)
            outside_B = outside_peak_loss(maps_BNYX, peak_component(maps_BNYX, places_BNYX), mask_BN)
            terms = {
                "presence": self.presence * neglect_B,
                "conflict": self.conflict * conflict_B,
                "outside": OUTSIDE_WEIGHT * outside_B,
            }
            return Losses(terms=terms)

        return loss_plan(self, context, spans, published if self.parity else loss, self_attention=True)

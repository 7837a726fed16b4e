"""InitNO: before the first step, the initial noise is optimized until every object is attended to and none conflict.

Idea. Some noise cannot become the prompt. Mean and variance of the initial latent are moved until cross-attention finds
every object and the self-attention of the objects' strongest places does not overlap; then the image is made as
always.

What differs from the published code. The noise of the user's seed is kept and only its mean and variance move; nothing
is drawn anew behind the user's back, so there are no rounds. No updates in later steps: join Attend-and-Excite for
those. Distance from normal noise is a term of the loss, not a loop of its own. Images of a batch search on their own.

Legend: ``B`` image, ``N`` concept, ``T`` prompt token, ``P`` place, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.concepts import Concepts, NormalizeOver, Smoothing, chosen_concepts
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import NoiseSearch
from t2ictl.losses.presence import presence_loss
from t2ictl.losses.self_attention import conflict_loss, outside_peak_loss
from t2ictl.maps.masks import binarize
from t2ictl.maps.ops import smoothed_places
from t2ictl.settings.fields import setting, settings_class

__all__ = ["InitialNoise"]

# Published code: added to sums; the neglect up to which the conflict counts; the conflict of an image that is good.
SUM_OFFSET, LARGEST_NEGLECT, LARGEST_CONFLICT = 1e-6, 0.5, 0.3


@register_control(
    "initial_noise",
    paper="Guo, Liu, Cui, Li, Yang, Huang: InitNO: Boosting Text-to-Image Diffusion Models via Initial Noise "
    "Optimization, CVPR 2024, arXiv 2404.04650",
    published={"parity": True, "search": NoiseSearch(eps=1e-3)},
    needs=("maps", "self_maps"),
)
@settings_class
class InitialNoise(Control):
    """Look for initial noise in which every object is attended to and none conflict (InitNO).

    ``L = presence max_n (1 - max A_n) + conflict mean_{m<n} O(S_m, S_n)`` with ``S_n`` the self-attention of the place
    where the map of object ``n`` is largest; ``x = mean + sqrt(variance) noise``, moved by Adam before the first step.

    Args:
        concepts: words that must be there; empty for all objects of each prompt; or one list for each prompt of a
            batch.
        strength: weight of the loss; 0 is the untouched model.
        presence: weight of the weakest object.
        conflict: weight of the overlap of self-attention.
        smoothing: kernel on the maps.
        normalize_over: tokens that compete with a word for each place, as for :class:`AttentionSegregation`.
        layers: layer filter of cross-attention; empty for the model's semantic size.
        search: how far and how long.
        parity: compute as the published code does in its search: self-attention is smoothed, the conflict counts where
            the loss of presence is at most one half, and cells outside of an object's places that outdo some inside are
            a loss of their own; an image is good enough only if its conflict is below 0.3 too.

    Example:
        >>> InitialNoise(search=NoiseSearch(max_steps=10)).search.max_steps
        10

    Reference:
        Guo et al., "InitNO", CVPR 2024, arXiv 2404.04650.
    """

    concepts: Concepts = setting(default=(), help="words that must be there; empty: all objects")
    strength: float = setting(default=1.0, help="weight of the loss; 0 is the untouched model", low=0.0, high=5.0)
    presence: float = setting(default=1.0, help="weight of the weakest object", low=0.0)
    conflict: float = setting(default=1.0, help="weight of the overlap of self-attention", low=0.0)
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    normalize_over: NormalizeOver = setting(default="auto", help="tokens that compete with a word for each place")
    layers: tuple[str, ...] = setting(default=(), help="layer filter; empty: cross-attention at the semantic size")
    search: NoiseSearch = setting(default=NoiseSearch(), help="how far and how long")
    parity: bool = setting(default=False, help="compute exactly as the published code does")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the objects of these prompts."""
        spans = chosen_concepts(self.concepts, context, control=self.name)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor, self_BYXP: Tensor) -> Losses:
            """Take the weakest object, and what strongest positions attend to together."""
            neglect_B = presence_loss(maps_BNYX, mask_BN)
            conflict_B = conflict_loss(self_BYXP, maps_BNYX, mask_BN)
            terms = {"presence": self.presence * neglect_B, "conflict": self.conflict * conflict_B}
            return Losses(terms=terms, presence=1 - neglect_B)

        def published(maps_BNYX: Tensor, mask_BN: Tensor, self_BYXP: Tensor) -> Losses:
            """Take the joint loss of the published search."""
            neglect_B = presence_loss(maps_BNYX, mask_BN)
            places_BNYX = binarize(maps_BNYX, "otsu_8bit_peak")
            conflict_B = conflict_loss(smoothed_places(self_BYXP), maps_BNYX, mask_BN, offset=SUM_OFFSET)
            counted_B = torch.where(neglect_B > LARGEST_NEGLECT, 0.0, conflict_B)
            terms = {
                "presence": self.presence * neglect_B,
                "conflict": self.conflict * counted_B,
                "outside": outside_peak_loss(maps_BNYX, places_BNYX, mask_BN),
            }
            return Losses(terms=terms, presence=torch.where(conflict_B < LARGEST_CONFLICT, 1 - neglect_B, 0.0))

        return loss_plan(self, context, spans, published if self.parity else loss, self_attention=True)

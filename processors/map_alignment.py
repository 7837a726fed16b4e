"""EBAMA: latents move so that modifiers look where their noun looks, nouns keep from other words, and all are there.

Idea. An energy of the maps, conditioned on the nouns: the cosine between a noun and its modifiers is made larger, that
between the noun and other words smaller, and the strongest cell of every noun stronger.

What differs from the published code. All images of a batch are moved, and no forward pass is made at steps without
an update.

Legend: ``B`` image, ``N`` word, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.controls.attributes import resolve_concepts
from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, Smoothing
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import Preparations, loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import StepSize
from t2ictl.losses.alignment import alignment_loss
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["MapAlignment"]


@register_control(
    "map_alignment",
    paper="Zhang, Yu, Wu: Object-Conditioned Energy-Based Attention Map Alignment in Text-to-Image Diffusion "
    "Models, ECCV 2024, arXiv 2404.07389",
    published={"parity": True, "window": Window(stop=0.52, by="steps")},
)
@settings_class
class MapAlignment(LossControl):
    """Align modifiers with their nouns, keep nouns from other words, and strengthen nouns (EBAMA).

    ``L = binding [sum (1 - cos(noun, modifier)) - sum max(1, M) mean_u (1 - cos(noun, u))] - intensity sum max A_n``
    for nouns with ``M`` modifiers.

    Args:
        concepts: nouns; empty for all objects of each prompt; or one list for each prompt of a batch. What describes
            them is found in the prompt.
        binding: weight of the cosines.
        intensity: weight of the strongest cells of nouns.
        smoothing: kernel on the maps.
        step: how far they move.
        parity: take the cosines of attention as it is, and the strongest cells of prepared maps, as published.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> MapAlignment().intensity
        0.5

    Reference:
        Zhang, Yu, Wu, "Object-Conditioned Energy-Based Attention Map Alignment", ECCV 2024, arXiv 2404.07389. The step
        length of their code is 20 at every step, and the first 26 of 50 steps move.
    """

    concepts: Concepts = setting(default=(), help="nouns; empty: all objects, with what describes them")
    binding: float = setting(default=1.0, help="weight of the cosines", low=0.0)
    intensity: float = setting(default=0.5, help="weight of the strongest cells of nouns", low=0.0)
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    step: StepSize = setting(default=StepSize(final_scale_sq=1.0), help="how far latents move")
    parity: bool = setting(default=False, help="compute exactly as the published code does")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        words = resolve_concepts(self.concepts, context, control=self.name, others=True)

        def loss(*maps_and_mask: Tensor) -> Losses:
            """Compare nouns with all words."""
            *maps, mask_BN = maps_and_mask
            binding_B, _ = alignment_loss(maps[0], words.owner_BN, words.noun_BN, mask_BN)
            _, intensity_B = alignment_loss(maps[-1], words.owner_BN, words.noun_BN, mask_BN)
            return Losses(terms={"binding": self.binding * binding_B, "intensity": self.intensity * intensity_B})

        as_published: Preparations = (("none", "none"), (self.smoothing, self.normalize_over))
        return loss_plan(self, context, words.spans, loss, preparations=as_published if self.parity else ())

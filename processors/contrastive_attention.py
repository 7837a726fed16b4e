"""CONFORM: latents move so that maps of one object attract each other and repel those of others.

Idea. Words are seen as classes: an object with what describes it. A contrastive loss over the maps of this step, and of
the step before, pulls maps of a class together and pushes classes apart.

What differs from the published code. Maps of the step before come from the pass that makes the image, which costs
nothing, and are stored as they were (the published code multiplies what it stores again at every call); refinement is
off by default, where the published code makes 20 updates at three steps whatever they find.

Legend: ``B`` image, ``N`` word, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.controls.attributes import resolve_concepts
from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, NormalizeOver, Smoothing
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import StepSize
from t2ictl.losses.contrast import contrastive_loss
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["ContrastiveAttention"]


@register_control(
    "contrastive_attention",
    paper="Meral, Simsar, Tombari, Yanardag: CONFORM: Contrast is All You Need For High-Fidelity Text-to-Image "
    "Diffusion Models, CVPR 2024, arXiv 2312.06059",
    published={"window": Window(stop=0.6, by="steps")},
)
@settings_class
class ContrastiveAttention(LossControl):
    """Pull maps of one object together and push those of different objects apart (CONFORM).

    ``L = mean over (i, j) of one object of -log(e^(c_ij/t) / (e^(c_ij/t) + sum_k e^(c_ik/t)))``, ``c`` the cosine of
    maps, over the maps of this step and, with ``previous_maps``, of the one before.

    Args:
        concepts: nouns; empty for all objects of each prompt; or one list for each prompt of a batch. What describes
            them is found in the prompt.
        temperature: of the contrast.
        previous_maps: whether maps of the step before count too. A prompt of one word to an object has positives
            through it alone.
        smoothing: kernel on the maps.
        normalize_over: as for every loss; the published code has ``"none"``.
        window: the part of the schedule in which latents move.
        step: how far they move.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> ContrastiveAttention().temperature
        0.5

    Reference:
        Meral et al., "CONFORM", CVPR 2024, arXiv 2312.06059, eq. 4. Their latents move in the first 30 of 50 steps.
    """

    concepts: Concepts = setting(default=(), help="nouns; empty: all objects, with what describes them")
    temperature: float = setting(default=0.5, help="of the contrast", low=0.01, high=10.0)
    previous_maps: bool = setting(default=True, help="whether maps of the step before count too")
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    normalize_over: NormalizeOver = setting(default="none", help="tokens that compete with a word for each position")
    window: Window = setting(default=Window(stop=0.6), help="part of the schedule in which latents move")
    step: StepSize = setting(default=StepSize(), help="how far latents move")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        words = resolve_concepts(self.concepts, context, control=self.name)
        contrast = _Contrast(words.owner_BN, self.temperature)
        on_maps = contrast.on_maps if self.previous_maps else None
        return loss_plan(self, context, words.spans, contrast.loss, on_maps=on_maps)


class _Contrast:
    """The loss of one call, and the maps of the step before."""

    def __init__(self, owner_BN: Tensor, temperature: float) -> None:
        self._owner_BN, self._temperature = owner_BN, temperature
        self._before: Tensor | None = None

    def loss(self, maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
        """Return the loss at one latent."""
        owner_BN = self._owner_BN
        if self._before is not None:
            maps_BNYX = torch.cat([maps_BNYX, self._before], dim=1)
            owner_BN, mask_BN = owner_BN.repeat(1, 2), mask_BN.repeat(1, 2)
        return Losses(terms={"contrast": contrastive_loss(maps_BNYX, owner_BN, mask_BN, self._temperature)})

    def on_maps(self, maps_BNYX: Tensor) -> None:
        """Take the maps of the pass that made the image; they count at the next step."""
        self._before = maps_BNYX

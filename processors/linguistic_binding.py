"""SynGen: latents move so that what describes a noun looks where the noun looks, and nowhere else.

Idea. Attributes end up on the wrong object because their maps follow another noun. At each step of the first half the
divergence between the maps of a noun and of its modifiers is made smaller, and that between both and all other words
larger.

What differs from the published code. Words come from this library's parser, and words of a second prompt are its own;
every word counts, not the first of a list; divergences are finite by a floor; real batches.

Legend: ``B`` image, ``N`` word, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.controls.attributes import ResolvedConcepts, resolve_concepts
from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, NormalizeOver, Smoothing
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import StepSize
from t2ictl.losses.linguistic_binding import linguistic_binding_loss, piecewise_binding_loss
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["LinguisticBinding"]


@register_control(
    "linguistic_binding",
    paper="Rassin, Hirsch, Glickman, Ravfogel, Goldberg, Chechik: Linguistic Binding in Diffusion Models: Enhancing "
    "Attribute Correspondence through Attention Map Alignment, NeurIPS 2023, arXiv 2306.08877",
    published={"parity": True, "window": Window(stop=0.5, by="steps")},
)
@settings_class
class LinguisticBinding(LossControl):
    """Bind modifiers to their nouns, and keep both from other words (SynGen).

    ``L = positive sum d(noun, modifier) - negative sum mean_u (d(noun, u) + d(modifier, u)) / 2`` with ``d`` the
    symmetric Kullback-Leibler divergence. A prompt without modifiers is left alone.

    Args:
        concepts: nouns; empty for all objects of each prompt; or one list for each prompt of a batch. What describes
            them is found in the prompt.
        positive: weight of the distance of modifiers from their nouns.
        negative: weight of the distance of both from other words.
        smoothing: kernel on the maps.
        normalize_over: as for every loss; the published code has ``"none"``.
        step: how far they move.
        parity: compute as the published code does: of a word of several tokens the farthest counts, not their mean.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> LinguisticBinding(negative=0.5).window.stop
        0.5

    Reference:
        Rassin et al., "Linguistic Binding in Diffusion Models", NeurIPS 2023, arXiv 2306.08877, eq. 2-4. Their step
        length is 20 at every step of the first half, and there is no smoothing.
    """

    concepts: Concepts = setting(default=(), help="nouns; empty: all objects, with what describes them")
    positive: float = setting(default=1.0, help="weight of modifiers being far from their nouns", low=0.0)
    negative: float = setting(default=1.0, help="weight of both being near other words", low=0.0)
    smoothing: Smoothing = setting(default="none", help="kernel on maps")
    normalize_over: NormalizeOver = setting(default="none", help="tokens that compete with a word for each position")
    step: StepSize = setting(default=StepSize(final_scale_sq=1.0), help="how far latents move")
    parity: bool = setting(default=False, help="compute exactly as the published code does")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        words = resolve_concepts(self.concepts, context, control=self.name, others=True)

        if self.parity:
            return self._published(context, words)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Compare all words with all."""
            positive_B, negative_B = linguistic_binding_loss(maps_BNYX, words.owner_BN, words.noun_BN, mask_BN)
            return Losses(terms={"positive": self.positive * positive_B, "negative": self.negative * negative_B})

        return loss_plan(self, context, words.spans, loss, idle=words.without_attributes)

    def _published(self, context: PlanContext, words: ResolvedConcepts) -> Plan:
        """The loss of the published code, in which every token has a map of its own."""
        pieces = words.by_token()

        def loss(maps_BPYX: Tensor, mask_BP: Tensor) -> Losses:
            """Compare all tokens with all."""
            positive_B, negative_B = piecewise_binding_loss(
                maps_BPYX, pieces.word_BN, pieces.owner_BN, pieces.noun_BN, mask_BP
            )
            return Losses(terms={"positive": self.positive * positive_B, "negative": self.negative * negative_B})

        return loss_plan(self, context, pieces.spans, loss, idle=words.without_attributes)

"""Predicated Diffusion: latents move so that statements about the image hold, in fuzzy logic.

Idea. "There is a dog", "the dog is black", "the black is not the bird's" are statements about maps, read as degrees of
truth at each place. Minus the logarithm of their truth is the loss.

What differs from the paper. Means over places stand where it has products, so that weights hold at every resolution.
Its code was not at hand: weights are those of a public rewriting.

Legend: ``B`` image, ``N`` word, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.controls.attributes import ResolvedConcepts, resolve_concepts
from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.concepts import Concepts, Smoothing
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.planning import Preparations, loss_plan
from t2ictl.controls.registry import register_control
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import StepSize
from t2ictl.losses.groups import apart, described
from t2ictl.losses.predicates import correspondence_loss, existence_loss, stretched
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["PredicatedDiffusion"]

# Added inside of logarithms by published code: for nouns, and for pairs.
EXISTENCE_OFFSET, PAIR_OFFSET = 1e-4, 1e-20


@register_control(
    "predicated_diffusion",
    paper="Sueyoshi, Matsubara: Predicated Diffusion: Predicate Logic-Based Attention Guidance for Text-to-Image "
    "Diffusion Models, CVPR 2024, arXiv 2311.16117",
    published={"parity": True, "window": Window(stop=0.5, by="steps")},
)
@settings_class
class PredicatedDiffusion(LossControl):
    """Make statements about the image hold: objects are there, and have their own attributes (Predicated Diffusion).

    ``L = existence E + correspondence C + leak K``: there is each noun; modifier and noun hold at the same places; a
    modifier holds nowhere where another noun does.

    Args:
        concepts: nouns; empty for all objects of each prompt; or one list for each prompt of a batch. What describes
            them is found in the prompt.
        existence: weight of nouns being there.
        correspondence: weight of modifiers holding where their nouns do.
        leak: weight of modifiers holding where other nouns do.
        smoothing: kernel on the maps.
        step: how far they move.
        parity: the means over nouns and pairs in the place of sums; attention as it is for pairs, without smoothing for
            nouns, as a fork of the authors' code has it.

    The fields that all losses on maps share are those of :class:`~t2ictl.controls.LossControl`.

    Example:
        >>> PredicatedDiffusion(leak=0.0).existence
        0.1

    Reference:
        Sueyoshi, Matsubara, "Predicated Diffusion", CVPR 2024, arXiv 2311.16117.
    """

    concepts: Concepts = setting(default=(), help="nouns; empty: all objects, with what describes them")
    existence: float = setting(default=0.1, help="weight of nouns being there", low=0.0)
    correspondence: float = setting(default=1.0, help="weight of modifiers holding where their nouns do", low=0.0)
    leak: float = setting(default=0.3, help="weight of modifiers holding where other nouns do", low=0.0)
    smoothing: Smoothing = setting(default="attend_and_excite", help="kernel on maps")
    step: StepSize = setting(default=StepSize(), help="how far latents move")
    parity: bool = setting(default=False, help="compute exactly as the published code does")

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        words = resolve_concepts(self.concepts, context, control=self.name)

        if self.parity:
            return self._published(context, words)

        def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Take the truth of all statements."""
            same_B, leak_B = correspondence_loss(stretched(maps_BNYX), words.owner_BN, words.noun_BN, mask_BN)
            terms = {
                # of the maps as they are: a stretched map is 1 somewhere, however weak it is
                "existence": self.existence * existence_loss(maps_BNYX, words.nouns_BN),
                "correspondence": self.correspondence * same_B,
                "leak": self.leak * leak_B,
            }
            return Losses(terms=terms)

        return loss_plan(self, context, words.spans, loss)

    def _published(self, context: PlanContext, words: ResolvedConcepts) -> Plan:
        """The losses of the published code: means over the statements of a kind."""
        same_BNN = described(words.owner_BN, words.noun_BN, words.mask_BN)
        leak_BNN = apart(words.owner_BN, words.mask_BN) & words.noun_BN[:, :, None] & ~words.noun_BN[:, None]
        nouns_B, same_B, leak_B = (each.flatten(1).sum(1).clamp(min=1) for each in (words.nouns_BN, same_BNN, leak_BNN))

        def loss(raw_BNYX: Tensor, maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Take the truth of all statements."""
            found = correspondence_loss(stretched(raw_BNYX), words.owner_BN, words.noun_BN, mask_BN, PAIR_OFFSET)
            existence_B = existence_loss(maps_BNYX, words.nouns_BN, EXISTENCE_OFFSET)
            terms = {
                "existence": self.existence * existence_B / nouns_B,
                "correspondence": self.correspondence * found[0] / same_B,
                "leak": self.leak * found[1] / leak_B,
            }
            return Losses(terms=terms)

        preparations: Preparations = (("none", "none"), ("none", self.normalize_over))
        return loss_plan(self, context, words.spans, loss, preparations=preparations)

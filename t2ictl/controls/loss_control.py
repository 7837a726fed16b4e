"""A loss on the attention maps of words as a control: the fields that all of them share, and a function of your own.

Legend: ``B`` image, ``N`` word, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.concepts import Concepts, NormalizeOver, Smoothing, chosen_concepts
from t2ictl.controls.planning import loss_plan
from t2ictl.errors import BadSetting, shown
from t2ictl.guidance.objectives import Losses
from t2ictl.guidance.rules import StepSize
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["LossControl", "LossFunction"]

LossFunction = Callable[[Tensor, Tensor], Tensor | Losses]
"""From ``maps_BNYX`` in [0, 1] and ``mask_BN``, true where a word is real, to ``loss_B``, or to several named terms."""


@settings_class
class LossControl(Control):
    """Move latents down the gradient of a loss on the attention maps of words.

    As it stands it takes a function of your own. As a base class it gives a registered control the fields that all
    such controls share; the control adds its own fields and its ``plan``.

    Args:
        concepts: words whose maps the loss gets; empty for all objects of each prompt; or one list for each prompt of
            a batch.
        strength: weight of the whole loss; 0 is the untouched model.
        smoothing: kernel on the maps.
        normalize_over: tokens that compete with a word for each position: ``"all_tokens"``, all but the start token and
            the last position; ``"prompt_words"``, those before the end token; ``"none"``; ``"auto"``, as published for
            the model.
        layers: layer filter; empty for cross-attention at the model's semantic size.
        window: the part of the schedule in which latents move.
        step: how far they move.

    Raises:
        BadSetting: for a field out of range, or if no loss is given and the class is not a base.

    Example:
        >>> import t2ictl
        >>> def larger(maps_BNYX, mask_BN):
        ...     return -(maps_BNYX.mean((2, 3)) * mask_BN).sum(1)
        >>> pipe = t2ictl.load("shapes")
        >>> with t2ictl.controlled(pipe, [LossControl(larger, concepts=("circle",))]) as session:
        ...     image = pipe("a red circle and a blue square", num_inference_steps=2).images[0]
        >>> sorted(session.trace[0].terms)
        ['larger.larger']
    """

    concepts: Concepts = setting(default=(), help="words it acts on; empty: all objects")
    strength: float = setting(default=1.0, help="weight of the loss; 0 is the untouched model", low=0.0, high=5.0)
    smoothing: Smoothing = setting(default="gaussian", help="kernel on maps")
    normalize_over: NormalizeOver = setting(default="auto", help="tokens that compete with a word for each position")
    layers: tuple[str, ...] = setting(default=(), help="layer filter; empty: cross-attention at the semantic size")
    window: Window = setting(default=Window(stop=0.5), help="part of the schedule in which latents move")
    step: StepSize = setting(
        default=StepSize(mode="normalized", scale=0.05, final_scale_sq=1.0), help="how far latents move"
    )

    needs = frozenset({"maps"})

    if TYPE_CHECKING:  # what type checkers see; below, fields are checked as in every settings class

        def __init__(
            self,
            loss: LossFunction,
            /,
            *,
            concepts: Concepts = ...,
            strength: float = ...,
            smoothing: Smoothing = ...,
            normalize_over: NormalizeOver = ...,
            layers: tuple[str, ...] = ...,
            window: Window = ...,
            step: StepSize = ...,
        ) -> None: ...

    def plan(self, context: PlanContext) -> Plan:
        """Make the objective for the words of these prompts."""
        given: LossFunction = vars(self)["loss"]

        def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Losses:
            """Name the value of the function, unless it names its own terms."""
            found = given(maps_BNYX, mask_BN)
            return found if isinstance(found, Losses) else Losses(terms={self.name: found})

        # A function of the user's is called for the image alone, never to try it out.
        spans = chosen_concepts(self.concepts, context, control=self.name)
        return loss_plan(self, context, spans, loss, dry_run=False)


_checked: Callable[..., None] = LossControl.__init__


def _with_loss(self: Any, *loss: LossFunction, **fields: Any) -> None:
    """Take the function by position, where the class has no plan of its own; fields are checked as ever."""
    if type(self) is not LossControl:
        _checked(self, *loss, **fields)  # refuses what is given by position
        return
    if len(loss) != 1 or not callable(loss[0]):
        raise BadSetting(
            f"LossControl needs one loss function, not {shown(loss)}.",
            "Write LossControl(my_loss, concepts=('cat',)), where my_loss(maps_BNYX, mask_BN) returns loss_B.",
        )
    _checked(self, **fields)
    name = getattr(loss[0], "__name__", type(loss[0]).__name__).strip("<>")
    vars(self).update(loss=loss[0], name=name)


LossControl.__init__ = _with_loss  # type: ignore[method-assign]

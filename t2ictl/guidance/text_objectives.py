"""What a control does to the text states of a call: rewrite their rows once, and let some rows move on the way.

The pipeline's own ``encode_prompt`` encodes; what it returned is edited before the pipeline
sees it. Rows that an objective moves are kept as a difference, which is added to the conditional rows of every
evaluation from then on.

Legend: ``B`` image, ``G`` row of a pass (any image, any text), ``K`` position of the text row, ``C`` channels,
``Y`` ``X`` map rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.families.text_states import Encode, PromptEmbeds
from t2ictl.prompts.prompt import Prompt
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Step, Window

__all__ = ["TextEdit", "TextPasses", "EmbedLosses", "EmbedObjective", "EmbedStep"]


class TextPasses(Protocol):
    """The passes that an objective on text rows may ask for."""

    def maps(self, layers: tuple[Layer, ...], embeds_BTC: Tensor) -> Tensor:
        """Mean attention maps ``maps_BYXT`` of the images under these text rows."""

    def noise(self, embeds_GTC: Tensor, image_G: Tensor) -> Tensor:
        """Noise ``noise_GCYX`` predicted for these images under these texts."""


@dataclass(frozen=True, kw_only=True)
class EmbedLosses:
    """What an objective on text rows found.

    Args:
        terms: weighted loss terms by name, each ``loss_B``.
        done: ``bool_B``, images that need no (further) update now.
        forwards: passes that this look took, for each image.
        backwards: gradients that it will take, for each image.
        rows: rows of the batch through which a gradient goes, others' included.
    """

    terms: Mapping[str, Tensor]
    done: Tensor
    forwards: Tensor
    backwards: Tensor
    rows: int

    @property
    def total(self) -> Tensor:
        """``loss_B``, the sum of the terms."""
        return torch.stack(list(self.terms.values())).sum(dim=0)


@settings_class
class EmbedStep:
    """How far text rows move along the gradient.

    ``raw`` is the published rule, ``dc = -a_i g``. ``normalized`` moves every row by the same share of its own
    length, ``dc = -a_i |c| g / |g|``, and so needs no new size for another text encoder.
    ``a_i = size (1 - (1 - decay) i / (n - 1))`` falls linearly over the schedule.

    Args:
        scale: ``a_0``; in ``normalized`` mode a fraction of the row's norm.
        final_scale: share of ``a_0`` that is left at the last step of the schedule.
        mode: ``"raw"`` or ``"normalized"``.

    Example:
        >>> step = EmbedStep(scale=3.0, final_scale=0.0, mode="raw")
        >>> step.length(0, 51), step.length(25, 51)
        (3.0, 1.5)
    """

    scale: float = setting(default=0.02, help="step length at the first step", low=0.0)
    final_scale: float = setting(default=0.0, help="share of the first length left at the last step", low=0.0, high=1.0)
    mode: Literal["raw", "normalized"] = setting(
        default="normalized", help="raw gradient, or a share of the row's norm"
    )

    def length(self, index: int, total: int) -> float:
        """Return ``a_i`` for evaluation ``index`` of ``total``."""
        progress = index / (total - 1) if total > 1 else 0.0
        return float(self.scale * (1.0 - (1.0 - self.final_scale) * progress))

    def move(
        self, embeds_BTC: Tensor, gradient_BKC: Tensor, mask_BK: Tensor, step: Step, strength: float = 1.0
    ) -> Tensor:
        """Return the step of each row.

        Args:
            embeds_BTC: the text rows.
            gradient_BKC: gradient of the loss with respect to them.
            mask_BK: True at rows that may move.
            step: the evaluation.
            strength: factor on the length.

        Returns:
            ``drows_BKC``, to be added; zero where the mask is False or the gradient is zero.
        """
        if self.mode == "normalized":
            # Direction first: |c| / |g| of a vanishing gradient is infinite, and infinity times 0 is not a number.
            # Its largest entry first of all: the square of a small one is 0.
            tiny = torch.finfo(gradient_BKC.dtype).tiny
            gradient_BKC = gradient_BKC / gradient_BKC.abs().amax(dim=-1, keepdim=True).clamp_min(tiny)
            slope_BK = gradient_BKC.norm(dim=-1).clamp_min(tiny)
            gradient_BKC = gradient_BKC / slope_BK[..., None] * embeds_BTC.norm(dim=-1, keepdim=True)
        move_BKC = -strength * self.length(step.index, step.total) * gradient_BKC
        return torch.where(mask_BK[..., None], move_BKC, torch.zeros_like(move_BKC))


@dataclass(frozen=True, kw_only=True)
class EmbedObjective:
    """One of a control's losses that moves text rows.

    Args:
        name: the control.
        layers: the layers that its passes must be able to read or shorten.
        evaluate: gets the passes, ``embeds_BTC`` and the step, gives the losses.
        movable: ``bool_BK``, the rows that may move.
        max_updates_B: ``int_B``, most updates of each image in one evaluation.
        window: the part of the schedule in which it acts.
        step_size: how far rows move.
        strength: factor on the step.
        decide_before_update: end with the update of the loss that is good enough, where it would otherwise be left out;
            parity with published code.
        zero_pooled: give its passes pooled text states of zero; parity with published code.
    """

    name: str
    layers: tuple[Layer, ...]
    evaluate: Callable[[TextPasses, Tensor, Step], EmbedLosses]
    movable: Tensor
    max_updates_B: Tensor
    window: Window
    step_size: EmbedStep
    strength: float = 1.0
    decide_before_update: bool = False
    zero_pooled: bool = False


@dataclass(frozen=True, kw_only=True)
class TextEdit:
    """What a plan does to the text states.

    Args:
        prompts: the prompts with their words at the places that they have after ``rewrite``, in the order of the call.
        rewrite: gets what the pipeline encoded and the encoder, gives what is used instead.
        weight: ``weight_BK`` in [0, 1], what each position counts in every cross-attention (0: not there); None: 1.
        during: gives what is added to the rows at a step, or None.
        objectives: what moves rows, one after the other.
        perturb: moves rows without a loss: gets ``embeds_BTC`` and the step, gives the moves to add one after the
            other.
    """

    prompts: tuple[Prompt, ...]
    rewrite: Callable[[PromptEmbeds, Encode], PromptEmbeds]
    weight: Tensor | None = None
    during: Callable[[Step], Tensor | None] | None = None
    objectives: tuple[EmbedObjective, ...] = ()
    perturb: Callable[[Tensor, Step], Sequence[Tensor]] | None = None

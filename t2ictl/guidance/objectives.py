"""Objectives: what is to become smaller, how far a latent may move for it, and when to try again.

Legend: ``B`` batch row, ``T`` prompt token, ``C`` channels, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.errors import ControlConflict
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.settings.windows import Step, Window

if TYPE_CHECKING:
    from t2ictl.guidance.rules import NoiseSearch

__all__ = ["Losses", "Objective", "check_one_step_size"]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What an objective found at one latent.

    Args:
        terms: weighted loss terms by name, each ``loss_B``; their sum is minimized.
        presence: ``presence_B`` in [0, 1], the strength of each row's weakest concept, for
            refinement; None if the objective does not refine.
    """

    terms: Mapping[str, Tensor]
    presence: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """``loss_B``, the sum of the terms."""
        return torch.stack(list(self.terms.values())).sum(dim=0)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One control's losses on attention maps, in one run.

    Args:
        name: the control.
        layers: the cross-attention layers whose mean map is judged.
        evaluate: gets ``maps_BYXT`` of the conditional rows and the step, gives the losses. With further groups of
            layers it gets a tuple of maps; those of self-attention are ``maps_BYXP``, the attention of each place to
            each place ``P``, in reading order.
        self_layers: self-attention layers of one size whose mean map is wanted too.
        also: further groups of cross-attention layers of which a mean map each is wanted.
        strength: weight in the sum of all objectives.
        window: the part of the schedule in which it acts.
        step_size: how far the latent moves.
        refinement: extra updates, or None.
        on_maps: gets ``maps_BYXT`` of the pass that makes the image, after the move, without gradient.
        keep_discarded: move also where the scheduler throws the moved sample away (parity only).
        search: looks for better initial noise, once, before the first evaluation, in the place of moves at every one.
        moves: what moves.
        words: for each image the words whose maps it reads, for messages.
        dry_run: whether a second plan of its control may be tried on made-up maps before the first step: losses without
            a gradient move nothing, and the user is told.
    """

    name: str
    layers: tuple[Layer, ...]
    evaluate: Callable[[Any, Step], Losses]
    self_layers: tuple[Layer, ...] = ()
    also: tuple[tuple[Layer, ...], ...] = ()
    strength: float = 1.0
    window: Window = Window()
    step_size: StepSize = StepSize()
    refinement: Refinement | None = None
    on_maps: Callable[[Tensor, Step], None] | None = None
    keep_discarded: bool = False
    search: NoiseSearch | None = None
    moves: Literal["latents"] = "latents"
    words: tuple[tuple[str, ...], ...] = ()
    dry_run: bool = False

    @property
    def groups(self) -> tuple[tuple[Layer, ...], ...]:
        """The groups of layers of which it wants a mean map each."""
        return (self.layers, *([self.self_layers] if self.self_layers else []), *self.also)

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """All layers that it listens to."""
        return tuple(layer for group in self.groups for layer in group)

    def read(self, maps: Sequence[Tensor], step: Step) -> Losses:
        """Return the losses for the mean maps of its groups."""
        return self.evaluate(tuple(maps) if len(self.groups) > 1 else maps[0], step)

    def acts(self, step: Step) -> bool:
        """Return whether the step lies in this objective's window, and is one at which latents move."""
        if self.search is not None:
            return step.index == 0
        if not self.window.holds(step):
            return False
        # By noise nobody knows the first one; then every so many evaluations are counted from the start of the call.
        first = 0 if self.window.by == "noise" else self.window.steps(self.window.total(step))[0]
        return self.step_size.every == 1 or (step.index - first) % self.step_size.every == 0

    def target(self, step: Step) -> float | None:
        """Return the presence to refine to at this step, or None."""
        return None if self.refinement is None else self.refinement.target_at(step, self.window.total(step))


def check_one_step_size(objectives: Sequence[Objective]) -> None:
    """Check that all objectives move the latents by one rule: there is one latent and one step.

    Args:
        objectives: the objectives of a session.

    Raises:
        ControlConflict: if two of them ask for different step rules.
    """
    objectives = [each for each in objectives if each.search is None]
    for other in objectives[1:]:
        if other.step_size != objectives[0].step_size:
            raise ControlConflict(
                f"{objectives[0].name} and {other.name} both own the step by which the latents move, "
                f"and ask for {objectives[0].step_size} and {other.step_size}.",
                "Give both controls the same step=StepSize(...).",
            )

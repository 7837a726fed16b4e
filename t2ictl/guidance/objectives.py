"""Objectives: what is to become smaller, how far a latent may move for it, and when to try again.

Legend: ``B`` batch row, ``T`` prompt token, ``C`` channels, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from t2ictl.attention.layers import Site
from t2ictl.errors import ControlConflict
from t2ictl.guidance.rules import Refinement, StepRule
from t2ictl.settings.windows import Step, Window

if TYPE_CHECKING:
    from t2ictl.guidance.rules import NoiseSearch

__all__ = ["Losses", "Objective", "one_rule"]


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
        sites: the cross-attention layers whose mean map is judged.
        evaluate: gets ``maps_BYXT`` of the conditional rows and the step, gives the losses. With ``self_sites`` it gets
            two maps: these, and ``maps_BYXP`` with the attention of each place to each place ``P``, in reading order.
        self_sites: self-attention layers of one size whose mean map is wanted too.
        strength: weight in the sum of all objectives.
        window: the part of the schedule in which it acts.
        rule: how far the latent moves.
        refinement: extra updates, or None.
        observe: gets ``maps_BYXT`` of the pass that makes the picture, after the move, without gradient.
        keep_discarded: move also where the scheduler throws the moved sample away (parity only).
        search: looks for better initial noise, once, before the first evaluation, in the place of moves at every one.
        moves: what moves.
    """

    name: str
    sites: tuple[Site, ...]
    evaluate: Callable[[Any, Step], Losses]
    self_sites: tuple[Site, ...] = ()
    strength: float = 1.0
    window: Window = Window()
    rule: StepRule = StepRule()
    refinement: Refinement | None = None
    observe: Callable[[Tensor, Step], None] | None = None
    keep_discarded: bool = False
    search: NoiseSearch | None = None
    moves: Literal["latents"] = "latents"

    @property
    def groups(self) -> tuple[tuple[Site, ...], ...]:
        """The groups of layers of which it wants a mean map each."""
        return (self.sites, self.self_sites) if self.self_sites else (self.sites,)

    @property
    def all_sites(self) -> tuple[Site, ...]:
        """All layers that it listens to."""
        return self.sites + self.self_sites

    def read(self, maps: Sequence[Tensor], step: Step) -> Losses:
        """Give the losses for the mean maps of its groups."""
        return self.evaluate(tuple(maps) if self.self_sites else maps[0], step)

    def acts(self, step: Step) -> bool:
        """Tell whether the step lies in this objective's window, and is one at which latents move."""
        if self.search is not None:
            return step.index == 0
        if not self.window.contains(step.index, step.total):
            return False
        return self.rule.every == 1 or (step.index - self.window.steps(step.total)[0]) % self.rule.every == 0

    def target(self, step: Step) -> float | None:
        """Give the presence to refine to at this step, or None."""
        return None if self.refinement is None else self.refinement.target(step.index, step.total)


def one_rule(objectives: Sequence[Objective]) -> None:
    """Check that all objectives move the latents by one rule: there is one latent and one step.

    Args:
        objectives: the objectives of a session.

    Raises:
        ControlConflict: if two of them ask for different step rules.
    """
    objectives = [each for each in objectives if each.search is None]
    for other in objectives[1:]:
        if other.rule != objectives[0].rule:
            raise ControlConflict(
                f"{objectives[0].name} and {other.name} both own the step by which the latents move, "
                f"and ask for {objectives[0].rule} and {other.rule}.",
                "Give both controls the same step=StepRule(...).",
            )

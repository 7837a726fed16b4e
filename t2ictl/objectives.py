"""Objectives: what is to become smaller, how far a latent may move for it, and when to try again.

Legend: ``B`` batch row, ``T`` prompt token, ``C`` channels, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from t2ictl.attention import Step
from t2ictl.errors import ControlConflict
from t2ictl.fields import setting, settings_class
from t2ictl.sites import Site
from t2ictl.windows import Window

if TYPE_CHECKING:
    from t2ictl.noise_search import NoiseSearch

__all__ = ["Losses", "Objective", "Refinement", "StepRule", "one_rule"]

_Share = Annotated[float, Field(ge=0.0, le=1.0)]


@settings_class
class StepRule:
    """How far a latent moves along the gradient of an objective.

    ``raw`` is the published rule, ``dx = -a_i g`` with ``a_i = size sqrt(linspace(1, decay, n))[i]``
    (Attend-and-Excite, arXiv 2301.13826; their 20 and 0.5). ``normalized`` gives every step the
    same length relative to the latent, ``dx = -a_i |x| g / |g|``, and so needs no new size for
    another model. Both act in the scaled space that the denoiser sees.

    Args:
        size: ``a_0``; in ``normalized`` mode a fraction of the latent's norm.
        decay: square of the share of ``a_0`` that is left at the last step.
        mode: ``"raw"`` or ``"normalized"``.
        limit: longest step, as a fraction of the latent's norm; None for no limit.
        every: move at every so many evaluations only, from the first one of the window on. Updates are what a control
            costs: 2 halves it.

    Example:
        >>> StepRule().length(0, 50), round(StepRule().length(49, 50), 3)
        (20.0, 14.142)
    """

    size: float = setting(default=20.0, help="step length at the first step", low=0.0)
    decay: float = setting(
        default=0.5, help="square of the share of the first step that the last one has", low=0.0, high=1.0
    )
    mode: Literal["raw", "normalized"] = setting(
        default="raw", help="raw gradient, or a fixed share of the latent's norm"
    )
    limit: float | None = setting(default=None, help="longest step (fraction of the latent's norm)", low=0.0)
    every: int = setting(default=1, help="move at every so many steps only; 2 halves the cost", low=1)

    def length(self, index: int, total: int) -> float:
        """Give ``a_i`` for evaluation ``index`` of ``total``."""
        progress = index / (total - 1) if total > 1 else 0.0
        return float(self.size * (1.0 - (1.0 - self.decay) * progress) ** 0.5)

    def move(self, x_BCYX: Tensor, gradient_BCYX: Tensor, index: int, total: int, strength: float = 1.0) -> Tensor:
        """Give the step for each row.

        Args:
            x_BCYX: the scaled latents.
            gradient_BCYX: gradient of the weighted objective with respect to them.
            index: evaluation, from 0.
            total: number of evaluations.
            strength: factor on the length in ``normalized`` mode, where the gradient's own
                length, which carries the strength in ``raw`` mode, is divided out.

        Returns:
            ``dx_BCYX``, to be added to the latents; zero where the gradient is zero.
        """
        length = self.length(index, total)
        norm_B = _norm(x_BCYX)
        if self.mode == "normalized":
            # Direction first: |x| / |g| of a vanishing gradient is infinite, and infinity times 0 is not a number.
            slope_B = _norm(gradient_BCYX).clamp_min(torch.finfo(norm_B.dtype).tiny)
            gradient_BCYX = gradient_BCYX / slope_B[:, None, None, None] * (strength * norm_B)[:, None, None, None]
        step_BCYX = -length * gradient_BCYX
        if self.limit is not None:
            shrink_B = (self.limit * norm_B / _norm(step_BCYX).clamp_min(torch.finfo(norm_B.dtype).tiny)).clamp_max(1)
            step_BCYX = step_BCYX * shrink_B[:, None, None, None]
        return step_BCYX


def _norm(x_BCYX: Tensor) -> Tensor:
    return x_BCYX.flatten(1).norm(dim=1)


@settings_class
class Refinement:
    """Iterative refinement: at some steps, move again and again until every concept is strong enough.

    Args:
        targets: pairs (fraction of the schedule, least presence in [0, 1]). The defaults are
            steps 0, 10, 20 of 50 with .05, .5, .8 (Attend-and-Excite, arXiv 2301.13826). Of two
            that fall on one step of a short schedule the higher one counts.
        most: largest number of extra updates at one step.
        stale: decide on the loss *before* the last update, as the published code does, which
            makes one update more than needed. For parity only.
        look: ask the device which pictures are good enough after every so many updates; it has to wait for the answer.
            Those that are leave the batch then. A larger number waits less often and may pass pictures in vain.

    Example:
        >>> Refinement().target(10, 50), Refinement().target(11, 50)
        (0.5, None)
    """

    targets: tuple[tuple[_Share, _Share], ...] = setting(
        default=((0.0, 0.05), (0.2, 0.5), (0.4, 0.8)), help="(fraction of the schedule, least presence) pairs"
    )
    most: int = setting(default=20, help="most extra updates at one step", low=0)
    stale: bool = setting(default=False, help="parity with published code: decide on the loss before the last update")
    look: int = setting(default=1, help="ask after every so many updates which pictures are good enough", low=1)

    def target(self, index: int, total: int) -> float | None:
        """Give the presence demanded at evaluation ``index`` of ``total``, or None if it is not refined."""
        # The tolerance keeps 0.2 x 50 at step 10 whatever the rounding of 0.2.
        here = (presence for fraction, presence in self.targets if int(fraction * total + 1e-9) == index)
        return max(here, default=None)


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

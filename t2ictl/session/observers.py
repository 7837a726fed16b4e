"""Controls that only look on: their losses on a picture that they do not touch.

A control's own loss says how good it finds a picture; with it one can choose among pictures, or see
what another control did to it. It is read from the maps of the pass that makes the picture
anyway, beside the fused kernels, so it costs no pass and the picture is bit-equal.

Legend: ``B`` picture, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from t2ictl.attention.layers import Site
from t2ictl.attention.passes import Rows
from t2ictl.controls.base import Control, Plan
from t2ictl.errors import BadSetting
from t2ictl.guidance.objectives import Objective
from t2ictl.maps.record import MapTap
from t2ictl.settings.windows import Step

__all__ = ["Measured", "Onlooker"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a control's objectives found in one evaluation.

    Args:
        control: the control.
        step: the evaluation.
        loss: ``loss_B``, the weighted sum of all its objectives that act there.
    """

    control: Control
    step: Step
    loss: Tensor


@dataclass(kw_only=True)
class _Watch:
    objective: Objective
    taps: tuple[MapTap, ...]


@dataclass
class Onlooker:
    """The objectives of one control during one pipeline call, evaluated where they would act.

    Args:
        control: the control.
        plan: its plan for this call; only the objectives of it are used.
        found: the losses, one entry an evaluation.

    Raises:
        BadSetting: if the control has no losses, or acts on text rows: then they are not read from the maps of
            the picture's own pass.
    """

    control: Control
    plan: Plan
    found: list[Measured] = field(default_factory=list)
    _watching: list[_Watch] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.control.has_losses:
            raise BadSetting(
                f"{type(self.control).__name__} has no loss to measure: it edits attention.",
                "Leave it out of measure=; in a benchmark, leave out best-of-N:<its arm>.",
            )
        if self.plan.text is not None:
            raise BadSetting(
                f"The losses of {type(self.control).__name__} need passes of their own and cannot be measured beside.",
                "Leave it out of measure=; in a benchmark, leave out best-of-N:<its arm>.",
            )

    @property
    def sites(self) -> set[Site]:
        """The layers that are listened to."""
        return {site for objective in self.plan.objectives for site in objective.all_sites}

    def begin(self, step: Step, rows: Rows, is_discarded: bool) -> list[MapTap]:
        """Say what to listen to in the pass that is about to run.

        Args:
            step: the evaluation.
            rows: the conditional rows of the batch.
            is_discarded: whether the scheduler throws the sample away, so that the control would do nothing.

        Returns:
            The taps.
        """
        acting = [each for each in self.plan.objectives if each.acts(step)]
        acting = [each for each in acting if each.keep_discarded or not is_discarded]
        self._watching = [
            _Watch(objective=each, taps=tuple(MapTap(sites, rows) for sites in each.groups)) for each in acting
        ]
        return [tap for each in self._watching for tap in each.taps]

    def end(self, step: Step) -> None:
        """Evaluate the objectives on what was heard.

        Args:
            step: the evaluation.
        """
        losses: list[Tensor] = []
        for each in self._watching:
            maps = [tap.mean() for tap in each.taps]
            losses.append(each.objective.strength * each.objective.read(maps, step).total.detach())
            if each.objective.observe is not None:
                each.objective.observe(maps[0], step)
        self._watching = []
        if losses:
            self.found.append(Measured(control=self.control, step=step, loss=torch.stack(losses).sum(dim=0)))

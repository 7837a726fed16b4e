"""Controls that only look on: their losses on an image that they do not touch.

A control's own loss says how good it finds an image; with it one can choose among images, or see
what another control did to it. It is read from the maps of the pass that makes the image
anyway, beside the fused kernels, so it costs no pass and the image is bit-equal.

Legend: ``B`` image, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import Rows
from t2ictl.controls.base import Control, Plan
from t2ictl.errors import BadSetting
from t2ictl.guidance.objectives import Objective
from t2ictl.maps.recorder import MapTap
from t2ictl.settings.windows import Step

__all__ = ["LossEntry", "LossMonitor"]


@dataclass(frozen=True, kw_only=True)
class LossEntry:
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
class _Monitored:
    objective: Objective
    taps: tuple[MapTap, ...]


@dataclass
class LossMonitor:
    """The objectives of one control during one pipeline call, evaluated where they would act.

    Args:
        control: the control.
        plan: its plan for this call; only the objectives of it are used.
        found: the losses, one entry an evaluation.

    Raises:
        BadSetting: if the control has no losses, or acts on text rows: then they are not read from the maps of
            the image's own pass.
    """

    control: Control
    plan: Plan
    found: list[LossEntry] = field(default_factory=list)
    _monitored: list[_Monitored] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.control.has_losses:
            raise BadSetting(
                f"{type(self.control).__name__} has no loss to measure: it edits attention.",
                "Leave it out of measure=; in a benchmark, leave out best-of-N:<its arm>.",
            )
        if self.plan.text is not None:
            raise BadSetting(
                f"The losses of {type(self.control).__name__} need extra passes and cannot be measured beside.",
                "Leave it out of measure=; in a benchmark, leave out best-of-N:<its arm>.",
            )

    @property
    def layers(self) -> set[Layer]:
        """The layers that are listened to."""
        return {layer for objective in self.plan.objectives for layer in objective.all_layers}

    def begin(self, step: Step, rows: Rows, is_discarded: bool) -> list[MapTap]:
        """Describe what to listen to in the pass that is about to run.

        Args:
            step: the evaluation.
            rows: the conditional rows of the batch.
            is_discarded: whether the scheduler throws the sample away, so that the control would do nothing.

        Returns:
            The taps.
        """
        acting = [each for each in self.plan.objectives if each.acts(step)]
        acting = [each for each in acting if each.keep_discarded or not is_discarded]
        self._monitored = [
            _Monitored(objective=each, taps=tuple(MapTap(layers, rows) for layers in each.groups)) for each in acting
        ]
        return [tap for each in self._monitored for tap in each.taps]

    def end(self, step: Step) -> None:
        """Evaluate the objectives on what was heard.

        Args:
            step: the evaluation.
        """
        losses: list[Tensor] = []
        for each in self._monitored:
            maps = [tap.mean() for tap in each.taps]
            losses.append(each.objective.strength * each.objective.read(maps, step).total.detach())
            if each.objective.on_maps is not None:
                each.objective.on_maps(maps[0], step)
        self._monitored = []
        if losses:
            self.found.append(LossEntry(control=self.control, step=step, loss=torch.stack(losses).sum(dim=0)))

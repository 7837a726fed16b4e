"""The guard of one pipeline call: is an evaluation of the denoiser the next one of this call?

Several pipelines may share a denoiser, callbacks may break a call off or drop rows, and schedulers may be set anew. An
evaluation that this call did not lead to is refused before anything acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.errors import ForeignCall
from t2ictl.families import Adapter
from t2ictl.families.evaluations import several_evaluations
from t2ictl.settings.windows import Step

__all__ = ["EvaluationGuard"]

_REMEDY = "Another pipeline shares this denoiser: call it outside the session, or give it its own."


@dataclass(kw_only=True)
class EvaluationGuard:
    """Checks and numbers the evaluations of one pipeline call.

    Args:
        adapter: the pipeline's family.
        batch: the rows of its batch; conditional rows alone once a callback has switched guidance off.
        embeds: what the pipeline's own ``encode_prompt`` returned; None: not compared.
        evaluations: how many there have been.
        steps: how many scheduler steps there have been.
    """

    adapter: Adapter
    batch: BatchLayout
    embeds: Tensor | None = None
    evaluations: int = 0
    steps: int = 0
    _last_timestep: float = float("inf")
    _schedule: tuple[Any, Any, list[float]] | None = None

    @property
    def cond(self) -> slice:
        """The conditional rows, which lie together."""
        rows = self.batch.indices("cond")
        return slice(rows[0], rows[-1] + 1)

    def check_one_each_step(self, inputs: dict[str, Any]) -> None:
        """See that the scheduler has stepped since the last evaluation.

        Args:
            inputs: arguments of the denoiser by name.

        Raises:
            UnsupportedPipeline: if the pipeline evaluates its denoiser once more at the same timestep.
        """
        scheduler = self.adapter.pipe.scheduler
        if self._schedule is None or self.steps >= self.evaluations:
            return
        own, timesteps, _ = self._schedule
        is_same_call = scheduler is own and scheduler.timesteps is timesteps
        if is_same_call and _timestep(inputs) == self._last_timestep:
            raise several_evaluations(self.adapter.pipe)

    def next_step(self, inputs: dict[str, Any]) -> Step:
        """Check that this is the evaluation expected next, and number it.

        Args:
            inputs: arguments of the denoiser by name: ``sample``, ``timestep``, ``encoder_hidden_states``, ...

        Returns:
            The step.

        Raises:
            ForeignCall: if it is not.
            UnsupportedPipeline: if the batch has other rows than were encoded.
        """
        sample, timestep = inputs["sample"], _timestep(inputs)
        pipe = self.adapter.pipe
        total = getattr(pipe, "_num_timesteps", None) or len(pipe.scheduler.timesteps)
        if self.evaluations >= total or not self._follows(timestep):
            raise ForeignCall(
                f"The denoiser was called at timestep {timestep:g} after evaluation {self.evaluations} of {total}, "
                "without this pipeline encoding a prompt first.",
                _REMEDY,
            )
        if self.evaluations == 0:
            self.batch.check_rows(len(sample))
            self._check_embeds(inputs["encoder_hidden_states"])
        else:
            self._check_rows(len(sample))
        step = Step(index=self.evaluations, total=total, timestep=timestep, requested=_requested(pipe.scheduler, total))
        self.evaluations += 1
        self._last_timestep = timestep
        return step

    def all_steps(self, first: Step) -> tuple[Step, ...]:
        """List all evaluations of the call.

        Args:
            first: the first one.

        Returns:
            The steps in order; the scheduler may change its mind about their timesteps.
        """
        assert self._schedule is not None
        timesteps = self._schedule[2][-first.total :]
        return tuple(
            replace(first, index=index, timestep=timesteps[min(index, len(timesteps) - 1)])
            for index in range(first.total)
        )

    def _follows(self, timestep: float) -> bool:
        """Whether an evaluation at this timestep can be the next one of this call.

        After an interrupt or an error another pipeline may go on with the same denoiser, and even
        with the same scheduler. It starts at another place of the schedule, or sets the schedule anew.
        """
        scheduler = self.adapter.pipe.scheduler
        if self._schedule is None:
            timesteps = [float(each) for each in torch.as_tensor(scheduler.timesteps).tolist()]
            self._schedule = (scheduler, scheduler.timesteps, timesteps)
            return True
        own, timesteps, known = self._schedule
        was_reset = scheduler is own and scheduler.timesteps is not timesteps
        was_stopped = bool(getattr(self.adapter.pipe, "_interrupt", False))
        return not was_reset and not was_stopped and (self._last_timestep, timestep) in pairwise(known)

    def _check_rows(self, rows: int) -> None:
        """Compare with the rows that arrive; callbacks may switch guidance off for the rest of a call."""
        if rows != len(self.batch) and rows == self.batch.images:
            self.batch = self.batch.only("cond")
        self.batch.check_rows(rows)

    def _check_embeds(self, states: Tensor) -> None:
        """The text embeddings must be those that this pipeline's own ``encode_prompt`` returned."""
        if self.embeds is None:
            return
        mine = self.embeds.to(device=states.device, dtype=states.dtype)
        theirs = states[self.cond]
        if mine.shape != theirs.shape or not torch.equal(mine, theirs):
            raise ForeignCall(
                "The denoiser was called with text embeddings that this pipeline's encode_prompt did not return.",
                _REMEDY,
            )


def _requested(scheduler: Any, total: int) -> int | None:
    """The steps that a call asked for, less those that it leaves out (image to image begins in the middle)."""
    asked = getattr(scheduler, "num_inference_steps", None)
    return None if asked is None else max(int(asked) - (len(scheduler.timesteps) - total), 1)


def _timestep(inputs: dict[str, Any]) -> float:
    return float(torch.as_tensor(inputs["timestep"]).flatten()[0])

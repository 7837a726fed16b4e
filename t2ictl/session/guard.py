"""The guard of one pipeline call: is an evaluation of the denoiser the next one of this call, and what are its rows?

Several pipelines may share a denoiser, callbacks may break a call off or drop rows, and schedulers may be set anew. An
evaluation that this call did not lead to is refused before anything acts on it.

An evaluation is what lies between two scheduler steps. A U-Net is called once in it; a transformer may be called again,
for the negative prompt or with some layers left out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.cache import TensorCache
from t2ictl.errors import ForeignCall
from t2ictl.families import Adapter
from t2ictl.families.evaluations import several_evaluations
from t2ictl.families.noise import noise_level
from t2ictl.families.rows import KnownRows, layout_by_content
from t2ictl.ports.base import Inputs
from t2ictl.settings.windows import Step

__all__ = ["EvaluationGuard"]

_REMEDY = "Another pipeline shares this denoiser: call it outside the session, or give it its own."
# Pipelines round the time that they tell a denoiser to the precision of their latents, up to two times: before and
# after they change its unit. It is compared with another one that was rounded as often.
_ROUNDINGS = 4
_LEAST_ROUNDING = 1e-5


@dataclass(frozen=True)
class _Schedule:
    """The timesteps of a call, as they were at its first evaluation."""

    scheduler: Any
    timesteps: Any
    known: list[float]


@dataclass(kw_only=True)
class EvaluationGuard:
    """Checks and numbers the evaluations of one pipeline call.

    Args:
        adapter: the pipeline's family.
        batch: the rows of its batch; conditional rows alone once a callback has switched guidance off.
        known: the text rows that the pipeline has encoded; None: not compared.
        evaluations: how many there have been.
        steps: how many scheduler steps there have been.
    """

    adapter: Adapter
    batch: BatchLayout
    known: KnownRows | None = None
    evaluations: int = 0
    steps: int = 0
    _layouts: dict[tuple[int, int], BatchLayout] = field(default_factory=dict)
    _calls: int = 0
    _compared: TensorCache = field(default_factory=TensorCache)
    _last_time: float = float("inf")
    _schedule: _Schedule | None = None
    _first: tuple[int, float] = (0, 1.0)

    @property
    def cond(self) -> slice:
        """The conditional rows, which lie together."""
        rows = self.batch.indices("cond")
        return slice(rows[0], rows[-1] + 1)

    @property
    def timestep(self) -> Any:
        """What the scheduler calls the time of the evaluation in progress."""
        assert self._schedule is not None
        return torch.as_tensor(self._schedule.timesteps)[self._place(self.evaluations - 1)]

    def goes_on(self, inputs: Inputs) -> bool:
        """Return whether a call of the denoiser belongs to the evaluation before: the scheduler has not stepped since.

        Args:
            inputs: arguments of the denoiser by name.

        Raises:
            UnsupportedPipeline: if the pipeline evaluates its denoiser several times in a step, on other latents.
        """
        schedule, scheduler = self._schedule, self.adapter.pipe.scheduler
        if schedule is None or self.steps >= self.evaluations:
            return False
        is_same_call = scheduler is schedule.scheduler and scheduler.timesteps is schedule.timesteps
        if not is_same_call or self.adapter.port.time(inputs) != self._last_time:
            return False
        if not self.adapter.port.several_calls:
            raise several_evaluations(self.adapter.pipe)
        return True

    def next_step(self, inputs: Inputs) -> Step:
        """Check that this is the evaluation expected next, and number it.

        Args:
            inputs: arguments of the denoiser by name.

        Returns:
            The step.

        Raises:
            ForeignCall: if it is not.
            UnsupportedPipeline: if the batch has other rows than were encoded.
        """
        time, pipe = self.adapter.port.time(inputs), self.adapter.pipe
        total = getattr(pipe, "_num_timesteps", None) or len(pipe.scheduler.timesteps)
        if self.evaluations >= total or not self._follows(time, total, _rounding(inputs["timestep"])):
            raise ForeignCall(
                f"The denoiser was called at timestep {time:g} after evaluation {self.evaluations} of {total}, "
                "without this pipeline encoding a prompt first.",
                _REMEDY,
            )
        self._calls = 0
        self.batch = self.layout(inputs)
        schedule = self._schedule
        assert schedule is not None
        place = self._place(self.evaluations)
        is_own = not self.adapter.port.several_calls
        step = Step(
            index=self.evaluations,
            total=total,
            timestep=time if is_own else schedule.known[place],
            requested=_requested(pipe.scheduler, total),
            noise=noise_level(pipe.scheduler, place),
            noise_before=noise_level(pipe.scheduler, self._place(self.evaluations - 1)) if self.evaluations else None,
        )
        self.evaluations += 1
        self._last_time = time
        return step

    def layout(self, inputs: Inputs) -> BatchLayout:
        """Find out what the rows of a call of the denoiser are.

        Args:
            inputs: arguments of the denoiser by name.

        Returns:
            The batch.

        Raises:
            ForeignCall: if its text rows are not those that this pipeline's own ``encode_prompt`` returned.
            UnsupportedPipeline: if there are other rows than were encoded.
        """
        port = self.adapter.port
        rows, first = len(inputs[port.sample_name]), self.evaluations == 0
        if not port.several_calls:
            return self._only_layout(rows, inputs if first else None)
        images = self.batch.only("cond")
        self._calls, key = self._calls + 1, (self._calls, rows)
        found = self.batch if self.known is None else None
        if self.known is not None:
            known, texts = self.known, port.texts(inputs)
            # Pipelines hand over the very same tensor at every step; comparing it each time would wait for the device.
            found = self._compared(
                texts[0],
                key,
                lambda: layout_by_content(known, texts, images, uncond_first=self.adapter.guidance_first),
            )
        # A callback may have given the call other text rows; it goes on in the same order.
        found = found or self._layouts.get(key)
        if found is None and rows % images.images:
            images.check_rows(rows)
        if found is None or len(found) != rows:
            raise _foreign_text()
        self._layouts[key] = found
        return found

    def warn_of_masks(self) -> None:
        """Warn if the pipeline has put masks beside the rows of other prompts; its images are left as they are."""
        if self.known is not None and self.known.mixes_masks(self.batch):
            warnings.warn(
                f"{type(self.adapter.pipe).__name__} repeats the masks of batched prompts of unlike length in another "
                "order than their text rows, so that images of one prompt are made with masks of another; controls "
                "and records act on what is made. Call it once for each prompt, or for one image of each.",
                RuntimeWarning,
                stacklevel=2,
            )

    def all_steps(self, first: Step) -> tuple[Step, ...]:
        """List all evaluations of the call.

        Args:
            first: the first one.

        Returns:
            The steps in order; the scheduler may change its mind about their timesteps.
        """
        assert self._schedule is not None
        timesteps, scheduler = self._schedule.known[-first.total :], self.adapter.pipe.scheduler
        offset = len(self._schedule.known) - len(timesteps)
        levels = [noise_level(scheduler, offset + index) for index in range(len(timesteps))]
        made = []
        for index in range(first.total):
            place = min(index, len(timesteps) - 1)
            before = levels[place - 1] if place else None
            made.append(
                replace(first, index=index, timestep=timesteps[place], noise=levels[place], noise_before=before)
            )
        return tuple(made)

    def _place(self, index: int) -> int:
        """Where an evaluation stands among the timesteps: image to image begins behind the first ones."""
        assert self._schedule is not None
        return min(self._first[0] + index, len(self._schedule.known) - 1)

    def _follows(self, time: float, total: int, rounding: float) -> bool:
        """Whether an evaluation at this time can be the next one of this call.

        After an interrupt or an error another pipeline may go on with the same denoiser, and even
        with the same scheduler. It starts at another place of the schedule, or sets the schedule anew.
        """
        scheduler = self.adapter.pipe.scheduler
        if self._schedule is None:
            known = [float(each) for each in torch.as_tensor(scheduler.timesteps).tolist()]
            self._schedule = _Schedule(scheduler, scheduler.timesteps, known)
            behind = known.index(time) if time in known else max(len(known) - total, 0)
            # Transformers are told the time in units of their own, each a multiple of the scheduler's.
            self._first = (behind, time / known[behind] if known[behind] else 1.0)
            return True
        was_reset = scheduler is self._schedule.scheduler and scheduler.timesteps is not self._schedule.timesteps
        was_stopped = bool(getattr(self.adapter.pipe, "_interrupt", False))
        if was_reset or was_stopped:
            return False
        known = self._schedule.known
        if not self.adapter.port.several_calls:
            return (self._last_time, time) in pairwise(known)
        expected = known[self._place(self.evaluations)] * self._first[1]
        return abs(time - expected) <= rounding * max(abs(expected), abs(self._first[1]))

    def _only_layout(self, rows: int, first: Inputs | None) -> BatchLayout:
        """The rows of a denoiser that is called once in a step; callbacks may switch guidance off for the rest."""
        batch = self.batch
        if first is None and rows != len(batch) and rows == batch.images:
            batch = batch.only("cond")
        batch.check_rows(rows)
        if first is not None and self.known is not None:
            states = self.adapter.port.texts(first)[0]
            mine = self.known.cond[0].to(device=states.device, dtype=states.dtype)
            theirs = states[self.cond]
            if mine.shape != theirs.shape or not torch.equal(mine, theirs):
                raise _foreign_text()
        return batch


def _rounding(time: Any) -> float:
    """By how much a time may differ from that of the scheduler (share of it)."""
    dtype = torch.as_tensor(time).dtype
    return max(_ROUNDINGS * torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 0.0, _LEAST_ROUNDING)


def _foreign_text() -> ForeignCall:
    return ForeignCall(
        "The denoiser was called with text embeddings that this pipeline's encode_prompt did not return.", _REMEDY
    )


def _requested(scheduler: Any, total: int) -> int | None:
    """The steps that a call asked for, less those that it leaves out (image to image begins in the middle)."""
    asked = getattr(scheduler, "num_inference_steps", None)
    return None if asked is None else max(int(asked) - (len(scheduler.timesteps) - total), 1)

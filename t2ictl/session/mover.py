"""What moves the latents of one pipeline call, and how the scheduler gets them.

Before an evaluation the latents that the denoiser will see are moved; at the scheduler step that follows, the same move
replaces the latents that the pipeline holds.

Legend: ``B`` batch row, ``C`` channels, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from t2ictl.controls.base import Plan
from t2ictl.families import Adapter
from t2ictl.families.schedulers import input_scale, keeps_precision
from t2ictl.guidance.noise_search import optimize_noise
from t2ictl.guidance.objectives import Objective
from t2ictl.guidance.optimize import Move, MoveTrace, optimize, push
from t2ictl.ports.base import Inputs
from t2ictl.session.extra_passes import Evaluation, ExtraPasses
from t2ictl.settings.windows import Step

__all__ = ["LatentMover"]


@dataclass(kw_only=True)
class LatentMover:
    """Moves the latents of one pipeline call by the plans of its controls.

    Args:
        adapter: the pipeline's family.
        plans: what the controls do.
        passes: extra passes through the denoiser.
        report: gets the trace of each move, before anything else happens.
    """

    adapter: Adapter
    plans: Sequence[Plan]
    passes: ExtraPasses
    report: Callable[[Sequence[MoveTrace], Step], None]
    _owed: dict[int, float] = field(default_factory=dict)
    _moved: list[Tensor] = field(default_factory=list)
    _pending: Tensor | None = None
    _now_at: Tensor | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a move waits for the scheduler step that takes it up."""
        return self._pending is not None

    @property
    def still(self) -> tuple[int, ...]:
        """Images that updates were meant to move, and did not, since the gradient was next to zero each time."""
        if not self._moved:
            return ()
        moved = torch.stack(self._moved).any(dim=0).tolist()
        return tuple(image for image, has_moved in enumerate(moved) if not has_moved)

    def forget(self) -> None:
        """Drop a move that no scheduler step took up."""
        self._pending = None

    def take_up(self, sample: Tensor) -> Tensor:
        """Move the latents that the scheduler is about to step from.

        Args:
            sample: the latents that the pipeline holds, unscaled.

        Returns:
            The same, moved if a move is waiting.
        """
        pending, self._pending, self._now_at = self._pending, None, None
        if pending is None:
            return sample
        moved = sample.to(pending.dtype) + pending.to(sample.device)
        return moved if keeps_precision(self.adapter.pipe.scheduler, sample.dtype) else moved.to(sample.dtype)

    def acting(self, step: Step, *, is_discarded: bool) -> list[Objective]:
        """List the objectives that move latents now.

        A refinement that falls on an evaluation whose sample the scheduler discards is made at
        the next one: most two-stage schedulers would otherwise never refine.

        Args:
            step: the evaluation.
            is_discarded: whether the scheduler throws its sample away.
        """
        objectives = [objective for plan in self.plans for objective in plan.objectives]
        acting = [(place, each) for place, each in enumerate(objectives) if each.acts(step)]
        if is_discarded:
            late = {place: each.target(step) for place, each in acting if not each.keep_discarded}
            self._owed |= {place: target for place, target in late.items() if target is not None}
            return [each for _, each in acting if each.keep_discarded]
        owed, self._owed = self._owed, {}
        return [
            _refined_to(each, owed[place], step) if place in owed and each.target(step) is None else each
            for place, each in acting
        ]

    def move(self, acting: Sequence[Objective], now: Evaluation) -> Inputs:
        """Move the latents of all images and keep the move for the scheduler step.

        Args:
            acting: the objectives that move latents now.
            now: the evaluation.

        Returns:
            The denoiser's arguments, all rows.
        """
        step, port = now.step, self.adapter.port
        self._now_at = None
        if not acting and all(plan.perturb is None and plan.fixed_latents is None for plan in self.plans):
            return now.inputs
        x_BCYX = port.latents(now.inputs)[now.cond]
        scale = input_scale(self.adapter.pipe.scheduler, now.timestep)
        moves = self._optimized(acting, x_BCYX, now, scale)
        perturbed = self._perturbed(moves[-1] if moves else None, x_BCYX, step, scale)
        self.report([entry for move in perturbed for entry in move.trace], step)
        moves += perturbed
        moves += self._fixed(moves[-1].latents if moves else x_BCYX, step)
        if not moves:
            return now.inputs
        # The scheduler steps from its own, unscaled sample: dz = dx / c.
        delta_BCYX = reduce(torch.add, [move.delta for move in moves])
        self._pending = port.pipeline_form(delta_BCYX / scale)
        self._now_at = moves[-1].latents
        return self.moved(now.inputs)

    def moved(self, inputs: Inputs) -> Inputs:
        """Put the moved latents of this evaluation into the arguments of one of its calls.

        Args:
            inputs: the pipeline's own; every role of the batch has the rows of all images.

        Returns:
            The arguments to use; the very same where nothing moved.
        """
        if self._now_at is None:
            return inputs
        port = self.adapter.port
        copies = len(inputs[port.sample_name]) // len(self._now_at)
        return port.with_latents(inputs, self._now_at.repeat(copies, 1, 1, 1))

    def _optimized(self, acting: Sequence[Objective], x_BCYX: Tensor, now: Evaluation, scale: float) -> list[Move]:
        """The moves down the gradients: first a search for noise, then the update of this step."""
        moves: list[Move] = []
        searching = [each for each in acting if each.search is not None]
        moving = [each for each in acting if each.search is None]
        for objectives, find in ((searching, optimize_noise), (moving, optimize)):
            if objectives:
                maps = self.passes.maps([layers for each in objectives for layers in each.groups], now)
                before_BCYX = moves[-1].latents if moves else x_BCYX
                found = find(before_BCYX, objectives, maps, now.step, input_scale=scale)
                self.report(found.trace, now.step)
                moves.append(found)
                if find is optimize:  # a move may be so short that rounding takes it
                    self._moved.append((found.latents != before_BCYX).flatten(1).any(1))
                    self._moved += [entry.skipped for entry in found.trace]
        return moves

    def _perturbed(self, before: Move | None, x_BCYX: Tensor, step: Step, scale: float) -> list[Move]:
        """The moves that read no maps, after what the objectives made of the latents."""
        done = len(before.trace) if before else 0
        made: list[Move] = []
        for plan in self.plans:
            now_BCYX = made[-1].latents if made else before.latents if before else x_BCYX
            vectors = plan.perturb(now_BCYX, step) if plan.perturb is not None else ()
            if vectors:
                made.append(push(now_BCYX, vectors, step, first=done, input_scale=scale))
                done += len(vectors)
        return made

    def _fixed(self, x_BCYX: Tensor, step: Step) -> list[Move]:
        """Images that are held somewhere, whatever the others do; no move that anybody would count."""
        made: list[Move] = []
        for plan in self.plans:
            if plan.fixed_latents is not None:
                before_BCYX = made[-1].latents if made else x_BCYX
                held_BCYX = plan.fixed_latents(before_BCYX, step)
                exact = torch.promote_types(x_BCYX.dtype, torch.float32)
                made.append(Move(latents=held_BCYX, delta=held_BCYX.to(exact) - before_BCYX.to(exact), trace=()))
        return made


def _refined_to(objective: Objective, presence: float, step: Step) -> Objective:
    """The same objective, with a refinement at this step."""
    assert objective.refinement is not None
    total = objective.window.total(step)
    now = replace(objective.refinement, by="fraction", thresholds=((step.index / total, presence),))
    return replace(objective, refinement=now)

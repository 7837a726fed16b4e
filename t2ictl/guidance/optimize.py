"""The inner loop: move the latents of one denoising step down the gradient of the objectives.

Every row is on its own: it refines until it is good enough or out of tries, moves once
more as every row does, and then leaves the batch while others go on. ``K`` refinements
cost ``K + 1`` passes, since the pass that finds a row good enough also gives its last step.

Legend: ``B`` batch row (images; conditional rows only), ``R`` rows that are not good enough yet, ``C`` channels,
``Y`` ``X`` rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from t2ictl.guidance.gradients import needs_gradient
from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.settings.windows import Step

__all__ = [
    "Maps",
    "Move",
    "MoveTrace",
    "RowSubset",
    "can_move",
    "named_terms",
    "optimize",
    "push",
    "read_losses",
    "weighted_total",
]


class Maps(Protocol):
    """From latents ``x_BCYX`` to maps of some rows (None: all), one for each group of layers of each objective."""

    def __call__(self, x_BCYX: Tensor, rows: Sequence[int] | None = None) -> Sequence[Tensor]:
        """Run the denoiser, and give the maps."""


# Half-precision gradients of losses near 1 reach below 6e-8, where float16 has no numbers.
FP16_LOSS_SCALE = 2.0**8


@dataclass(frozen=True, kw_only=True)
class MoveTrace:
    """What one pass of the inner loop found and did.

    Args:
        step: the denoiser evaluation it belongs to.
        iteration: 0 for the first pass at this step.
        terms: loss terms before the move, ``"control.term"`` to ``loss_B``, weighted within their control.
        total: their weighted sum, ``loss_B``.
        length: length of each row's move in scaled space, ``length_B``; 0 for a row that is done.
        refined: ``bool_B``, rows for which this move was an extra one.
        skipped: ``bool_B``, rows that did not move because loss, gradient or moved latent was not finite.
        moved: what moved; the length of text rows is in their own space.
        forwards: passes that this took, for each row; None: one.
        backwards: gradients that it took, for each row; None: one.
    """

    step: Step
    iteration: int
    terms: dict[str, Tensor]
    total: Tensor
    length: Tensor
    refined: Tensor
    skipped: Tensor
    moved: Literal["latents", "tokens"] = "latents"
    forwards: Tensor | None = None
    backwards: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Move:
    """The outcome of the inner loop, or of pushes, at one step.

    Args:
        latents: ``x_BCYX``, the moved latents in scaled space.
        delta: ``dx_BCYX`` in float32 or better, moved minus original.
        trace: one entry a pass, or a push.
    """

    latents: Tensor
    delta: Tensor
    trace: tuple[MoveTrace, ...]


def optimize(
    x_BCYX: Tensor, objectives: Sequence[Objective], maps: Maps, step: Step, *, input_scale: float = 1.0
) -> Move:
    """Move the latents of one step.

    Args:
        x_BCYX: latents as the denoiser sees them, one row an image.
        objectives: those that act at this step, all with one step rule.
        maps: runs the denoiser on latents and gives each objective's maps of some rows.
        step: which evaluation this is.
        input_scale: factor ``c`` from the scheduler's sample to the latents.

    Returns:
        The moved latents and the trace. Nothing that was passed in is changed.
    """
    exact = torch.promote_types(x_BCYX.dtype, torch.float32)
    start_BCYX = x_BCYX.detach()
    now_BCYX = start_BCYX.to(exact)
    done_B = torch.zeros(len(x_BCYX), dtype=torch.bool, device=x_BCYX.device)
    look = RowSubset(maps)
    before: list[Losses] | None = None
    trace: list[MoveTrace] = []
    while True:
        losses, gradient_BCYX = _gradient(now_BCYX.to(x_BCYX.dtype), objectives, look, step)
        again_B = _wants_more(objectives, losses, before or losses, step, tries=len(trace)) & ~done_B
        total_B = weighted_total(objectives, losses)
        delta_BCYX = _step(objectives, now_BCYX, gradient_BCYX.to(exact), step)
        # A gradient that is not finite makes a move that is not.
        finite_B = torch.isfinite(total_B) & can_move(now_BCYX, delta_BCYX, x_BCYX.dtype, input_scale)
        moves_B = finite_B & ~done_B
        delta_BCYX = torch.where(moves_B[:, None, None, None], delta_BCYX, torch.zeros_like(delta_BCYX))
        now_BCYX = now_BCYX + delta_BCYX
        trace.append(
            MoveTrace(
                step=step,
                iteration=len(trace),
                terms=named_terms(objectives, losses),
                total=total_B,
                length=delta_BCYX.flatten(1).norm(dim=1),
                refined=again_B & finite_B,
                skipped=~finite_B & ~done_B,
            )
        )
        done_B = done_B | ~again_B | ~finite_B
        before = losses
        if _is_over(objectives, step, len(trace)) or (_looks(objectives, len(trace)) and not look.keep(~done_B)):
            return Move(latents=now_BCYX.to(x_BCYX.dtype), delta=now_BCYX - start_BCYX.to(exact), trace=tuple(trace))


def can_move(x_BCYX: Tensor, delta_BCYX: Tensor, dtype: torch.dtype, input_scale: float) -> Tensor:
    """Return which rows stay finite numbers when they move: as the denoiser sees them, and as the scheduler does.

    float16 ends at 65504. A move that float32 holds may lie beyond it, and the scheduler's sample is up to 15 times as
    large as the latent that the denoiser sees.

    Args:
        x_BCYX: latents in float32 or better.
        delta_BCYX: their move.
        dtype: in which the pipeline computes.
        input_scale: factor ``c`` from the scheduler's sample to the latents.

    Returns:
        ``bool_B``.

    Example:
        >>> x = torch.zeros(2, 1, 1, 1)
        >>> can_move(x, torch.tensor([1.0, 7e4])[:, None, None, None], torch.float16, 1.0)
        tensor([ True, False])
    """
    after_BCYX = x_BCYX + delta_BCYX
    both = torch.isfinite(after_BCYX.to(dtype)) & torch.isfinite((after_BCYX / input_scale).to(dtype))
    return both.flatten(1).all(1) & torch.isfinite(delta_BCYX.flatten(1).norm(dim=1))


class RowSubset:
    """Reads the maps of the rows that still move; of the others it keeps those of their last pass.

    Args:
        maps: runs the denoiser.
    """

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._rows: list[int] | None = None
        self._held: list[Tensor] = []

    def __call__(self, x_BCYX: Tensor) -> list[Tensor]:
        """Return ``maps_BYXT`` of each objective."""
        if self._rows is None:
            found = list(self._maps(x_BCYX))
        else:
            seen = self._maps(x_BCYX, self._rows)
            rows_R = torch.tensor(self._rows, device=x_BCYX.device)
            found = [old.index_copy(0, rows_R, new) for old, new in zip(self._held, seen, strict=True)]
        self._held = [each.detach() for each in found]
        return found

    def keep(self, left_B: Tensor) -> bool:
        """Go on with some rows. This asks the device, and waits for its answer: the one place that does.

        Args:
            left_B: which rows are not done.

        Returns:
            Whether there are any.
        """
        rows = [row for row, is_left in enumerate(left_B.tolist()) if is_left]
        self._rows = None if len(rows) == len(left_B) else rows
        return bool(rows)


def _is_over(objectives: Sequence[Objective], step: Step, passes: int) -> bool:
    """Whether no row can go on, which is known without asking the device."""
    tries = [o.refinement.max_iterations for o in objectives if o.refinement is not None and o.target(step) is not None]
    return passes > max(tries, default=0)


def _looks(objectives: Sequence[Objective], passes: int) -> bool:
    """Whether it is time to ask which rows are done: far cheaper than the passes that the answer may save."""
    return passes % min((o.refinement.check_every for o in objectives if o.refinement is not None), default=1) == 0


def push(x_BCYX: Tensor, moves: Sequence[Tensor], step: Step, first: int = 0, *, input_scale: float = 1.0) -> Move:
    """Move the latents of one step by given vectors, as the inner loop moves them by those it finds.

    Args:
        x_BCYX: latents as the denoiser sees them, one row an image.
        moves: ``dx_BCYX``, to be made one after the other.
        step: which evaluation this is.
        first: number of the first entry of the trace.
        input_scale: factor ``c`` from the scheduler's sample to the latents.

    Returns:
        The moved latents and the trace, without losses: nothing was measured.
    """
    exact = torch.promote_types(x_BCYX.dtype, torch.float32)
    start_BCYX = x_BCYX.detach().to(exact)
    now_BCYX, trace = start_BCYX, []
    nothing_B = torch.zeros(len(x_BCYX), dtype=exact, device=x_BCYX.device)
    for number, move_BCYX in enumerate(moves):
        move_BCYX = move_BCYX.to(device=x_BCYX.device, dtype=exact)
        can_B = can_move(now_BCYX, move_BCYX, x_BCYX.dtype, input_scale)
        move_BCYX = torch.where(can_B[:, None, None, None], move_BCYX, torch.zeros_like(move_BCYX))
        now_BCYX = now_BCYX + move_BCYX
        trace.append(
            MoveTrace(
                step=step,
                iteration=first + number,
                terms={},
                total=nothing_B,
                length=move_BCYX.flatten(1).norm(dim=1),
                refined=torch.full_like(nothing_B, number > 0, dtype=torch.bool),
                skipped=~can_B,
            )
        )
    return Move(latents=now_BCYX.to(x_BCYX.dtype), delta=now_BCYX - start_BCYX, trace=tuple(trace))


def _gradient(
    x_BCYX: Tensor, objectives: Sequence[Objective], look: RowSubset, step: Step
) -> tuple[list[Losses], Tensor]:
    """One pass: the losses of each objective and the gradient of their weighted sum."""
    scale = FP16_LOSS_SCALE if x_BCYX.dtype == torch.float16 else 1.0
    with torch.enable_grad(), needs_gradient():
        leaf_BCYX = x_BCYX.detach().requires_grad_(True)
        found = read_losses(objectives, look(leaf_BCYX), step)
        # A sum over rows has each row's own gradient in its own row.
        (gradient_BCYX,) = torch.autograd.grad((weighted_total(objectives, found) * scale).sum(), [leaf_BCYX])
    detached = [
        Losses(
            terms={name: value.detach() for name, value in each.terms.items()},
            presence=None if each.presence is None else each.presence.detach(),
        )
        for each in found
    ]
    exact = torch.promote_types(gradient_BCYX.dtype, torch.float32)
    return detached, gradient_BCYX.detach().to(exact) / scale


def read_losses(objectives: Sequence[Objective], maps: Sequence[Tensor], step: Step) -> list[Losses]:
    """The losses of each objective, from the maps of all groups of layers in order."""
    found, first = [], 0
    for objective in objectives:
        last = first + len(objective.groups)
        found.append(objective.read(maps[first:last], step))
        first = last
    return found


def named_terms(objectives: Sequence[Objective], losses: Sequence[Losses]) -> dict[str, Tensor]:
    """All terms by name; the second control of the same name is ``"name#2"``."""
    terms: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for objective, found in zip(objectives, losses, strict=True):
        count[objective.name] = number = count.get(objective.name, 0) + 1
        owner = objective.name if number == 1 else f"{objective.name}#{number}"
        terms.update({f"{owner}.{name}": value for name, value in found.terms.items()})
    return terms


def weighted_total(objectives: Sequence[Objective], losses: Sequence[Losses]) -> Tensor:
    """Return ``loss_B``, the sum of all objectives by their strengths."""
    return torch.stack([o.strength * each.total for o, each in zip(objectives, losses, strict=True)]).sum(dim=0)


def _step(objectives: Sequence[Objective], x_BCYX: Tensor, gradient_BCYX: Tensor, step: Step) -> Tensor:
    """The shared rule; in normalized mode the strongest control sets the length."""
    strength = max(o.strength for o in objectives)
    return objectives[0].step_size.move(x_BCYX, gradient_BCYX, step.index, step.total, strength)


def _wants_more(
    objectives: Sequence[Objective], losses: Sequence[Losses], before: Sequence[Losses], step: Step, tries: int
) -> Tensor:
    """Rows in which some objective is still short of its target and has tries left."""
    more_B = torch.zeros_like(weighted_total(objectives, losses), dtype=torch.bool)
    for objective, now, earlier in zip(objectives, losses, before, strict=True):
        target, refinement = objective.target(step), objective.refinement
        if target is None or refinement is None or tries >= refinement.max_iterations or now.presence is None:
            continue
        judged = earlier if refinement.decide_before_update else now
        assert judged.presence is not None
        more_B = more_B | (judged.presence < target)
    return more_B

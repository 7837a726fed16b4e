"""The inner loop for text rows: move them down the gradient of an objective, until each image is good enough.

The loss is compared before a row moves: an image that is good enough does not move at all.

Legend: ``B`` image, ``K`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ictl.guidance.gradients import needs_gradient
from t2ictl.guidance.optimize import FP16_LOSS_SCALE, MoveTrace
from t2ictl.guidance.text_objectives import EmbedLosses, EmbedObjective, TextPasses
from t2ictl.settings.windows import Step

__all__ = ["EmbedMove", "perturb_embeds", "update_embeds"]


@dataclass(frozen=True, kw_only=True)
class EmbedMove:
    """What became of the text rows in one evaluation.

    Args:
        rows: ``embeds_BTC`` in float32 or better.
        trace: one entry a look, or a push.
        backwards: gradients taken (rows of the batch).
    """

    rows: Tensor
    trace: tuple[MoveTrace, ...]
    backwards: int = 0


def update_embeds(
    embeds_BTC: Tensor, objective: EmbedObjective, passes: TextPasses, step: Step, dtype: torch.dtype
) -> EmbedMove:
    """Move text rows for one objective at one evaluation.

    Args:
        embeds_BTC: the text rows, float32 or better.
        objective: what is to become smaller.
        passes: runs the denoiser.
        step: the evaluation.
        dtype: in which the denoiser computes.

    Returns:
        The moved rows; nothing that was passed in is changed.
    """
    scale = FP16_LOSS_SCALE if dtype == torch.float16 else 1.0
    now_BKC = embeds_BTC.detach()
    most_B = objective.max_updates_B.to(now_BKC.device)
    done_B = most_B <= 0
    trace: list[MoveTrace] = []
    backwards = 0
    while len(trace) < int(most_B.max()) and not (trace and bool(done_B.all()) and objective.decide_before_update):
        with torch.enable_grad(), needs_gradient():
            leaf_BKC = now_BKC.detach().requires_grad_(True)
            losses = objective.evaluate(passes, leaf_BKC, step)
            total_B = losses.total
            looked_B, done_B = ~done_B, done_B | losses.done
            moving_B = looked_B if objective.decide_before_update else ~done_B
            if not bool(moving_B.any()):
                still_B = torch.zeros_like(total_B)
                trace.append(_entry(objective, losses, step, len(trace), looked_B, still_B, torch.zeros_like(done_B)))
                break
            (gradient_BKC,) = torch.autograd.grad((total_B * scale).sum(), [leaf_BKC])
            backwards += losses.rows
        move_BKC = objective.step_size.move(now_BKC, gradient_BKC / scale, objective.movable, step, objective.strength)
        # In the precision of the denoiser: half precision ends at 65504.
        finite_B = torch.isfinite(total_B.detach()) & torch.isfinite((now_BKC + move_BKC).to(dtype)).flatten(1).all(1)
        moves_B = finite_B & moving_B
        move_BKC = torch.where(moves_B[:, None, None], move_BKC, torch.zeros_like(move_BKC))
        now_BKC = now_BKC + move_BKC
        length_B, skipped_B = move_BKC.flatten(1).norm(dim=1), ~finite_B & moving_B
        trace.append(_entry(objective, losses, step, len(trace), looked_B, length_B, skipped_B))
        done_B = done_B | ~finite_B | (most_B <= len(trace))
    return EmbedMove(rows=now_BKC, trace=tuple(trace), backwards=backwards)


def perturb_embeds(
    embeds_BTC: Tensor, moves: Sequence[Tensor], step: Step, dtype: torch.dtype = torch.float32
) -> EmbedMove:
    """Move text rows by given vectors.

    Args:
        embeds_BTC: the text rows.
        moves: ``drows_BKC``, to be made one after the other.
        step: the evaluation.

    Returns:
        The moved rows and a trace without losses: nothing was measured.
    """
    trace = []
    for number, move_BKC in enumerate(moves):
        move_BKC = move_BKC.to(embeds_BTC)
        can_B = torch.isfinite((embeds_BTC + move_BKC).to(dtype)).flatten(1).all(1)
        move_BKC = torch.where(can_B[:, None, None], move_BKC, torch.zeros_like(move_BKC))
        embeds_BTC = embeds_BTC + move_BKC
        length_B = move_BKC.flatten(1).norm(dim=1)
        trace.append(
            MoveTrace(
                step=step,
                iteration=number,
                terms={},
                total=torch.zeros_like(length_B),
                length=length_B,
                refined=torch.zeros_like(can_B),
                skipped=~can_B,
                moved="tokens",
                forwards=torch.zeros_like(length_B),
                backwards=torch.zeros_like(length_B),
            )
        )
    return EmbedMove(rows=embeds_BTC, trace=tuple(trace))


def _entry(
    objective: EmbedObjective,
    losses: EmbedLosses,
    step: Step,
    iteration: int,
    looked_B: Tensor,
    length_B: Tensor,
    skipped_B: Tensor,
) -> MoveTrace:
    """One line of the trace: an image that was done before has no part in the cost of this look."""
    return MoveTrace(
        step=step,
        iteration=iteration,
        terms={f"{objective.name}.{name}": value.detach() for name, value in losses.terms.items()},
        total=losses.total.detach(),
        length=length_B,
        refined=torch.zeros_like(skipped_B),
        skipped=skipped_B,
        moved="tokens",
        forwards=torch.where(looked_B, losses.forwards, 0.0),
        backwards=torch.where(length_B > 0, losses.backwards, 0.0),
    )

"""The inner loop for text rows: move them down the gradient of an objective, until each picture is good enough.

The loss is looked at before a row moves: a picture that is good enough does not move at all.

Legend: ``B`` picture, ``K`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ictl.guidance.optimize import FP16_LOSS_SCALE, MoveTrace
from t2ictl.guidance.text_objectives import TextPasses, TokenLosses, TokenObjective
from t2ictl.settings.windows import Step

__all__ = ["TokenMove", "push_tokens", "update_tokens"]


@dataclass(frozen=True, kw_only=True)
class TokenMove:
    """What became of the text rows in one evaluation.

    Args:
        rows: ``rows_BKC`` in float32 or better.
        trace: one entry a look, or a push.
        backwards: gradients taken (rows of the batch).
    """

    rows: Tensor
    trace: tuple[MoveTrace, ...]
    backwards: int = 0


def update_tokens(
    rows_BKC: Tensor, objective: TokenObjective, passes: TextPasses, step: Step, dtype: torch.dtype
) -> TokenMove:
    """Move text rows for one objective at one evaluation.

    Args:
        rows_BKC: the text rows, float32 or better.
        objective: what is to become smaller.
        passes: runs the denoiser.
        step: the evaluation.
        dtype: in which the denoiser computes.

    Returns:
        The moved rows; nothing that was passed in is changed.
    """
    scale = FP16_LOSS_SCALE if dtype == torch.float16 else 1.0
    now_BKC = rows_BKC.detach()
    done_B = torch.zeros(len(now_BKC), dtype=torch.bool, device=now_BKC.device)
    trace: list[MoveTrace] = []
    backwards = 0
    while len(trace) < objective.most:
        with torch.enable_grad():
            leaf_BKC = now_BKC.detach().requires_grad_(True)
            losses = objective.evaluate(passes, leaf_BKC, step)
            total_B = losses.total
            looked_B, done_B = ~done_B, done_B | losses.done
            if bool(done_B.all()):
                still_B = torch.zeros_like(total_B)
                trace.append(_entry(objective, losses, step, len(trace), looked_B, still_B, torch.zeros_like(done_B)))
                break
            (gradient_BKC,) = torch.autograd.grad((total_B * scale).sum(), leaf_BKC)
            backwards += losses.rows
        move_BKC = objective.rule.move(now_BKC, gradient_BKC / scale, objective.rows, step, objective.strength)
        finite_B = torch.isfinite(total_B.detach()) & torch.isfinite(move_BKC).flatten(1).all(dim=1)
        moves_B = finite_B & ~done_B
        move_BKC = torch.where(moves_B[:, None, None], move_BKC, torch.zeros_like(move_BKC))
        now_BKC = now_BKC + move_BKC
        length_B, skipped_B = move_BKC.flatten(1).norm(dim=1), ~finite_B & ~done_B
        trace.append(_entry(objective, losses, step, len(trace), looked_B, length_B, skipped_B))
        done_B = done_B | ~finite_B
    return TokenMove(rows=now_BKC, trace=tuple(trace), backwards=backwards)


def push_tokens(rows_BKC: Tensor, moves: Sequence[Tensor], step: Step) -> TokenMove:
    """Move text rows by given vectors.

    Args:
        rows_BKC: the text rows.
        moves: ``drows_BKC``, to be made one after the other.
        step: the evaluation.

    Returns:
        The moved rows and a trace without losses: nothing was measured.
    """
    trace = []
    for number, move_BKC in enumerate(moves):
        move_BKC = move_BKC.to(rows_BKC)
        rows_BKC = rows_BKC + move_BKC
        length_B = move_BKC.flatten(1).norm(dim=1)
        no_B = torch.zeros_like(length_B, dtype=torch.bool)
        trace.append(
            MoveTrace(
                step=step,
                iteration=number,
                terms={},
                total=torch.zeros_like(length_B),
                length=length_B,
                refined=no_B,
                skipped=no_B,
                moved="tokens",
                forwards=torch.zeros_like(length_B),
                backwards=torch.zeros_like(length_B),
            )
        )
    return TokenMove(rows=rows_BKC, trace=tuple(trace))


def _entry(
    objective: TokenObjective,
    losses: TokenLosses,
    step: Step,
    iteration: int,
    looked_B: Tensor,
    length_B: Tensor,
    skipped_B: Tensor,
) -> MoveTrace:
    """One line of the trace: a picture that was done before has no part in the cost of this look."""
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

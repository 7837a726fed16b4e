"""Better noise to begin with: mean and variance of the initial latent are optimized before the first step.

``x = mean + exp(log_variance / 2) noise`` with the user's own noise, so a seed stays a seed. Mean and variance move by
Adam until the objectives are satisfied, and are kept near those of a standard normal distribution, of which alone the
model knows what to make.

Legend: ``B`` image, ``C`` channels, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t2ictl.guidance.gradients import check_differentiable, needs_gradient
from t2ictl.guidance.objectives import Objective
from t2ictl.guidance.optimize import (
    Maps,
    Move,
    MoveTrace,
    RowSubset,
    can_move,
    named_terms,
    read_losses,
    weighted_total,
)
from t2ictl.guidance.rules import kl_divergence
from t2ictl.settings.windows import Step

__all__ = ["optimize_noise"]


def optimize_noise(
    x_BCYX: Tensor, objectives: Sequence[Objective], maps: Maps, step: Step, *, input_scale: float = 1.0
) -> Move:
    """Move the initial latents by their means and variances.

    Args:
        x_BCYX: latents as the denoiser sees them at the first evaluation, one row an image.
        objectives: those with a search; the first one's settings hold.
        maps: runs the denoiser on latents and gives the maps of some rows.
        step: the first evaluation.
        input_scale: factor ``c`` from the scheduler's sample to the latents.

    Returns:
        The moved latents and the trace. An image that is good enough stays as it is while others go on.
    """
    search = objectives[0].search
    assert search is not None
    exact = torch.promote_types(x_BCYX.dtype, torch.float32)
    noise_BCYX = x_BCYX.detach().to(exact)
    moved = [torch.zeros_like(noise_BCYX, requires_grad=True) for _ in range(2)]  # mean, logarithm of variance
    # Adam divides the size of a gradient out, and with it the strength: it scales the step instead.
    adam = torch.optim.Adam(moved, lr=search.lr * max(each.strength for each in objectives), eps=search.eps)
    look, trace = RowSubset(maps), list[MoveTrace]()
    now_BCYX, done_B = noise_BCYX, torch.zeros(len(x_BCYX), dtype=torch.bool, device=x_BCYX.device)
    for tries in range(search.max_steps):
        with torch.enable_grad(), needs_gradient():
            new_BCYX = moved[0] + (moved[1] / 2).exp() * noise_BCYX
            losses = read_losses(objectives, look(new_BCYX.to(x_BCYX.dtype)), step)
            total_B = weighted_total(objectives, losses)
            check_differentiable(total_B)  # the distance from normal noise has a gradient whatever the losses have
            far_B = (kl_divergence(*moved) - search.kl_threshold).clamp(min=0)
            found = torch.autograd.grad((total_B + search.kl_weight * far_B).sum(), moved)
        finite_B = torch.isfinite(total_B) & torch.stack([g.flatten(1).isfinite().all(1) for g in found]).all(0)
        presence = [each.presence for each in losses if each.presence is not None]
        was_done_B, done_B = done_B, done_B | ~finite_B
        if presence:
            done_B = done_B | (torch.stack(presence).amin(0) >= search.target)
        _step(adam, moved, found, done_B)
        with torch.no_grad():
            after_BCYX = moved[0] + (moved[1] / 2).exp() * noise_BCYX
            can_B = can_move(now_BCYX, after_BCYX - now_BCYX, x_BCYX.dtype, input_scale)
            after_BCYX = torch.where(can_B[:, None, None, None], after_BCYX, now_BCYX)
            finite_B, done_B = finite_B & can_B, done_B | ~can_B
        length_B = (after_BCYX - now_BCYX).flatten(1).norm(dim=1)
        now_BCYX = after_BCYX
        terms = {name: value.detach() for name, value in named_terms(objectives, losses).items()}
        trace.append(
            MoveTrace(
                step=step, iteration=tries, terms=terms, total=total_B.detach(), length=length_B,
                refined=~done_B & (tries + 1 < search.max_steps), skipped=~finite_B & ~was_done_B,
            )
        )  # fmt: skip
        if not look.keep(~done_B):
            break
    return Move(latents=now_BCYX.to(x_BCYX.dtype), delta=now_BCYX - noise_BCYX, trace=tuple(trace))


def _step(adam: torch.optim.Adam, moved: list[Tensor], gradients: Sequence[Tensor], done_B: Tensor) -> None:
    """One step of Adam for the images that go on; every number has a pace of its own, so rows do not mix."""
    before = [each.detach().clone() for each in moved]
    for each, gradient in zip(moved, gradients, strict=True):
        each.grad = torch.where(done_B[:, None, None, None], torch.zeros_like(gradient), gradient)
    adam.step()
    with torch.no_grad():
        for each, old in zip(moved, before, strict=True):
            each.copy_(torch.where(done_B[:, None, None, None], old, each))

"""An optimizer for matrices: momentum whose update has all singular values near one.

Directions in which gradients are small but steady, such as the shape of an object next to
its color and texture, move as fast as the dominant ones. It was taken after a short trial on
this model; no command here repeats that comparison with Adam.

Reference: Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, "Muon: An optimizer for hidden
layers in neural networks", 2024; the scale of the update is that of Liu et al., "Muon is
scalable for LLM training", 2025, arXiv 2502.16982, eq. 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from t2ictl.benchmarks.shapes.train.team import ALONE, Team

#: Coefficients of the quintic iteration, from the reference: fast rise of small singular values.
QUINTIC = (3.4445, -4.7750, 2.0315)
#: Root mean square of an update of AdamW, which the scale imitates so that both share a rate.
ADAM_UPDATE = 0.2


@torch.no_grad()
def orthogonalize(matrix: torch.Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Replace the singular values of a matrix by values near one.

    ``X <- a X + (b A + c A A) X`` with ``A = X X'``, from ``X`` of norm one.

    Args:
        matrix: two or more dimensions; all but the first are flattened.
        steps: iterations.
        dtype: that of the iterations. In bfloat16 they run on ``X``; otherwise on ``A`` alone, which is smaller and
            of which every factor is a polynomial, at a third of the cost for a long matrix.

    Returns:
        A tensor of the same shape, float32.

    Example:
        >>> values = torch.linalg.svdvals(orthogonalize(torch.diag(torch.tensor([3.0, 1.0, 0.1]))))
        >>> bool(values.min() > 0.5), bool(values.max() < 1.3)
        (True, True)
    """
    flat = matrix.reshape(matrix.shape[0], -1)
    is_tall = flat.shape[0] > flat.shape[1]
    x = (flat.T if is_tall else flat).to(dtype)
    x = x / (x.norm() + 1e-7)
    if dtype != torch.bfloat16:
        x = _product_of_factors(x @ x.T, steps) @ x
    else:
        a, b, c = QUINTIC
        for _ in range(steps):
            square = x @ x.T
            x = a * x + (b * square + c * square @ square) @ x
    x = x.float()
    return (x.T if is_tall else x).reshape(matrix.shape)


def _product_of_factors(square: torch.Tensor, steps: int) -> torch.Tensor:
    """Multiply the factors ``P = a + b A + c A A`` of all iterations, with ``A <- P A P`` after each."""
    a, b, c = QUINTIC
    product = torch.eye(len(square), dtype=square.dtype)
    for step in range(steps):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product if step else factor
        square = factor @ square @ factor if step + 1 < steps else square
    return product


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates and decoupled weight decay, for matrices and convolutions.

    Args:
        params: tensors of at least two dimensions.
        lr: learning rate, on the scale of AdamW.
        momentum: part of the old momentum that is kept; Nesterov's form is used.
        weight_decay: per update, times the rate.
        team: members take turns with the matrices, which is where the time goes.
        dtype: that of the iterations; single precision is faster on a CPU without units for bfloat16.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = Muon([weight], lr=0.1)
        >>> (weight * torch.tensor([[1.0, 0.0], [0.0, 0.01]])).sum().backward(); _ = optimizer.step()
        >>> bool(weight[1, 1] < 0.99)
        True
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        team: Team = ALONE,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.team, self.dtype = team, dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Make one update; a closure is not supported and must be None."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            # Largest first, so that every member has about as much to do.
            weights.sort(key=torch.Tensor.numel, reverse=True)
            updates = []
            for turn, weight in enumerate(weights):
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                is_mine = turn % self.team.size == self.team.rank
                nesterov = weight.grad.lerp(momentum, group["momentum"])
                updates.append(orthogonalize(nesterov, dtype=self.dtype) if is_mine else torch.zeros_like(weight))
            self.team.sum_up(updates)
            for weight, update in zip(weights, updates, strict=True):
                longer = max(len(update), update.numel() // len(update))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * ADAM_UPDATE * longer**0.5)

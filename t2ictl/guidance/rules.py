"""How far latents move, how often, and from which noise they start."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Step

__all__ = ["NoiseSearch", "Refinement", "StepSize", "kl_divergence"]


MOST_UPDATES = 1000
"""Published methods make at most 50 at one step. A larger number in a file would keep a machine for days."""
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


@settings_class
class StepSize:
    """How far a latent moves along the gradient of an objective.

    ``raw`` is the published rule, ``dx = -a_i g`` with ``a_i = size sqrt(linspace(1, decay, n))[i]``
    (Attend-and-Excite, arXiv 2301.13826; their 20 and 0.5). ``normalized`` gives every step the
    same length relative to the latent, ``dx = -a_i |x| g / |g|``, and so needs no new size for
    another model. Both act in the scaled space that the denoiser sees.

    Args:
        scale: ``a_0``; in ``normalized`` mode a fraction of the latent's norm.
        final_scale_sq: square of the share of ``a_0`` that is left at the last step.
        mode: ``"raw"`` or ``"normalized"``.
        max_norm: longest step, as a fraction of the latent's norm; None for no limit.
        every: move at every so many evaluations only, from the first one of the window on. Updates are what a control
            costs: 2 halves it.

    Example:
        >>> StepSize().length(0, 50), round(StepSize().length(49, 50), 3)
        (20.0, 14.142)
    """

    scale: float = setting(default=20.0, help="step length at the first step", low=0.0)
    final_scale_sq: float = setting(
        default=0.5, help="square of the share of the first step that the last one has", low=0.0, high=1.0
    )
    mode: Literal["raw", "normalized"] = setting(
        default="raw", help="raw gradient, or a fixed share of the latent's norm"
    )
    max_norm: float | None = setting(default=None, help="longest step (fraction of the latent's norm)", low=0.0)
    every: int = setting(default=1, help="move at every so many steps only; 2 halves the cost", low=1)

    def length(self, index: int, total: int) -> float:
        """Return ``a_i`` for evaluation ``index`` of ``total``."""
        progress = index / (total - 1) if total > 1 else 0.0
        return float(self.scale * (1.0 - (1.0 - self.final_scale_sq) * progress) ** 0.5)

    def move(self, x_BCYX: Tensor, gradient_BCYX: Tensor, index: int, total: int, strength: float = 1.0) -> Tensor:
        """Return the step for each row.

        Args:
            x_BCYX: the scaled latents.
            gradient_BCYX: gradient of the weighted objective with respect to them.
            index: evaluation, from 0.
            total: number of evaluations.
            strength: factor on the length in ``normalized`` mode, where the gradient's own
                length, which carries the strength in ``raw`` mode, is divided out.

        Returns:
            ``dx_BCYX``, to be added to the latents; zero where the gradient is zero.
        """
        length = self.length(index, total)
        norm_B = _norm(x_BCYX)
        if self.mode == "normalized":
            # Direction first: |x| / |g| of a vanishing gradient is infinite, and infinity times 0 is not a number.
            slope_B = _norm(gradient_BCYX).clamp_min(torch.finfo(norm_B.dtype).tiny)
            gradient_BCYX = gradient_BCYX / slope_B[:, None, None, None] * (strength * norm_B)[:, None, None, None]
        step_BCYX = -length * gradient_BCYX
        if self.max_norm is not None:
            shrink_B = (self.max_norm * norm_B / _norm(step_BCYX).clamp_min(torch.finfo(norm_B.dtype).tiny)).clamp_max(
                1
            )
            step_BCYX = step_BCYX * shrink_B[:, None, None, None]
        return step_BCYX


def _norm(x_BCYX: Tensor) -> Tensor:
    return x_BCYX.flatten(1).norm(dim=1)


@settings_class
class Refinement:
    """Iterative refinement: at some steps, move again and again until every concept is strong enough.

    Args:
        thresholds: pairs (fraction of the schedule, or noise level; least presence in [0, 1]). The defaults are
            steps 0, 10, 20 of 50 with .05, .5, .8 (Attend-and-Excite, arXiv 2301.13826). Of two
            that fall on one step of a short schedule the higher one counts.
        max_iterations: largest number of extra updates at one step.
        decide_before_update: decide on the loss *before* the last update, as the published code does, which
            makes one update more than needed. For parity only.
        check_every: ask the device which images are good enough after every so many updates; it has to wait for the
            answer. Those that are leave the batch then. A larger number waits less often and may pass images in vain.
        by: whether moments are a ``"fraction"`` of the schedule, or levels of ``"noise"``: a threshold falls on the
            first evaluation with no more noise than that.

    Example:
        >>> Refinement().target(10, 50), Refinement().target(11, 50)
        (0.5, None)
    """

    thresholds: tuple[tuple[_Share, _Share], ...] = setting(
        default=((0.0, 0.05), (0.2, 0.5), (0.4, 0.8)), help="(fraction of the schedule, least presence) pairs"
    )
    max_iterations: int = setting(default=20, help="most extra updates at one step", low=0, high=MOST_UPDATES)
    decide_before_update: bool = setting(
        default=False, help="parity with published code: decide on the loss before the last update"
    )
    check_every: int = setting(
        default=1, help="ask after every so many updates which images are good enough", low=1, high=MOST_UPDATES
    )

    by: Literal["fraction", "noise"] = setting(
        default="fraction", help="what moments are: fractions of the schedule, or noise levels"
    )

    def target_at(self, step: Step, total: int) -> float | None:
        """Return the presence demanded at an evaluation, or None if it is not refined.

        Args:
            step: the evaluation.
            total: what fractions of the schedule are of.
        """
        if self.by == "fraction":
            return self.target(step.index, total)
        if step.noise is None:
            return None  # its window has refused a scheduler that does not tell
        before = 2.0 if step.noise_before is None else step.noise_before
        return max((presence for level, presence in self.thresholds if step.noise <= level < before), default=None)

    def target(self, index: int, total: int) -> float | None:
        """Return the presence demanded at evaluation ``index`` of ``total``, or None if it is not refined."""
        # The tolerance keeps 0.2 x 50 at step 10 whatever the rounding of 0.2.
        here = (presence for fraction, presence in self.thresholds if int(fraction * total + 1e-9) == index)
        return max(here, default=None)


@settings_class
class NoiseSearch:
    """How mean and variance of the initial latent are searched.

    Args:
        max_steps: most updates.
        lr: step length of Adam at strength 1.
        target: presence at which an image is good enough.
        kl_threshold: how far from the standard normal distribution is free (nats a number).
        kl_weight: of what is farther.
        eps: of Adam, added to the root of the mean square of a gradient: the larger, the shorter the steps of small
            gradients.

    Example:
        >>> NoiseSearch().max_steps
        50

    Reference:
        Guo et al., "InitNO", CVPR 2024, arXiv 2404.04650: Adam with 0.01, five rounds of ten, a kl_divergence below
        0.001.
    """

    max_steps: int = setting(default=50, help="most updates", low=1, high=MOST_UPDATES)
    lr: float = setting(default=0.01, help="step length of Adam", low=0.0)
    target: float = setting(default=0.8, help="presence at which an image is good enough", low=0.0, high=1.0)
    kl_threshold: float = setting(default=1e-3, help="how far from normal noise is free (nats a number)", low=0.0)
    kl_weight: float = setting(default=500.0, help="of what is farther", low=0.0)
    eps: float = setting(default=1e-8, help="of Adam: the larger, the shorter steps of small gradients", low=0.0)


def kl_divergence(mean_BCYX: Tensor, log_variance_BCYX: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler kl_divergence of the numbers of a latent from the standard normal distribution.

    ``mean of (v + m^2 - 1 - log v) / 2``.

    Args:
        mean_BCYX: means.
        log_variance_BCYX: logarithms of variances.

    Returns:
        ``divergence_B`` (nats), not negative.

    Example:
        >>> kl_divergence(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        tensor([0.5000])
    """
    each = (log_variance_BCYX.exp() + mean_BCYX.square() - 1 - log_variance_BCYX) / 2
    return each.flatten(1).mean(1)

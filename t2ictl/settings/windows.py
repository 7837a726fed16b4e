"""When: a half-open fraction of the schedule, turned into steps in this one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t2ictl.errors import BadSetting, UnsupportedPipeline
from t2ictl.settings.fields import setting, settings_class

__all__ = ["Step", "Window"]


@settings_class
class Window:
    """A part of the schedule: the evaluations ``i`` with ``start <= i / n < stop``.

    The rule is half open so that ``Window(0, .5)`` and ``Window(.5, 1)`` share no step and
    leave none out. ``n`` is the number of evaluations, or that of the steps that were asked for, by which published
    code counts: PNDM makes 51 evaluations for 50 steps, and half of them are 26, not 25.

    ``by="noise"`` counts in noise: the evaluations whose noise level ``s`` has ``start >= s > stop``, where the latent
    is ``(1 - s)`` parts image and ``s`` parts noise. It means the same for every schedule; schedules of flow models
    spend half of their steps above the level that Stable Diffusion leaves after a fifth.

    Args:
        start: first moment inside, a fraction of the schedule in [0, 1]; by noise, the highest level inside.
        stop: first moment outside, a fraction of the schedule in [0, 1]; by noise, the highest level outside.
        by: ``"evaluations"`` of the denoiser; ``"steps"``: ``num_inference_steps`` of the call; or ``"noise"``.

    Raises:
        BadSetting: if ``start`` lies after ``stop``, or by noise below it.

    Example:
        >>> Window(start=0.0, stop=0.5).steps(5)
        (0, 1, 2)
        >>> Window(start=1.0, stop=0.6, by="noise").holds(Step(index=3, total=28, timestep=968.0, noise=0.968))
        True
    """

    start: float = setting(default=0.0, help="first moment inside (fraction, or noise level)", low=0.0, high=1.0)
    stop: float = setting(default=1.0, help="first moment outside (fraction, or noise level)", low=0.0, high=1.0)
    by: Literal["evaluations", "steps", "noise"] = setting(
        default="evaluations", help="what they count: evaluations made, steps asked for, or the noise that is left"
    )

    def __post_init__(self) -> None:
        if self.by == "noise" and self.start < self.stop:
            raise BadSetting(
                f"Window.start {self.start} is less noise than Window.stop {self.stop}.",
                "Noise falls in the course of a call: give the higher level first.",
            )
        if self.by != "noise" and self.start > self.stop:
            raise BadSetting(
                f"Window.start {self.start} lies after Window.stop {self.stop}.", "Give them in order, as fractions."
            )

    @classmethod
    def from_steps(cls, first: int, last: int, total: int) -> Window:
        """Make the window that holds the steps ``first <= i < last`` of ``total``.

        Papers count steps; a window counts fractions. ``k / total`` is compared with itself,
        so no rounding moves the border.

        Args:
            first: first step inside.
            last: first step outside.
            total: number of denoiser evaluations of the schedule.

        Returns:
            The window.

        Example:
            >>> Window.from_steps(0, 25, 51).steps(51) == tuple(range(25))
            True
        """
        return cls(start=first / total, stop=last / total)

    def contains(self, index: int, total: int) -> bool:
        """Return whether step ``index`` of ``total`` lies inside.

        Args:
            index: step, counted from 0.
            total: number of steps of the schedule.

        Returns:
            True if ``start <= index / total < stop``.

        Example:
            >>> Window(start=0.0, stop=0.5).contains(5, 10)
            False
        """
        return self.start <= index / total < self.stop

    def holds(self, step: Step) -> bool:
        """Return whether an evaluation lies inside.

        Args:
            step: the evaluation.

        Example:
            >>> step = Step(index=25, total=51, timestep=500.0, requested=50)
            >>> Window(stop=0.5).holds(step), Window(stop=0.5, by="steps").holds(step)
            (True, False)
        """
        if self.by != "noise":
            return self.contains(step.index, self.total(step))
        if step.noise is None:
            raise UnsupportedPipeline(
                "The scheduler does not tell how much noise there is, and a window counts in noise.",
                "Use Window(by='evaluations'), or one of the ordinary schedulers.",
            )
        return self.stop < step.noise <= self.start

    def total(self, step: Step) -> int:
        """Return what the fractions of this window are of, in the call of an evaluation."""
        return step.requested or step.total if self.by == "steps" else step.total

    def steps(self, total: int) -> tuple[int, ...]:
        """List the steps inside.

        Args:
            total: number of steps of the schedule.

        Returns:
            The step indices, ascending.

        Example:
            >>> Window().steps(2)
            (0, 1)
        """
        return tuple(index for index in range(total) if self.contains(index, total))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One evaluation of the denoiser.

    Args:
        index: which evaluation of this call, from 0.
        total: how many evaluations this call makes.
        timestep: the scheduler's timestep.
        requested: how many steps the call asked for (``num_inference_steps``), of which some schedulers make more
            evaluations; None where nobody knows.
        noise: noise level ``s`` of the latent, ``(1 - s)`` parts image and ``s`` parts noise; None where nobody knows.
        noise_before: that of the evaluation before; None at the first one.
    """

    index: int
    total: int
    timestep: float
    requested: int | None = None
    noise: float | None = None
    noise_before: float | None = None

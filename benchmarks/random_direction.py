"""Moves of the same length as a control's, in a random direction.

The latents move before the same denoiser evaluations, as often and as far, and reach the scheduler in
the same way; only the direction knows nothing of the objective. In a space of hundreds of dimensions it is
as good as orthogonal to the gradient.

Legend: ``B`` picture, ``C`` channels, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from t2ictl import Control, Plan, PlanContext

__all__ = ["RandomDirection"]


class RandomDirection(Control):
    """Repeat the lengths of recorded moves in random directions.

    Not registered: it lives by another run's record.

    Args:
        trace: ``session.trace`` of the controlled run of the same batch.
        seeds: seed of the direction of each picture.
    """

    name = "random_direction"
    paper = ""
    families = ("sd", "sdxl")
    needs_words = False

    def __init__(self, trace: Sequence[Any], seeds: Sequence[int]) -> None:
        self._seeds = tuple(seeds)
        self._lengths: dict[int, list[Tensor]] = {}
        for entry in trace:
            self._lengths.setdefault(entry.step.index, []).append(entry.length)

    def plan(self, context: PlanContext) -> Plan:
        """Make the moves of one call; every call draws the same directions."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in self._seeds]

        def push(x_BCYX: Tensor, step: Any) -> list[Tensor]:
            return [
                torch.stack([_vector(x_BCYX[row], float(length_B[row]), each) for row, each in enumerate(generators)])
                for length_B in self._lengths.get(step.index, ())
            ]

        return Plan(push=push)


def _vector(x_CYX: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """A vector of the shape of one picture's latents; a picture that did not move draws nothing."""
    if length == 0:
        return torch.zeros(x_CYX.shape, dtype=torch.float64)
    vector_CYX = torch.randn(x_CYX.shape, generator=generator, dtype=torch.float64)
    return vector_CYX * (length / vector_CYX.norm())

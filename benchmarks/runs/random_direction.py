"""Moves of the same length as a control's, in a random direction.

Latents, or the text rows that the control may move, move before the same denoiser evaluations, as often and as
far, and reach the denoiser in the same way; only the direction knows nothing of the objective. In a space of
hundreds of dimensions it is as good as orthogonal to the gradient. What a control does to text rows without a
loss (merging them, say) is done here too.

Legend: ``B`` image, ``C`` channels, ``Y`` ``X`` rows and columns, ``K`` position of the text row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from t2ictl import Control, Plan, PlanContext
from t2ictl.controls.presets import with_preset

__all__ = ["RandomDirection"]


class RandomDirection(Control):
    """Repeat the lengths of recorded moves in random directions.

    Not registered: it lives by another run's record.

    Args:
        trace: ``session.trace`` of the controlled run of the same batch.
        seeds: seed of the direction of each image.
        base: the controls of that run.
    """

    name = "random_direction"
    paper = ""
    needs_words = False
    moves_words = True

    def __init__(self, trace: Sequence[Any], seeds: Sequence[int], base: Sequence[Control] = ()) -> None:
        self._seeds, self._base = tuple(seeds), tuple(base)
        self._lengths: dict[tuple[str, int], list[Tensor]] = {}
        for entry in trace:
            self._lengths.setdefault((entry.moved, entry.step.index), []).append(entry.length)

    def plan(self, context: PlanContext) -> Plan:
        """Make the moves of one call; every call draws the same directions."""
        for_latents, for_rows = ([torch.Generator("cpu").manual_seed(seed) for seed in self._seeds] for _ in range(2))
        plans: list[Plan] = []
        base = with_preset(self._base, context.adapter)
        for each in sorted(base, key=lambda control: not control.moves_words):
            plans.append(each.plan(context))
            if plans[-1].text is not None:  # as in a session, the others see where words have moved
                context = replace(context, prompts=plans[-1].text.prompts)
        text = next((plan.text for plan in plans if plan.text is not None), None)
        pin = next((plan.fixed_latents for plan in plans if plan.fixed_latents is not None), None)
        # What the base does without moving anything stays: the two arms differ by the direction alone.
        edits = tuple(edit for plan in plans for edit in plan.edits)
        map_hooks = tuple(watch for plan in plans for watch in plan.map_hooks)

        def push(x_BCYX: Tensor, step: Any) -> list[Tensor]:
            found = self._lengths.get(("latents", step.index), ())
            return [torch.stack(_vectors(torch.ones_like(x_BCYX), length_B, for_latents)) for length_B in found]

        if text is None:
            return Plan(perturb=push, fixed_latents=pin, edits=edits, map_hooks=map_hooks)
        mask_BK = torch.stack([each.movable for each in text.objectives]).any(dim=0) if text.objectives else None

        def push_rows(embeds_BTC: Tensor, step: Any) -> list[Tensor]:
            if mask_BK is None:
                return []
            free_BKC = mask_BK[..., None].expand(embeds_BTC.shape).to(embeds_BTC)
            found = self._lengths.get(("tokens", step.index), ())
            return [torch.stack(_vectors(free_BKC, length_B, for_rows)) for length_B in found]

        moved = replace(text, objectives=(), perturb=push_rows)
        return Plan(perturb=push, fixed_latents=pin, edits=edits, map_hooks=map_hooks, text=moved)


def _vectors(free: Tensor, length_B: Tensor, generators: Sequence[torch.Generator]) -> list[Tensor]:
    return [_vector(free[row], float(length_B[row]), each) for row, each in enumerate(generators)]


def _vector(free: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """A vector of this length where ``free`` is 1; an image that did not move, or endlessly far, draws nothing."""
    if length == 0 or not math.isfinite(length):
        return torch.zeros(free.shape, dtype=torch.float64)
    vector = torch.randn(free.shape, generator=generator, dtype=torch.float64) * free.cpu()
    return vector * (length / vector.norm())

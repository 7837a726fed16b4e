"""Making one batch of images, and what is known of each: moves, own losses, and the passes it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from t2ictl import Control, controlled, own_arguments

__all__ = ["Sample", "Sampler"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A batch of images.

    Args:
        images: the images.
        seeds: seed of the noise from which each started.
        trace: losses and moves of the session.
        losses: for each measured control its loss on each image, at the last evaluation in which it acts.
        cost: the session's.
    """

    images: list[Image.Image]
    seeds: tuple[int, ...]
    trace: tuple[Any, ...]
    losses: dict[int, list[float]]
    cost: Any

    @property
    def passes(self) -> int:
        """Denoiser forward passes of the pipeline for one image, in both branches of the guidance."""
        return int(self.cost.forwards) // len(self.images)

    def moves(self, row: int) -> list[tuple[int, float, str]]:
        """List the moves of one image.

        Args:
            row: which image.

        Returns:
            Triples (evaluation, length, what moved) in the order in which they were made; latents in scaled space, text
            rows in their own. A length that no number holds is infinite or not a number. Passes in which the image
            waited for others of its batch are none.
        """
        moves = [(entry.step.index, float(entry.length[row]), entry.moved) for entry in self.trace]
        return [each for each in moves if each[1] != 0]

    def extra_forwards(self, row: int) -> int:
        """Count the forward passes that moving one image took.

        Args:
            row: which image.

        Returns:
            The number; a perturbation, which reads nothing, takes none.
        """
        return sum(1 if each.forwards is None else int(each.forwards[row]) for each in self._looks(row))

    def backwards(self, row: int) -> int:
        """Count the passes back that moving one image took.

        Args:
            row: which image.

        Returns:
            The number.
        """
        return sum(1 if each.backwards is None else int(each.backwards[row]) for each in self._looks(row))

    def _looks(self, row: int) -> list[Any]:
        """Entries of the trace that are an image's own, and not only of others in its batch."""
        found, goes_on = [], False
        for entry in self.trace:
            if entry.moved == "tokens":
                found += [entry] if entry.terms else []
                continue
            # A pass is the image's own if it is the first at its evaluation, or the one before it asked for more.
            goes_on = bool(entry.terms) and (entry.iteration == 0 or goes_on)
            found += [entry] if goes_on else []
            goes_on = goes_on and bool(entry.refined[row])
        return found

    def loss(self, controls: Sequence[Control], row: int) -> float | None:
        """Return the loss that some controls, which were measured, find in one image.

        Args:
            controls: the controls of an arm.
            row: which image.

        Returns:
            Their sum; None if none of them acted, or a loss is not finite.
        """
        found = [self.losses[id(control)][row] for control in controls if id(control) in self.losses]
        return sum(found) if found and all(map(math.isfinite, found)) else None


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Makes batches of images on one pipeline.

    Args:
        pipe: a diffusers pipeline.
        steps: denoising steps.
        guidance: strength of classifier-free guidance.
    """

    pipe: Any
    steps: int
    guidance: float

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Further arguments of each call, which the model wants otherwise than its pipeline."""
        return own_arguments(self.pipe)

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], controls: Sequence[Control], measure: Sequence[Control]
    ) -> Sample:
        """Make one batch.

        Args:
            prompts: one prompt an image.
            seeds: seed of the noise of each, drawn by a generator of its own on the CPU.
            controls: what acts.
            measure: whose losses are measured on the way; the images do not change by it.

        Returns:
            The images and what is known of them.
        """
        with controlled(self.pipe, controls, measure=measure) as session:
            images = self.pipe(
                list(prompts),
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                **self.arguments,
            ).images
        # The last entry of each control is the one of the last evaluation in which it acts.
        losses = {id(entry.control): [float(value) for value in entry.loss] for entry in session.measured}
        return Sample(
            images=list(images),
            seeds=tuple(seeds),
            trace=session.trace,
            losses=losses,
            cost=session.cost,
        )

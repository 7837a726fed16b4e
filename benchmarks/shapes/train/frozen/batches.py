"""What an update sees: a function of the seed and of the number of the update alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from t2ictl.benchmarks.shapes.train.captions import training_caption
from t2ictl.benchmarks.shapes.train.frozen.encoders import Encoders
from t2ictl.benchmarks.shapes.train.frozen.settings import FrozenRecipe
from t2ictl.benchmarks.shapes.train.loop import stream, torch_stream
from t2ictl.benchmarks.shapes.train.scenes import DrawnScenes
from t2ictl.benchmarks.shapes.train.team import Team
from t2ictl.shapes.world import Scene


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one update sees.

    Args:
        indices: which scenes, shape ``(B,)``.
        latents: clean and scaled, shape ``(B, 4, y, x)``.
        noise: of the same shape.
        points: uniform and stratified in 0 to 1, from which times are made, shape ``(B,)``.
        is_long: whether the text is read as one of many rows, shape ``(B,)``.
        captions: ``B`` texts.
    """

    indices: torch.Tensor
    latents: torch.Tensor
    noise: torch.Tensor
    points: torch.Tensor
    is_long: torch.Tensor
    captions: tuple[str, ...]

    def part(self, team: Team) -> Batch:
        """Return the rows of one member of a team."""
        rows = team.part(torch.arange(len(self.captions)))
        tensors = {name: getattr(self, name)[rows] for name in ("indices", "latents", "noise", "points", "is_long")}
        return Batch(captions=tuple(self.captions[row] for row in rows.tolist()), **tensors)


def draw_captions(
    scenes: Sequence[Scene],
    generator: np.random.Generator,
    encoders: Encoders,
    *,
    ghost_share: float,
    swap_share: float,
) -> list[str]:
    """Describe scenes by captions that every encoder reads whole.

    Args:
        scenes: one to three objects each.
        generator: the only source of randomness.
        encoders: their tokenizers say what fits.
        ghost_share: see :func:`training_caption`.
        swap_share: see :func:`training_caption`.

    Returns:
        One caption a scene.
    """

    def draw(scene: Scene) -> str:
        return training_caption(scene, generator, ghost_share=ghost_share, swap_share=swap_share)

    captions = [draw(scene) for scene in scenes]
    while long := encoders.too_long(captions):
        for index in long:
            captions[index] = draw(scenes[index])
    return captions


def spread_points(count: int, generator: np.random.Generator) -> torch.Tensor:
    """Draw one point from each of equal parts of 0 to 1, which lowers the variance of the gradient for nothing.

    Args:
        count: parts.
        generator: the only source of randomness.

    Returns:
        Rising float64 points.

    Example:
        >>> (spread_points(4, np.random.default_rng(0)) * 4).floor().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    return (torch.arange(count) + torch.from_numpy(generator.random(count))) / count


def make_batch(recipe: FrozenRecipe, step: int, drawn: DrawnScenes, encoders: Encoders) -> Batch:
    """Draw the batch of one update.

    Args:
        recipe: shares and sizes.
        step: from 0.
        drawn: all scenes.
        encoders: say which captions fit.

    Returns:
        The batch.
    """
    generator = stream(recipe.seed, "frozen", step)
    indices = generator.integers(len(drawn), size=recipe.batch)
    shares = {"ghost_share": recipe.ghost_share, "swap_share": recipe.swap_share}
    captions = draw_captions([drawn.scenes[index] for index in indices], generator, encoders, **shares)
    is_empty = generator.random(recipe.batch) < recipe.empty_share
    is_long = torch.from_numpy(generator.random(recipe.batch) < recipe.long_share)
    points = spread_points(recipe.batch, generator)
    rows = torch.from_numpy(indices)
    latents = drawn.latents[rows].float()
    return Batch(
        indices=rows,
        latents=latents,
        noise=torch.randn(latents.shape, generator=torch_stream(generator)),
        points=points,
        is_long=is_long,
        captions=tuple("" if empty else caption for caption, empty in zip(captions, is_empty, strict=True)),
    )

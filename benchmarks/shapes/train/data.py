"""The training images: scene ``i`` is a function of the recipe's seed and ``i``."""

from __future__ import annotations

import numpy as np
import torch

from t2ictl.benchmarks.shapes.train.loop import stream
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.shapes.draw import render_array
from t2ictl.shapes.sampling import sample_scene
from t2ictl.shapes.world import Scene, Split


def training_scene(recipe: Recipe, index: int) -> Scene:
    """Draw one scene of the training split.

    Args:
        recipe: seed and shares.
        index: from 0.

    Returns:
        One to three objects; pairs and triples only in combinations of the training split.

    Example:
        >>> training_scene(Recipe(), 3) == training_scene(Recipe(), 3)
        True
    """
    return mixed_scene(recipe, stream(recipe.seed, "scene", index), "train")


def mixed_scene(recipe: Recipe, generator: np.random.Generator, split: Split) -> Scene:
    """Draw one scene in the mixture of kinds that models learn from.

    Args:
        recipe: shares of the kinds.
        generator: the only source of randomness.
        split: of pairs and triples; single objects are all seen in training.

    Returns:
        One to three objects.

    Example:
        >>> len(mixed_scene(Recipe(single_share=1), np.random.default_rng(0), "tune").objects)
        1
    """
    point = generator.random()
    if point < recipe.single_share:
        return sample_scene(1, generator, marked_share=recipe.marked_share)
    if point < recipe.single_share + recipe.pair_share:
        return sample_scene(2, generator, split=split, marked_share=recipe.marked_share)
    # Three objects with marks make captions longer than the text encoder reads.
    return sample_scene(3, generator, split=split, marked_share=0)


def crowded_scene(generator: np.random.Generator) -> Scene:
    """Draw a scene for the autoencoder, which sees no captions and so may see every combination.

    Mostly three objects, and marks in two fifths: a crowded canvas holds more of what is hard per pixel.

    Args:
        generator: the only source of randomness.

    Returns:
        One to three objects.

    Example:
        >>> len(crowded_scene(np.random.default_rng(0)).objects) in (1, 2, 3)
        True
    """
    return sample_scene(int(generator.choice((1, 2, 3), p=(0.15, 0.25, 0.6))), generator, marked_share=0.4)


def to_pixels(scenes: list[Scene]) -> torch.Tensor:
    """Render scenes as the autoencoder wants them.

    Args:
        scenes: ``B`` scenes of one size.

    Returns:
        Float32 of shape ``(B, 3, Y, X)`` in -1 to 1.

    Example:
        >>> to_pixels([Scene(objects=())]).shape
        torch.Size([1, 3, 64, 64])
    """
    images = np.stack([render_array(scene) for scene in scenes])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1

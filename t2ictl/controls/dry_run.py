"""Losses tried on made-up maps: an image whose losses have no gradient there is moved by none of them.

Legend: ``B`` image, ``T`` prompt token, ``P`` place, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.guidance.objectives import Objective
from t2ictl.settings.windows import Step

__all__ = ["constant_images"]

# Losses of this library are about shapes, not about sizes: larger maps would say nothing more.
LARGEST_SIDE = 16
# Attention of a word above that of others, at a place of its own: little, as in real maps that then compete in a
# sharpened softmax, and much, as in maps that are read as they are.
PEAKS = (0.1, 0.7)


def constant_images(
    control: Control,
    plan: Plan,
    context: PlanContext,
    steps: Sequence[Step],
    latent_size: tuple[int, int],
    tokens: int,
) -> dict[int, tuple[int, ...]]:
    """Find the images in which losses are constant, whatever the maps are.

    The losses of a second plan are tried, since what they keep from step to step belongs to the call; and at the first
    two evaluations at which they act, since some compare a step with the one before.

    Args:
        control: the control.
        plan: its plan for this call.
        context: the pipeline call.
        steps: all evaluations to come.
        latent_size: height and width of the latent (cells).
        tokens: length of a text row.

    Returns:
        For each objective that may be tried, by its number, the images.
    """
    if control.moves_words or not any(each.dry_run for each in plan.objectives):
        return {}
    found: dict[int, set[int]] = {}
    for kind in range(1 + len(PEAKS)):
        for number, objective in enumerate(control.plan(context).objectives):
            if objective.dry_run:
                constant = _constant(objective, kind, context, steps, latent_size, tokens)
                found[number] = found.get(number, constant) & constant
        if not any(found.values()):
            break  # one gradient is enough
    return {number: tuple(sorted(images)) for number, images in found.items()}


def _constant(
    objective: Objective,
    kind: int,
    context: PlanContext,
    steps: Sequence[Step],
    latent_size: tuple[int, int],
    tokens: int,
) -> set[int]:
    images = context.batch.images
    constant = set(range(images))
    encodings = [encoding for prompt in context.prompts for encoding in prompt.encodings]
    words = max((each.offset + each.end for each in encodings if each.offset is not None), default=tokens)
    try:
        size = _size(objective.layers, latent_size)
        made = _made_up(kind, images, size, tokens, min(words, tokens))
        for step in [step for step in steps if objective.acts(step)][:2]:
            with torch.enable_grad():
                groups = [
                    _of_places(images, size) if layers and layers == objective.self_layers else next(made)
                    for layers in objective.groups
                ]
                maps = [each.to(context.adapter.device).requires_grad_(True) for each in groups]
                total_B = objective.read(maps, step).total
                constant &= _without_gradient(total_B, maps)
            if not constant:
                break
            if objective.on_maps is not None:
                objective.on_maps(maps[0].detach(), step)
    except Exception:  # what cannot be tried counts as acting: the call itself shows what is wrong
        return set()
    return constant


def _without_gradient(total_B: Tensor, maps: Sequence[Tensor]) -> set[int]:
    if not total_B.requires_grad:
        return set(range(len(total_B)))
    gradients = torch.autograd.grad(total_B.sum(), list(maps), allow_unused=True)
    moving = [each.flatten(1).ne(0).any(dim=1) for each in gradients if each is not None]
    still_B = ~torch.stack(moving).any(dim=0) if moving else torch.ones(len(total_B), dtype=torch.bool)
    return set(torch.nonzero(still_B).flatten().tolist())


def _size(layers: Sequence[Layer], latent_size: tuple[int, int]) -> tuple[int, int]:
    """The size of the mean map of some layers, or less."""
    height, width = min(layers, key=lambda layer: layer.stride).size(latent_size)
    return min(height, LARGEST_SIDE), min(width, LARGEST_SIDE)


def _made_up(kind: int, images: int, size: tuple[int, int], tokens: int, words: int) -> Iterator[Tensor]:
    """Maps ``maps_BYXT`` of all tokens, one after the other: noise, or noise in which each word has a place."""
    noise = torch.Generator().manual_seed(kind)
    height, width = size
    while True:
        maps_BYXT = torch.randn(images, height, width, tokens, generator=noise).softmax(-1)
        if kind:
            peak = PEAKS[kind - 1]
            block = next((side for side in range(8, 1, -1) if (height // side) * (width // side) >= words), 1)
            rows_Y, columns_X = torch.arange(height) // block, torch.arange(width) // block
            owner_YX = (rows_Y[:, None] * (width // block) + columns_X) % words
            own_YXT = torch.nn.functional.one_hot(owner_YX, tokens)
            maps_BYXT = (1 - peak) * maps_BYXT + peak * own_YXT
        yield maps_BYXT


def _of_places(images: int, size: tuple[int, int]) -> Tensor:
    """Self-attention ``maps_BYXP`` of noise."""
    places = size[0] * size[1]
    noise = torch.Generator().manual_seed(0)
    return torch.randn(images, *size, places, generator=noise).softmax(-1)

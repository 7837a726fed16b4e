"""The U-Net of ``shapes`` on a frozen CLIP: start, times, and what it learns by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from t2ictl.benchmarks.shapes.train.denoiser import spread_times
from t2ictl.benchmarks.shapes.train.frozen.batches import Batch
from t2ictl.benchmarks.shapes.train.frozen.encoders import Encoders, Text
from t2ictl.benchmarks.shapes.train.frozen.settings import FrozenRecipe
from t2ictl.benchmarks.shapes.train.learner import Measured
from t2ictl.benchmarks.shapes.train.models import build_scheduler, build_unet
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.start import carry_over


def build_denoiser(recipe: FrozenRecipe, encoders: Encoders) -> UNet2DConditionModel:
    """Make the U-Net, with the weights to start from where the recipe names a folder.

    Args:
        recipe: widths, heads, seed and start.
        encoders: one CLIP, whose width its cross-attention takes.

    Returns:
        The stock class.

    Raises:
        BadSetting: the model to start from has other sizes.
    """
    width = encoders.models[0].config.hidden_size
    sizes: dict[str, Any] = {"unet_channels": recipe.unet_channels, "unet_heads": recipe.unet_heads}
    model = build_unet(Recipe(seed=recipe.seed, text_width=width, **sizes))
    if recipe.start:
        folder = str(Path(recipe.start) / "unet")
        carry_over(model, UNet2DConditionModel.from_pretrained(folder, low_cpu_mem_usage=False))
    return model


class NoiseTask:
    """How the U-Net learns: the velocity of its schedule.

    Args:
        recipe: sizes and shares.
        encoders: one CLIP.
        is_compiled: whether the U-Net is compiled.
    """

    def __init__(self, recipe: FrozenRecipe, encoders: Encoders, is_compiled: bool = False) -> None:
        self.recipe, self.scheduler = recipe, build_scheduler()
        self.model = build_denoiser(recipe, encoders)
        self.model.set_attn_processor(AttnProcessor())
        self.models: dict[str, nn.Module] = {"unet": self.model}
        self._predict = torch.compile(self.model, dynamic=False) if is_compiled else self.model

    def errors(
        self, model: Callable[..., Any], latents: torch.Tensor, noise: torch.Tensor, times_B: torch.Tensor, text: Text
    ) -> torch.Tensor:
        """Measure the squared error of the predicted velocity.

        Args:
            model: a U-Net.
            latents: clean, shape ``(B, 4, y, x)``.
            noise: of the same shape.
            times_B: steps of the schedule, 0 to 999.
            text: of the captions.

        Returns:
            Mean over the elements of each image, shape ``(B,)``.
        """
        noisy = self.scheduler.add_noise(latents, noise, times_B)
        target = self.scheduler.get_velocity(latents, noise, times_B)
        velocity = model(noisy, times_B, encoder_hidden_states=text.rows_BTW, return_dict=False)[0]
        return (velocity - target).square().mean(dim=(1, 2, 3))

    def uniform_times(self, points: torch.Tensor) -> torch.Tensor:
        """Map uniform points to steps of the schedule without preference."""
        return (1000 * points).long().clamp(max=999)

    def loss(self, batch: Batch, text: Text) -> tuple[torch.Tensor, Measured]:
        """Measure what an update makes smaller.

        Args:
            batch: scenes, noise and times.
            text: of its captions.

        Returns:
            A scalar, and the same by name.
        """
        times = spread_times(batch.points, self.recipe.fine_share).long()
        loss = self.errors(self._predict, batch.latents, batch.noise, times, text).mean()
        return loss, {"loss": float(loss.detach())}

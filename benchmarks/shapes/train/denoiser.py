"""The second stage: the denoiser and its text encoder, trained together on latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from t2ictl.benchmarks.shapes.train.captions import training_caption
from t2ictl.benchmarks.shapes.train.data import training_scene
from t2ictl.benchmarks.shapes.train.learner import Learner, Measured, Records, advance, learn
from t2ictl.benchmarks.shapes.train.loop import Deadline, stream, torch_stream
from t2ictl.benchmarks.shapes.train.models import build_scheduler, build_text_encoder, build_unet
from t2ictl.benchmarks.shapes.train.muon import Muon
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.start import start_denoiser
from t2ictl.benchmarks.shapes.train.team import ALONE, Team

#: Training step below which noise hides only detail.
FINE_TIME = 300


class Trainee(Learner):
    """A text encoder and a denoiser that learn together; ``models`` has them as ``text`` and ``unet``."""

    models: dict[str, Any]

    @property
    def text(self) -> CLIPTextModel:
        """The text encoder."""
        return self.models["text"]

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser."""
        return self.models["unet"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one update sees.

    Args:
        latents: clean and scaled, shape ``(B, 4, y, x)``.
        noise: of the same shape.
        times: training steps of the schedule, shape ``(B,)``.
        tokens: shape ``(B, T)``.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    times: torch.Tensor
    tokens: torch.Tensor

    def part(self, team: Team) -> Batch:
        """Return the rows of one member of a team."""
        rows = (self.latents, self.noise, self.times, self.tokens)
        latents, noise, times, tokens = (team.part(each) for each in rows)
        return Batch(latents=latents, noise=noise, times=times, tokens=tokens)


def is_hidden_matrix(name: str, weight: torch.Tensor) -> bool:
    """Return whether a weight is a matrix or a convolution between hidden layers.

    Args:
        name: as in :meth:`Trainee.named_weights`.
        weight: the weight.

    Returns:
        False for embeddings, gains, biases, and the first and last convolution.

    Example:
        >>> is_hidden_matrix("unet.conv_in.weight", torch.zeros(8, 4, 3, 3))
        False
    """
    return weight.ndim >= 2 and not any(part in name for part in ("embed", "conv_in", "conv_out"))


def build_trainee(recipe: Recipe, tokenizer: CLIPTokenizer, team: Team = ALONE) -> Trainee:
    """Make untrained models, their optimizer and their average.

    Attention is explicit in training: on a CPU the backward of the fused kernel costs more
    than the whole rest of an update at 16x16.

    Args:
        recipe: sizes and rates.
        tokenizer: of the package.
        team: who else trains.

    Returns:
        A trainee at update 0.
    """
    text, unet = build_text_encoder(recipe, tokenizer), build_unet(recipe)
    if recipe.start:
        start_denoiser(text, unet, tokenizer, Path(recipe.start))
    unet.set_attn_processor(AttnProcessor())
    trainee = Trainee(models={"text": text, "unet": unet})
    weights = trainee.named_weights()
    hidden = [weight for name, weight in weights if is_hidden_matrix(name, weight)]
    others = [weight for name, weight in weights if not is_hidden_matrix(name, weight)]
    trainee.optimizers = (
        Muon(hidden, lr=recipe.rate, team=team),
        torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01),
    )
    trainee.start_average()
    return trainee


def spread_times(points: torch.Tensor, fine_share: float) -> torch.Tensor:
    """Map uniform points to training steps, with a chosen share of them in the fine detail.

    What and where the objects are is decided above :data:`FINE_TIME`; below it the image
    only gets sharper, which is learned early and needs few updates.

    Args:
        points: uniform in 0 to 1.
        fine_share: part of the points that falls below :data:`FINE_TIME`; 0.3 is uniform.

    Returns:
        Steps of the schedule, 0 to 999, in the order of the points.

    Example:
        >>> spread_times(torch.tensor([0.05, 0.1, 0.55]), 0.1).round().tolist()
        [150.0, 300.0, 650.0]
    """
    fine = points / fine_share * FINE_TIME
    coarse = FINE_TIME + (points - fine_share) / (1 - fine_share) * (1000 - FINE_TIME)
    return torch.where(points < fine_share, fine, coarse).clamp(max=999)


def caption_tokens(
    recipe: Recipe, index: int, generator: np.random.Generator, tokenizer: CLIPTokenizer
) -> torch.Tensor:
    """Draw a caption of one training scene that fits into the text encoder.

    Args:
        recipe: shares and length.
        index: of the scene.
        generator: the only source of randomness.
        tokenizer: of the package.

    Returns:
        Token numbers, shape ``(1, T)``.
    """
    if generator.random() < recipe.empty_share:
        caption = ""
    else:
        scene = training_scene(recipe, index)
        shares = {"ghost_share": recipe.ghost_share, "swap_share": recipe.swap_share}
        caption = training_caption(scene, generator, **shares)
        while len(tokenizer(caption).input_ids) > recipe.text_length:
            caption = training_caption(scene, generator, **shares)
    return tokenizer(caption, padding="max_length", max_length=recipe.text_length, return_tensors="pt").input_ids


def make_batch(recipe: Recipe, step: int, latents: torch.Tensor, tokenizer: CLIPTokenizer) -> Batch:
    """Draw the batch of one update, a function of the seed and the update alone.

    Times are stratified over the schedule, which lowers the variance of the gradient for nothing.

    Args:
        recipe: shares and sizes.
        step: from 0.
        latents: all clean latents, scaled, shape ``(images, 4, y, x)``.
        tokenizer: of the package.

    Returns:
        The batch.
    """
    generator = stream(recipe.seed, "denoiser", step)
    indices = generator.integers(len(latents), size=recipe.batch)
    tokens = torch.cat([caption_tokens(recipe, int(index), generator, tokenizer) for index in indices])
    points = (torch.arange(recipe.batch) + torch.from_numpy(generator.random(recipe.batch))) / recipe.batch
    times = spread_times(points, recipe.fine_share)
    noise_generator = torch_stream(generator)
    clean = latents[torch.from_numpy(indices)].float()
    noise = torch.randn(clean.shape, generator=noise_generator)
    return Batch(latents=clean, noise=noise, times=times.long(), tokens=tokens)


def denoiser_loss(trainee: Trainee, batch: Batch, scheduler: DDIMScheduler) -> torch.Tensor:
    """Measure the mean squared error of the predicted velocity.

    Args:
        trainee: the models.
        batch: what they see.
        scheduler: the noise schedule.

    Returns:
        A scalar.
    """
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.times)
    target = scheduler.get_velocity(batch.latents, batch.noise, batch.times)
    with torch.autocast("cpu", torch.bfloat16):
        context = trainee.text(batch.tokens).last_hidden_state
        velocity = trainee.unet(noisy, batch.times, encoder_hidden_states=context).sample
    return torch.nn.functional.mse_loss(velocity.float(), target)


def train_denoiser(
    recipe: Recipe,
    folder: Path,
    deadline: Deadline,
    latents: torch.Tensor,
    tokenizer: CLIPTokenizer,
    team: Team = ALONE,
) -> bool:
    """Train the denoiser, or continue where a checkpoint stands.

    Args:
        recipe: sizes, length and rates.
        folder: holds ``denoiser.pt``, ``log.jsonl`` and the kept averages ``average-<update>.pt``.
        deadline: stop, with a checkpoint, when it is over.
        latents: clean and scaled, shape ``(images, 4, y, x)``.
        tokenizer: of the package.
        team: who else trains.

    Returns:
        Whether the last update was reached.
    """
    trainee, scheduler = build_trainee(recipe, tokenizer, team), build_scheduler()

    def one_update(step: int) -> Measured:
        batch = make_batch(recipe, step, latents, tokenizer)
        return {"loss": update(trainee, batch.part(team), scheduler, recipe, team)}

    return learn(trainee, recipe, Records(folder=folder, name="denoiser"), deadline, one_update, team)


def update(trainee: Trainee, batch: Batch, scheduler: DDIMScheduler, recipe: Recipe, team: Team = ALONE) -> float:
    """Make one update.

    Args:
        trainee: changed in place.
        batch: what the update sees.
        scheduler: the noise schedule.
        recipe: rates.
        team: who else trains.

    Returns:
        The loss of this member's part before the update.
    """
    loss = denoiser_loss(trainee, batch, scheduler)
    advance(trainee, loss, recipe, team)
    return float(loss.detach())

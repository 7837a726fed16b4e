"""The first stage: an autoencoder from 64x64 pixels to 16x16 latent cells."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from t2ictl.benchmarks.shapes.train.data import crowded_scene, to_pixels, training_scene
from t2ictl.benchmarks.shapes.train.loop import Deadline, append_log, cosine_rate, save_atomic, stream, torch_stream
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.start import start_autoencoder
from t2ictl.shapes.draw import BACKGROUND


def build_autoencoder(recipe: Recipe) -> AutoencoderKL:
    """Make an untrained autoencoder.

    Args:
        recipe: ``vae_channels`` and ``seed``.

    Returns:
        An ``AutoencoderKL`` with four latent channels.

    Example:
        >>> build_autoencoder(Recipe(vae_channels=(8, 8, 8))).config.latent_channels
        4
    """
    levels = len(recipe.vae_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(recipe.seed, "weights", 0).integers(2**31)))
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=recipe.vae_channels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=64,
            mid_block_add_attention=False,
            # The export folds the deviation of the latents into the 1x1 convolutions.
            scaling_factor=1.0,
        )


def autoencoder_loss(
    model: AutoencoderKL, pixels: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure one batch: weighted absolute and squared error, and the Kullback-Leibler term.

    Objects cover a tenth of the canvas, so their pixels count more.

    Args:
        model: the autoencoder.
        pixels: shape ``(B, 3, Y, X)`` in -1 to 1.
        recipe: weights of the terms.
        generator: for the latent sample.

    Returns:
        The loss, and the plain squared error for the log.
    """
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(pixels).latent_dist
        rebuilt = model.decode(posterior.sample(generator)).sample.float()
    background = torch.tensor(BACKGROUND).view(1, 3, 1, 1) / 127.5 - 1
    foreground = ((pixels - background).abs().amax(dim=1, keepdim=True) > 0.05).float()
    weight = 1 + (recipe.foreground_weight - 1) * foreground
    error = rebuilt - pixels
    divergence = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    loss = (weight * (error.abs() + 2 * error**2)).mean() + recipe.kl_weight * divergence
    return loss, (error**2).mean()


def train_autoencoder(recipe: Recipe, folder: Path, deadline: Deadline) -> AutoencoderKL | None:
    """Train the autoencoder, or continue where a checkpoint stands.

    Args:
        recipe: sizes, length and rates.
        folder: where ``autoencoder.pt`` and ``log.jsonl`` live.
        deadline: stop, with a checkpoint, when it is over.

    Returns:
        The trained model, or None if the deadline came first.
    """
    model = build_autoencoder(recipe)
    if recipe.start:
        start_autoencoder(model, Path(recipe.start))
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.vae_rate)
    path, step = folder / "autoencoder.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    bar = tqdm(total=recipe.vae_steps, initial=step, desc="autoencoder", mininterval=10)
    while step < recipe.vae_steps and not deadline.is_over():
        generator = stream(recipe.seed, "autoencoder", step)
        pixels = to_pixels([crowded_scene(generator) for _ in range(recipe.vae_batch)])
        for group in optimizer.param_groups:
            group["lr"] = recipe.vae_rate * cosine_rate(step, recipe.vae_steps, recipe.warmup)
        loss, squared = autoencoder_loss(model, pixels, recipe, torch_stream(generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        bar.update()
        if step % 50 == 0:
            append_log(folder / "log.jsonl", stage="autoencoder", step=step, loss=float(loss), mse=float(squared))
        if step % recipe.checkpoint_every == 0 or step == recipe.vae_steps or deadline.is_over():
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save_atomic(state, path)
    bar.close()
    return model.eval() if step >= recipe.vae_steps else None


@torch.no_grad()
def encode_images(model: AutoencoderKL, recipe: Recipe, folder: Path) -> torch.Tensor:
    """Encode all training images once.

    Args:
        model: the trained autoencoder.
        recipe: how many images.
        folder: keeps the result as ``latents.pt``.

    Returns:
        Half precision latents (posterior means, not scaled) of shape ``(images, 4, y, x)``.
    """
    path = folder / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    parts = []
    for start in tqdm(range(0, recipe.images, 100), desc="latents", mininterval=10):
        scenes = [training_scene(recipe, i) for i in range(start, min(start + 100, recipe.images))]
        parts.append(model.encode(to_pixels(scenes)).latent_dist.mean.half())
    latents = torch.cat(parts)
    save_atomic(latents, path)
    return latents

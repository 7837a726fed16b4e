"""Given images that the tests of portraits and composites share, and what the denoiser sees of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2ictl.processors.isolation_reposition.subjects import Subject
from tests.processors.isolation_reposition.isolation_cases import (
    CAST,
    CAT,
    CORNER,
    DOG,
    MIDDLE,
    SD_READING,
    SDXL_READING,
    names,
)
from tests.tiny import generator

OTHER, UNNAMED = "a dog and a cat", "a red circle and a blue square"


def photo(color: str, seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A box of noise on a plain ground, which is where ``MIDDLE`` says."""
    width, height = size
    image = Image.new("RGB", size, color)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    box = (round(0.25 * width), round(0.3 * height), round(0.75 * width), height)
    image.paste(Image.fromarray(noise).crop(box), box[:2])
    return image


PHOTOS = (photo("white", 1), photo("black", 2))
IMAGED = CAST | {
    "subjects": (
        Subject(name="cat", prompt=CAT, image=PHOTOS[0], box=MIDDLE),
        Subject(name="dog", prompt=DOG, image=PHOTOS[1], mask=CORNER),
    )
}
LATENT = IMAGED | {"reposition": "latent"}


def reading(pipe: Any) -> set[str]:
    return names(pipe, *(SDXL_READING if hasattr(pipe, "tokenizer_2") else SD_READING))


def latents(rows: int) -> Tensor:
    return torch.randn(rows, 4, 16, 16, generator=generator(5))


@contextlib.contextmanager
def inputs(pipe: Any) -> Iterator[list[tuple[float, Tensor]]]:
    """Timestep and sample of every pass that makes the image, as the layers see them."""
    found: list[tuple[float, Tensor]] = []
    timesteps: list[float] = []

    def first(_: Any, args: Any) -> None:
        if not torch.is_grad_enabled():
            found.append((timesteps[-1], args[0].clone()))

    handles = [
        pipe.unet.time_proj.register_forward_pre_hook(lambda _, args: timesteps.append(float(args[0][0]))),
        pipe.unet.conv_in.register_forward_pre_hook(first),
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def clean(pipe: Any, image: Image.Image) -> Tensor:
    """The stock autoencoder, in the pipeline's scale."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    encoded: Tensor = pipe.vae.encode(pixels.to(pipe.vae.dtype)).latent_dist.mean[0]
    return encoded * pipe.vae.config.scaling_factor


def alpha(scheduler: Any, t: float) -> float:
    low = int(t)
    odds = [((1 - a) / a).log() for a in scheduler.alphas_cumprod[low : low + 2].double()]
    return float(1 / (1 + torch.lerp(odds[0], odds[-1], t - low).exp()))

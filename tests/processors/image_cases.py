"""Given images that the tests of portraits and composites share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2ictl.processors.isolation_reposition.subjects import Subject
from tests.processors.isolation_cases import (
    CAST,
    CAT,
    CORNER,
    DOG,
    MIDDLE,
    names,
)
from tests.processors.test_isolation_reposition import SD_READING, SDXL_READING
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

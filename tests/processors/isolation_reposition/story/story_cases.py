"""What the tests of stories share: subjects, scenes, and images as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from t2ictl import Scene, Story, Subject
from tests import tiny

CAT, DOG = (Subject(name=name, prompt=f"photo of a {name}") for name in ("cat", "dog"))
SCENES = (
    Scene(prompt="a cat and a dog on a bench"),
    Scene(prompt="a dog in a red hat"),
    Scene(prompt="a cat and a dog on a bench", seed=77),
    Scene(prompt="a dog and a cat", boxes={"cat": (0, 0, 0.45, 1)}),
)
FAST: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0}


def pixels(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in images])


def differ(one: Story, other: Story) -> int:
    """Largest difference of any pixel of any image, of 255."""
    portraits = [pixels(list(each.portraits.values())) for each in (one, other)]
    scenes = [pixels(each.scenes) for each in (one, other)]
    return int(max(np.abs(portraits[0] - portraits[1]).max(), np.abs(scenes[0] - scenes[1]).max()))


def make(family: str = "sd", scheduler: str = "ddim") -> Any:
    pipe = tiny.sd() if family == "sd" else tiny.sdxl()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = tiny.scheduler(scheduler)
    return pipe

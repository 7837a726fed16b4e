"""What a pipeline is asked for: prompt, seed, steps, size, guidance."""

from __future__ import annotations

from typing import Any

import torch

from t2ictl.errors import BadSetting, shown
from t2ictl.settings.fields import setting, settings_class

__all__ = ["Request"]

LAST_SEED = 2**64 - 1
"""The largest seed of torch's generators."""
LARGEST_SIDE = 8192
"""No model of the supported families makes an image that is wider or higher (pixels)."""

MOST_STEPS = 1_000_000
"""No scheduler has as many; each says by itself how many it has."""


@settings_class
class Request:
    """What the pipeline is asked for.

    Args:
        prompt: one prompt, or several.
        negative_prompt: what guidance leads away from.
        seed: seed of the first image; the next ones have the next seeds.
        steps: denoising steps.
        width: image width (pixels); None for the model's own.
        height: image height (pixels); None for the model's own.
        guidance_scale: strength of classifier-free guidance; 1 or less is none.
        images_per_prompt: images for each prompt.
        parser: how objects and attributes are found.

    Raises:
        BadSetting: if the prompt is empty, or the seed of the last image is larger than 2**64 - 1.

    Example:
        >>> Request(prompt="a cat", seed=7).steps
        25
    """

    prompt: str | tuple[str, ...] = setting(default="", help="one prompt, or several")
    negative_prompt: str = setting(default="", help="what guidance leads away from")
    seed: int = setting(default=0, help="seed of the first image", low=0)
    steps: int = setting(default=25, help="denoising steps", low=1, high=MOST_STEPS)
    width: int | None = setting(
        default=None, help="image width (pixels); empty: the model's own", low=8, high=LARGEST_SIDE
    )
    height: int | None = setting(
        default=None, help="image height (pixels); empty: the model's own", low=8, high=LARGEST_SIDE
    )
    guidance_scale: float = setting(default=7.5, help="strength of classifier-free guidance; 1: none", low=0.0)
    images_per_prompt: int = setting(default=1, help="images for each prompt", low=1, high=1000)
    parser: str = setting(default="grammar", help="how objects are found: grammar or spacy")

    def __post_init__(self) -> None:
        texts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        if not texts or not all(text.strip() for text in texts):
            raise BadSetting(f"The prompt {self.prompt!r} is empty.", "Say what the image shall show.")
        if self.seed + self.images - 1 > LAST_SEED:
            raise BadSetting(
                f"Request.seed {shown(self.seed, 40)} is too large for {self.images} images.",
                "The seed of the last one can be 2**64 - 1 at most.",
            )

    @property
    def images(self) -> int:
        """How many images this asks for."""
        return (1 if isinstance(self.prompt, str) else len(self.prompt)) * self.images_per_prompt

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline call.

        Every image has a generator of its own, on the CPU: it comes out the same alone, in
        a batch, and on another device.
        """
        return {
            "prompt": self.prompt if isinstance(self.prompt, str) else list(self.prompt),
            "negative_prompt": self.negative_prompt
            if isinstance(self.prompt, str)
            else [self.negative_prompt] * len(self.prompt),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "num_images_per_prompt": self.images_per_prompt,
            "generator": [torch.Generator("cpu").manual_seed(self.seed + number) for number in range(self.images)],
            **({"width": self.width} if self.width else {}),
            **({"height": self.height} if self.height else {}),
        }

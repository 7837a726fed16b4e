"""A tiny pipeline, a prompt and its conditions, for the tests of token flow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2ictl.families import find_adapter
from t2ictl.processors.token_flow.conditions import Conditions, Intervention, compose
from t2ictl.processors.token_flow.items import Item, bound_items
from t2ictl.processors.token_flow.readings import Row, read_all

PROMPT = "a red circle and a blue square"  # start a red circle and a blue square end: 0 to 8
LENGTH = 16


class Case:
    """Conditions of a prompt on a pipeline, and their rows."""

    def __init__(self, pipe: Any, prompt: str = PROMPT, items: Sequence[Item | str] = ("circle", "square")) -> None:
        self.pipe, self.adapter = pipe, find_adapter(pipe)
        self.prompt = self.adapter.parse((prompt,))
        self.items = bound_items(self.prompt, items)
        self.make = Conditions(self.prompt, lambda text: self.adapter.parse((text,)))
        self.encode = partial(self.adapter.encode, pipe.encode_prompt, {"device": "cpu"})

    def row(self, condition: Intervention) -> Row:
        """Compose one condition."""
        read = read_all(condition.readings(), self.encode, LENGTH)
        return compose(condition, read, self.make.padding)

    def stock(self, text: str) -> Any:
        """What the pipeline itself encodes."""
        return self.encode([text])

    def noise(self, states_BKC: Tensor, pooled_BC: Tensor | None, mask_BK: Tensor | None = None) -> Tensor:
        """One stock pass of the denoiser on fixed latents."""
        unet = self.pipe.unet
        generator = torch.Generator().manual_seed(3)
        latents = torch.randn(1, unet.config.in_channels, 16, 16, generator=generator).expand(
            len(states_BKC), -1, -1, -1
        )
        more: dict[str, Any] = {}
        if pooled_BC is not None:
            ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(len(states_BKC), -1)
            more["added_cond_kwargs"] = {"text_embeds": pooled_BC, "time_ids": ids}
        with torch.no_grad():
            made: Tensor = unet(latents, 501, states_BKC, encoder_attention_mask=mask_BK, return_dict=False, **more)[0]
        return made


class CoinJudge:
    """Sees things at known rates, whatever the image: by a generator, a call after the other."""

    name = "coin"

    def __init__(self, rate: float, seed: int) -> None:
        self._rate, self._generator = rate, np.random.default_rng(seed)

    def __call__(self, images: Sequence[Image.Image], things: Sequence[str]) -> Any:
        """Toss."""
        return (self._generator.random((len(images), len(things))) < self._rate).astype(float)


class BrightnessJudge:
    """Gives numbers of the image itself: the same image has the same ones."""

    name = "brightness"

    def __call__(self, images: Sequence[Image.Image], things: Sequence[str]) -> Any:
        """Means of color bands, one after the other."""
        bands = np.array([np.asarray(image, dtype=float).mean(axis=(0, 1)) / 255 for image in images])
        return bands[:, [number % 3 for number in range(len(things))]]


SMALL: dict[str, Any] = {"steps": 2, "seeds": 2, "confirm": 2, "batch": 4, "guidance_scale": 3.0}


POLYSEME = (Item(words="circle", swap="ring"), Item(words="square", senses={"circle": "heart"}))

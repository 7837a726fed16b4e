"""Small images of the way: a linear map from latent channels to colors, fitted to the model's own decoder.

Decoding every step would cost more than the step. The map is fitted once to a decoded patch of noise, and then to
each finished image, so it holds for any number of channels and any autoencoder.

Legend: ``C`` latent channels, ``P`` positions, ``R`` colors, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["LatentColors"]

LARGEST = 128  # pixels of the longer side of a preview
PATCH = 16  # latent cells a side of the patch of noise
RIDGE = 1e-3  # keeps the fit finite where an image has one color


class LatentColors:
    """Colors of latents, near enough to see where an image is going.

    Args:
        channels: of the latent.
    """

    def __init__(self, channels: int) -> None:
        self._weights_CR = torch.zeros(channels + 1, 3)
        self._weights_CR[-1] = 0.5
        self._spread = 1.0

    @classmethod
    def from_pipeline(cls, pipe: Any) -> LatentColors:
        """Fit to a decoded patch of noise.

        Args:
            pipe: a diffusers pipeline; its random state is not touched.

        Returns:
            The map.
        """
        vae = pipe.vae
        colors = cls(int(vae.config.latent_channels))
        noise = torch.randn(1, vae.config.latent_channels, PATCH, PATCH, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            scaled = noise.to(vae.device, vae.dtype) / vae.config.scaling_factor
            decoded = vae.decode(scaled).sample[0].float().cpu()
        if torch.isfinite(decoded).all():  # some autoencoders overflow in half precision
            colors.fit(noise[0], _image(decoded))
        return colors

    def fit(self, latent_CYX: Tensor, image: Image.Image) -> None:
        """Fit to a finished image.

        Args:
            latent_CYX: the last latent.
            image: what the decoder made of it.
        """
        latent_CYX = latent_CYX.detach().float().cpu()
        height, width = latent_CYX.shape[1:]
        small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
        target_PR = torch.from_numpy(np.asarray(small).copy()).float().div(255).reshape(-1, 3)
        self._spread = float(latent_CYX.std())
        input_PC = self._input(latent_CYX)
        gram_CC = input_PC.T @ input_PC / len(input_PC) + RIDGE * torch.eye(input_PC.shape[1])
        self._weights_CR = torch.linalg.solve(gram_CC, input_PC.T @ target_PR / len(input_PC))

    def preview(self, latent_CYX: Tensor) -> bytes:
        """Show a latent.

        Args:
            latent_CYX: of any step, at any scale: solvers differ in how large latents are on the way.

        Returns:
            A JPEG, 128 pixels at most.
        """
        latent_CYX = latent_CYX.detach().float().cpu()
        latent_CYX = latent_CYX * (self._spread / latent_CYX.std().clamp_min(1e-6))
        colors_PR = (self._input(latent_CYX) @ self._weights_CR).nan_to_num(0.5).clamp(0, 1)
        height, width = latent_CYX.shape[1:]
        image = Image.fromarray(colors_PR.mul(255).byte().reshape(height, width, 3).numpy())
        factor = LARGEST / max(width, height)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        held = io.BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(held, format="JPEG", quality=80)
        return held.getvalue()

    @staticmethod
    def _input(latent_CYX: Tensor) -> Tensor:
        flat_PC = latent_CYX.flatten(1).T
        return torch.cat([flat_PC, torch.ones(len(flat_PC), 1)], dim=1)


def _image(decoded_RYX: Tensor) -> Image.Image:
    values_YXR = decoded_RYX.div(2).add(0.5).clamp(0, 1).mul(255).byte().permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(values_YXR.numpy()))

"""Rows of a batch that are held at given images, noised as far as the schedule has come.

Such a row shows the denoiser a known image at every step, so that others can read its features: a photograph of a
subject, or a composite of several.

Legend: ``B`` image, ``C`` channels, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.base import Adapter
from t2ictl.families.checks import WEIGHTS_AWAY, hook_names
from t2ictl.families.schedulers import noise_levels
from t2ictl.settings.windows import Step

__all__ = ["ReferenceLatents", "encode_image"]


def encode_image(adapter: Adapter, image: Image.Image) -> Tensor:
    """Encode an image as the pipeline's autoencoder does, without noise.

    Args:
        adapter: the pipeline's family.
        image: of a size that the autoencoder can take.

    Returns:
        ``z_CYX``, scaled as the denoiser wants it, float32.

    Raises:
        UnsupportedPipeline: if there is no autoencoder, or if it waits elsewhere (offloading): fetching it would send
            the denoiser away.
    """
    vae = adapter.pipe.vae
    # As in the pipelines: some autoencoders overflow in float16. From there to float32 and back loses nothing.
    is_upcast = vae is not None and vae.dtype == torch.float16 and bool(vae.config.get("force_upcast", False))
    _check_autoencoder(vae, is_upcast)
    pixels_CYX = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
    if is_upcast:
        vae.to(dtype=torch.float32)
    try:
        with torch.no_grad():
            encoded = vae.encode(pixels_CYX[None].to(vae.device, vae.dtype))
    finally:
        if is_upcast:
            vae.to(dtype=torch.float16)
    # Distilled autoencoders (AutoencoderTiny) give no distribution.
    found = (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents)[0].float()
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:
        mean_C11, std_C11 = (torch.tensor(each, device=found.device).view(-1, 1, 1) for each in (mean, std))
        found = (found - mean_C11) / std_C11
    return found * float(vae.config.scaling_factor)


def _check_autoencoder(vae: Any, is_upcast: bool) -> None:
    if vae is None:
        raise UnsupportedPipeline(
            "An image has to be encoded, and the pipeline has no autoencoder.",
            "Load the pipeline with its autoencoder (vae=...).",
        )
    # Casting back what is assignment or moved for each layer would not leave it as it was.
    hooks = {name for each in vae.modules() for name in hook_names(each)} if is_upcast else set()
    if getattr(vae, "_hf_hook", None) is not None or hooks & WEIGHTS_AWAY:
        raise UnsupportedPipeline(
            "An image has to be encoded during the call, while offloading holds the autoencoder elsewhere.",
            "Keep the whole pipeline on the device: pipe.to(device) in place of enable_model_cpu_offload().",
        )


@dataclass(kw_only=True)
class ReferenceLatents:
    """Holds some images of a batch at given ones; the ``pin`` of a plan.

    ``x = sqrt(a) z0 + sqrt(1 - a) eps`` in the space of the denoiser, with noise that is the same at every step, and
    the same whatever else is in the batch.

    Args:
        adapter: the pipeline's family.
        images: for an image of the batch, what gives the one to hold it at, for its height and width (pixels).
        names: for each of them the text that its noise is drawn by.
        seed: of the noise.
    """

    adapter: Adapter
    images: Mapping[int, Callable[[int, int], Image.Image]]
    names: Mapping[int, str]
    seed: int = 0
    _clean: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, x_BCYX: Tensor, step: Step) -> Tensor:
        """Put the noised images in their places.

        Args:
            x_BCYX: the latents as the denoiser sees them, one row an image.
            step: which evaluation this is.

        Returns:
            The same, with the held rows replaced.
        """
        signal, noise = noise_levels(self.adapter.pipe.scheduler, step.timestep)
        held_BCYX = x_BCYX.clone()
        for image in self.images:
            if image not in self._clean:
                self._clean[image] = self._prepared(image, x_BCYX)
            clean_CYX, noise_CYX = self._clean[image]
            held_BCYX[image] = (signal * clean_CYX + noise * noise_CYX).to(x_BCYX)
        return held_BCYX

    def _prepared(self, image: int, x_BCYX: Tensor) -> tuple[Tensor, Tensor]:
        factor = int(self.adapter.pipe.vae_scale_factor)
        height, width = (side * factor for side in x_BCYX.shape[-2:])
        clean_CYX = encode_image(self.adapter, self.images[image](height, width))
        dice = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}|{self.names[image]}".encode()))
        noise_CYX = torch.randn(clean_CYX.shape, generator=dice).to(clean_CYX.device)
        return clean_CYX, noise_CYX

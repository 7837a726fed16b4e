"""Previews: a linear map that fits what the decoder makes, bounded in size, finite whatever comes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import t2ictl
from t2ictl.app.engine.preview import LatentColors
from tests.tiny import sd


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_it_recovers_a_linear_decoder() -> None:
    latent_CYX = torch.randn(4, 12, 20, generator=torch.Generator().manual_seed(1))
    weights_RC = torch.tensor([[0.1, 0, 0, 0], [0, 0.1, 0.05, 0], [0, 0, 0, -0.1]])
    target_YXR = torch.einsum("rc,cyx->yxr", weights_RC, latent_CYX).add(0.5).clamp(0, 1)
    image = Image.fromarray((target_YXR.numpy() * 255).round().astype(np.uint8))
    colors = LatentColors(4)
    colors.fit(latent_CYX, image)
    shown = opened(colors.preview(latent_CYX * 14.6))  # as an early latent of Euler: the same, but larger
    assert shown.size == (128, 77) and shown.format == "JPEG"
    small = np.asarray(shown.resize((20, 12), Image.Resampling.BOX), dtype=float) / 255
    assert np.abs(small - target_YXR.numpy()).mean() < 0.04


def test_the_first_fit_leaves_random_state_and_pipeline_alone() -> None:
    pipe = sd()
    before, training = torch.get_rng_state(), pipe.vae.training
    colors = LatentColors.from_pipeline(pipe)
    assert torch.equal(torch.get_rng_state(), before) and pipe.vae.training == training
    assert colors._weights_CR.abs().sum() > 0.5 and torch.isfinite(colors._weights_CR).all()


def test_a_fitted_preview_is_nearer_to_the_image_than_gray() -> None:
    pipe, seen = t2ictl.load("shapes", device="cpu"), []
    made = t2ictl.generate(
        pipe, "a red circle", seed=1, steps=4, on_step=lambda progress: seen.append(progress.latents[0].clone())
    )
    colors = LatentColors.from_pipeline(pipe)
    colors.fit(seen[-1], made.image)
    target = np.asarray(made.image.resize((128, 128), Image.Resampling.BICUBIC), dtype=float)
    found = np.asarray(opened(colors.preview(seen[-1])).convert("RGB"), dtype=float)
    assert np.abs(found - target).mean() < 0.5 * np.abs(128 - target).mean()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e30])
def test_odd_latents_give_an_image_too(value: float) -> None:
    assert opened(LatentColors(4).preview(torch.full((4, 8, 8), value))).size == (128, 128)

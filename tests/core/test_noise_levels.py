"""Shares of picture and noise, against what the stock schedulers themselves do to a picture."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from t2ictl.errors import UnsupportedPipeline
from t2ictl.schedulers import input_scale, noise_levels
from tests import tiny

MORE = {
    "deis": "DEISMultistepScheduler",
    "dpmpp_sde": "DPMSolverSinglestepScheduler",
    "kdpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "ddpm": "DDPMScheduler",
}


def make(name: str, **overrides: Any) -> Any:
    if name in tiny.SCHEDULERS:
        return tiny.scheduler(name, **overrides)
    return getattr(diffusers, MORE[name]).from_config(dict(tiny.SCHEDULE) | overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, {}) for name in [*tiny.SCHEDULERS, *MORE] if name not in ("lcm", "pndm", "dpmpp_sde")),
        *((name, {"timestep_spacing": "trailing"}) for name in ("ddim", "euler", "dpmpp_2m")),
        *((name, {"use_karras_sigmas": True}) for name in ("euler", "dpmpp_2m", "heun")),
    ],
)
def test_they_are_those_of_the_stock_scheduler(name: str, overrides: dict[str, Any]) -> None:
    """``add_noise`` of the scheduler, brought to the space of the denoiser by ``scale_model_input``."""
    scheduler = make(name, **overrides)
    scheduler.set_timesteps(12)
    picture, noise = (torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    seen = set()
    # At its second evaluations KDPM2 noises with another sigma than it scales by; see below.
    for timestep in scheduler.timesteps[:: 2 if name == "kdpm2" else 1]:
        if float(timestep) in seen:
            continue  # second evaluations of one timestep
        seen.add(float(timestep))
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None  # a scheduler counts steps; here it is asked about any of them
        expected = scheduler.add_noise(picture, noise, timestep[None]) * input_scale(scheduler, timestep)
        signal, share = noise_levels(scheduler, float(timestep))
        # Karras schedules round their timesteps, and sigmas between the training ones are interpolated.
        tolerance = 2e-2 if overrides.get("use_karras_sigmas") else 2e-3
        torch.testing.assert_close(signal * picture + share * noise, expected, rtol=0, atol=tolerance)
        assert signal**2 + share**2 == pytest.approx(1, abs=1e-6)


def test_second_evaluations_are_at_interpolated_sigmas() -> None:
    scheduler = make("kdpm2")
    scheduler.set_timesteps(12)
    for place, timestep in enumerate(scheduler.timesteps):
        sigma = float((scheduler.sigmas_interpol if place % 2 else scheduler.sigmas)[place])
        signal, share = noise_levels(scheduler, float(timestep))
        assert share / signal == pytest.approx(sigma, rel=2e-3)


@pytest.mark.parametrize("name", ["lcm", "pndm", "ddim"])
def test_at_training_timesteps_they_are_the_cumulated_alphas(name: str) -> None:
    scheduler = make(name)
    for timestep in (0, 1, 500, 999):
        alpha = float(scheduler.alphas_cumprod[timestep])
        assert list(noise_levels(scheduler, timestep)) == pytest.approx([alpha**0.5, (1 - alpha) ** 0.5])


def test_between_timesteps_they_grow_and_beyond_the_ends_they_stand() -> None:
    scheduler = make("ddim")
    shares = [noise_levels(scheduler, step)[1] for step in (10, 10.25, 10.5, 10.75, 11)]
    assert shares == sorted(shares) and len(set(shares)) == 5
    assert noise_levels(scheduler, 2000) == pytest.approx(noise_levels(scheduler, 999))
    assert noise_levels(scheduler, -1) == pytest.approx(noise_levels(scheduler, 0))


def test_a_last_alpha_of_zero_is_pure_noise() -> None:
    scheduler = make("ddim", rescale_betas_zero_snr=True)
    assert list(noise_levels(scheduler, 999)) == pytest.approx([0, 1], abs=1e-3)


@pytest.mark.parametrize(
    "kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"]
)
def test_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedPipeline, match=kind):
        noise_levels(getattr(diffusers, kind)(), 1.0)

"""How much image and noise the denoiser sees at a timestep, against what the stock schedulers make of an image."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch

from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.schedulers import input_scale, noise_levels
from tests.tiny import SCHEDULE, SCHEDULERS, scheduler

# Beside the tests' own: those that have a rule of their own for sigmas or timesteps.
OTHERS = (
    "DDPMScheduler",
    "DDIMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)
SPACINGS = ("linspace", "leading", "trailing")


def made(name: str, **overrides: Any) -> Any:
    if name in SCHEDULERS:
        return scheduler(name, **overrides)
    return getattr(diffusers, name).from_config(SCHEDULE | overrides)


def seen_by_the_denoiser(scheduler: Any, t: Any) -> tuple[float, float]:
    """Image and noise in what it is given now, by the stock scheduler.

    Those that scale samples of ``z0 + sigma eps`` by ``c`` show ``c`` of the image; the others add noise themselves.
    """
    scale = input_scale(scheduler, t)
    if scale != 1:  # c = 1 / sqrt(1 + sigma^2)
        return scale, scale * math.sqrt(1 / scale**2 - 1)
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    at = t.reshape(1)
    return scale * float(scheduler.add_noise(one, none, at)), scale * float(scheduler.add_noise(none, one, at))


def check(scheduler: Any, steps: int, allowed: float = 1e-5) -> int:
    """Every evaluation of a call; how many of them have fractional timesteps."""
    scheduler.set_timesteps(steps)
    sample, fractional = torch.zeros(1, 4, 4, 4), 0
    for t in scheduler.timesteps:
        scheduler.scale_model_input(sample, t)  # as the pipelines do
        found, wanted = noise_levels(scheduler, float(t)), seen_by_the_denoiser(scheduler, t)
        assert found == pytest.approx(wanted, abs=allowed), (float(t), found, wanted)
        assert math.hypot(*found) == pytest.approx(1)
        fractional += float(t) != int(t)
        sample = scheduler.step(torch.zeros_like(sample), t, sample).prev_sample
    return fractional


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", [*SCHEDULERS, *OTHERS])
def test_levels_are_those_of_the_scheduler_itself(name: str, spacing: str) -> None:
    solver = made(name, timestep_spacing=spacing)
    for steps in range(10, 21):
        check(solver, steps)


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", ["euler", "heun", "lms"])
def test_levels_between_timesteps(name: str, kind: str) -> None:
    """Exact: these schedulers find the timestep of a sigma by its logarithm."""
    assert check(made(name, **{f"use_{kind}_sigmas": True}), 12) > 6


@pytest.mark.parametrize("kind", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "DEISMultistepScheduler", "DPMSolverSinglestepScheduler"])
def test_solvers_with_whole_timesteps_are_up_to_one_of_them_away(name: str, kind: str) -> None:
    """Karras' are rounded, the others cut off."""
    solver = made(name, **{kind: True})
    assert not check(solver, 13, allowed=0.01)
    for sigma, t in zip(solver.sigmas, solver.timesteps, strict=False):
        (few, less), (many, more) = (noise_levels(solver, float(t) + away) for away in (-0.51, 1.01))
        assert less / few * 0.999 <= float(sigma) <= more / many * 1.001


def test_fractional_timesteps_of_a_linear_schedule() -> None:
    """19 gaps of 999 / 19 timesteps."""
    assert check(made("euler", timestep_spacing="linspace"), 20) > 15


@pytest.mark.parametrize("name", ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm"])
def test_schedules_that_end_in_pure_noise(name: str) -> None:
    zero = made(name, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    check(zero, 12)
    assert noise_levels(zero, float(zero.timesteps[0])) == pytest.approx((0.0, 1.0), abs=1e-3)
    signal, noise = noise_levels(made("ddim", rescale_betas_zero_snr=True), 998.5)
    assert signal < 0.01 and noise > 0.99


def test_ends_and_middle() -> None:
    """Outside of the training schedule its ends hold; in the middle, the geometric mean of sigmas."""
    ddim = made("ddim")
    alphas = [float(each) for each in ddim.alphas_cumprod]
    assert noise_levels(ddim, -1) == noise_levels(ddim, 0) == pytest.approx((alphas[0] ** 0.5, (1 - alphas[0]) ** 0.5))
    assert noise_levels(ddim, 1000) == pytest.approx(noise_levels(ddim, 999)) == noise_levels(ddim, 5000)
    signal, noise = noise_levels(ddim, 500.5)
    low, high = (((1 - alphas[t]) / alphas[t]) ** 0.5 for t in (500, 501))
    assert noise / signal == pytest.approx(math.sqrt(low * high), rel=1e-9)


@pytest.mark.parametrize(
    "other",
    [
        diffusers.EDMEulerScheduler(),
        diffusers.EDMDPMSolverMultistepScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
        made("dpmpp_2m", use_flow_sigmas=True, prediction_type="flow_prediction"),
        made("unipc", use_flow_sigmas=True, prediction_type="flow_prediction"),
        made("euler", timestep_type="continuous", prediction_type="v_prediction"),
        made("euler", interpolation_type="log_linear"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_schedulers_that_noise_otherwise_are_refused(other: Any) -> None:
    with pytest.raises(UnsupportedPipeline, match=f"{type(other).__name__} does not noise images"):
        noise_levels(other, 10.0)

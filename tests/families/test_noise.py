"""Noise levels: one scale for all schedules, against published numbers and the schedulers' own tables."""

from __future__ import annotations

import copy
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from t2ictl.families.noise import is_flow, level_at_fraction, noise_level
from t2ictl.families.schedulers import keeps_precision

#: Stable Diffusion 1.x as published.
SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
FLUX_DEV = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
SANA = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def levels(scheduler: Any) -> list[float]:
    found = [noise_level(scheduler, index) for index in range(len(scheduler.timesteps))]
    assert None not in found
    return [float(each) for each in found]  # type: ignore[arg-type]


def test_levels_of_stable_diffusion_by_its_betas() -> None:
    """Alphas as a product, one factor after the other; Attend-and-Excite refines at 0, .2 and .4, and ends at .5."""
    alpha, alphas = 1.0, []
    for step in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * step / 999
        alpha *= 1 - root**2
        alphas.append(alpha)
    for fraction, timestep in ((0.0, 981), (0.2, 781), (0.4, 581), (0.5, 481), (0.9, 81), (1.0, 0)):
        signal, noise = math.sqrt(alphas[timestep]), math.sqrt(1 - alphas[timestep])
        assert level_at_fraction(fraction) == pytest.approx(noise / (signal + noise), abs=1e-6)
    assert [round(level_at_fraction(each), 2) for each in (0.0, 0.2, 0.4, 0.5)] == [0.93, 0.82, 0.68, 0.6]


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "DDPMScheduler"])
def test_a_fraction_of_fifty_steps_is_the_step_of_that_number(name: str) -> None:
    scheduler = getattr(diffusers, name)(**SD, **({"skip_prk_steps": True} if name.startswith("PNDM") else {}))
    scheduler.set_timesteps(50)
    found = levels(scheduler)
    if name.startswith("PNDM"):  # evaluates the second one twice
        del found[1]
    assert len(found) == 50
    assert found == pytest.approx([level_at_fraction(index / 50) for index in range(50)], abs=1e-6)


def test_levels_fall() -> None:
    found = [level_at_fraction(index / 100) for index in range(101)]
    assert found == sorted(found, reverse=True) and 0 < found[-1] < found[0] < 1


def flux_dev(steps: int) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_DEV)
    mu = calculate_shift(64 * 64, 256, 4096, 0.5, 1.15)  # 1024 x 1024 pixels
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler


def flux_schnell(steps: int) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    return scheduler


def sd3(steps: int) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    return scheduler


def sana(steps: int) -> Any:
    scheduler = diffusers.DPMSolverMultistepScheduler(**SANA)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(
    ("made", "steps", "above"),
    [(sd3, 28, (11, 16, 18)), (flux_dev, 28, (12, 17, 19)), (sana, 20, (8, 12, 14)), (flux_schnell, 4, (1, 2, 2))],
)
def test_flow_models_spend_their_steps_elsewhere(made: Any, steps: int, above: tuple[int, ...]) -> None:
    """So many steps have at least the noise that Stable Diffusion has after 10, 20 and 25 of 50."""
    found = levels(made(steps))
    assert found == sorted(found, reverse=True) and found[0] == pytest.approx(1, abs=1e-3)
    borders = [level_at_fraction(each) for each in (0.2, 0.4, 0.5)]
    assert tuple(sum(level >= border for level in found) for border in borders) == above


def test_levels_of_a_shifted_schedule_by_hand() -> None:
    """``s = 3 t / (1 + 2 t)`` with ``t`` in even steps: of SANA from .999 on, of SD 3 from 1 on."""
    shifted = [3 * t / (1 + 2 * t) for t in (0.999 * (1 - index / 20) for index in range(20))]
    assert levels(sana(20)) == pytest.approx(shifted, abs=1e-6)
    shifted = [3 * t / (1 + 2 * t) for t in np.linspace(1, 0.003 / 1.002, 28)]
    assert levels(sd3(28)) == pytest.approx(shifted, abs=1e-6)
    mu = math.exp(1.15)
    shifted = [mu * t / (1 + (mu - 1) * t) for t in np.linspace(1, 1 / 28, 28)]
    assert levels(flux_dev(28)) == pytest.approx(shifted, abs=1e-6)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_levels_of_samples_with_sigmas(name: str) -> None:
    """``x = z0 + sigma eps`` has ``sigma / (1 + sigma)``, before and after it is scaled for the denoiser."""
    scheduler = getattr(diffusers, name)(**{key: value for key, value in SD.items() if key.startswith("beta")})
    scheduler.set_timesteps(12)
    sigmas = [float(each) for each in scheduler.sigmas]
    assert levels(scheduler) == pytest.approx([each / (1 + each) for each in sigmas[:-1]], abs=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EDMEulerScheduler(),
        diffusers.EDMDPMSolverMultistepScheduler(),
        diffusers.CMStochasticIterativeScheduler(),
        diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_schedulers_that_do_not_tell(scheduler: Any) -> None:
    scheduler.set_timesteps(4)
    assert [noise_level(scheduler, index) for index in range(4)] == [None] * 4 and not is_flow(scheduler)


def test_there_is_no_level_behind_the_last_evaluation() -> None:
    for scheduler in (sana(4), sd3(4), diffusers.DDIMScheduler(**SD)):
        if not is_flow(scheduler):
            scheduler.set_timesteps(4)
        assert noise_level(scheduler, 3) is not None and noise_level(scheduler, 99) is None


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (FlowMatchEulerDiscreteScheduler(), True),
        (diffusers.FlowMatchHeunDiscreteScheduler(), True),
        (diffusers.DPMSolverMultistepScheduler(**SANA), True),
        (diffusers.UniPCMultistepScheduler(**SANA), True),
        (diffusers.DPMSolverMultistepScheduler(), False),
        (diffusers.DDPMScheduler(prediction_type="v_prediction"), False),
        (object(), False),
    ],
    ids=lambda each: type(each).__name__,
)
def test_which_schedulers_are_of_flow_models(scheduler: Any, expected: bool) -> None:
    assert is_flow(scheduler) is expected


# -- precision of what a scheduler returns ----------------------------------------------------------------------------

SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "FlowMatchHeunDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": SANA,
    "UniPCMultistepScheduler": SANA,
    "DDIMScheduler": SD,
    "PNDMScheduler": {"skip_prk_steps": True},
    "DDPMScheduler": {},
    "HeunDiscreteScheduler": {},
    "LCMScheduler": {},
}
KEEPING = {
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_which_schedulers_may_be_handed_float32(name: str, dtype: torch.dtype) -> None:
    """It is measured on a copy; a step of the scheduler itself has the same precision."""
    scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
    scheduler.set_timesteps(4)
    before, random = copy.deepcopy(vars(scheduler)), torch.get_rng_state()
    keeps = keeps_precision(scheduler, dtype)
    assert str(vars(scheduler)) == str(before) and torch.equal(torch.get_rng_state(), random)
    assert keeps == (name in KEEPING)
    result, sample = torch.ones(1, 4, 2, 2, dtype=dtype), torch.ones(1, 4, 2, 2)
    t = scheduler.timesteps[0]
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(sample, t)
    made = scheduler.step(result, t, sample, return_dict=False)[0]
    assert (made.dtype is dtype) == keeps
    assert keeps_precision(scheduler, torch.float32) and keeps_precision(scheduler, torch.float64)


def test_a_short_move_is_kept_by_flow_matching() -> None:
    """In bfloat16 numbers near 1 are 1/128 apart: a move of a thousandth is lost before the step, and not in it."""
    sample, move = torch.ones(1, 4, 2, 2, dtype=torch.bfloat16), 1e-3
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    result = torch.ones_like(sample)  # the step takes the sample near 0, where numbers lie close
    found = []
    for given in (sample, sample.float() + move, (sample.float() + move).to(torch.bfloat16)):
        own = copy.deepcopy(scheduler)
        found.append(float(own.step(result, own.timesteps[0], given, return_dict=False)[0][0, 0, 0, 0]))
    assert found[1] != found[0] == found[2]


def test_what_cannot_be_tried_gets_what_it_always_got() -> None:
    class Demanding(FlowMatchEulerDiscreteScheduler):
        def step(self, *args: Any, extra: Any, **more: Any) -> Any:
            return super().step(*args, **more)

    scheduler = Demanding()
    scheduler.set_timesteps(2)
    assert not keeps_precision(scheduler, torch.bfloat16)

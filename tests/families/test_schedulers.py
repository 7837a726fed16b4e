"""How much image and noise the denoiser sees at a timestep, and which samples schedulers throw away."""

from __future__ import annotations

import copy
import math
from typing import Any

import diffusers
import pytest
import torch

import t2ictl
from t2ictl.errors import BadSetting, UnsupportedPipeline
from t2ictl.families.scheduler_files import RecordedScheduler, use_scheduler
from t2ictl.families.schedulers import SchedulerPatch, discarded_samples, input_scale, needed_at_step, noise_levels
from tests.tiny import SCHEDULE, SCHEDULERS, scheduler, sd

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


# -- samples that are thrown away -------------------------------------------------------------------------------------


def found_by_hand(solver: Any) -> list[int]:
    """The evaluations whose sample makes no difference, with the predicted noise held fixed."""
    source, silent = torch.Generator().manual_seed(1), []
    sample = torch.randn(1, 4, 4, 4, generator=source) * float(solver.init_noise_sigma)
    for number, t in enumerate(solver.timesteps):
        solver.scale_model_input(sample, t)
        noise, other = (torch.randn(1, 4, 4, 4, generator=source) for _ in range(2))
        made = [copy.deepcopy(solver).step(noise, t, each)[0] for each in (sample, sample + other)]
        if float((made[1] - made[0]).norm()) < 1e-3 * float(other.norm()):
            silent.append(number)
        sample = solver.step(noise, t, sample)[0]
    return silent


SINGLE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
WITHOUT_NOISE: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {}),
    ("euler", {"use_karras_sigmas": True}),
    ("dpmpp_2m", {"solver_order": 3}),
    ("pndm", {}),
    ("pndm", {"skip_prk_steps": False}),
    ("heun", {}),
    ("kdpm2", {}),
    ("unipc", {}),
    ("unipc", {"predict_x0": False}),  # its corrector makes the sample anew
    ("DPMSolverSinglestepScheduler", {}),
    ("DPMSolverSinglestepScheduler", SINGLE),
    (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3},
    ),
    ("DEISMultistepScheduler", {}),
]


@pytest.mark.parametrize(("name", "options"), WITHOUT_NOISE, ids=str)
def test_which_samples_are_thrown_away_is_measured(name: str, options: dict[str, Any]) -> None:
    solver = made(name)
    solver = type(solver).from_config({**solver.config, **options})
    for steps in (6, 7):
        solver.set_timesteps(steps)
        total = len(solver.timesteps)
        before, random = copy.deepcopy(vars(solver)), torch.get_rng_state()
        found = discarded_samples(solver, solver.timesteps[0], total)
        assert torch.equal(torch.get_rng_state(), random)
        assert str(vars(solver)) == str(before)  # the scheduler of the call is not touched
        assert [number for number, is_lost in enumerate(found) if is_lost] == found_by_hand(solver)
        assert len(found) == total


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", ["heun", "kdpm2", "KDPM2AncestralDiscreteScheduler", "euler", "unipc", "lcm"])
def test_what_the_model_predicts_does_not_matter(name: str, prediction: str) -> None:
    """A sample that only turns a velocity into noise moves the next one, and the wrong way."""
    found = []
    for kind in ("epsilon", prediction):
        solver = made(name, prediction_type=kind)
        solver.set_timesteps(5)
        found.append(discarded_samples(solver, solver.timesteps[0], len(solver.timesteps)))
    assert found[0] == found[1]


def test_schedules_that_are_begun_in_the_middle() -> None:
    heun = made("heun")
    heun.set_timesteps(6)
    heun.set_begin_index(4)
    assert discarded_samples(heun, heun.timesteps[4], 7) == (False, True) * 3 + (False,)
    pndm = made("pndm")
    pndm.set_timesteps(6)
    assert discarded_samples(pndm, pndm.timesteps[1], 5) == (False, True, False, False, False)


def test_schedulers_of_others() -> None:
    """Any class: one that ignores samples by a rule of its own, and one whose step nobody can try."""

    class Stubborn(diffusers.DDIMScheduler):
        every = 3
        first: Any = None
        count = 0

        def step(self, noise: Any, t: Any, sample: Any, **more: Any) -> Any:
            if self.count % self.every == 0:
                self.first = sample
            self.count += 1
            return super().step(noise, t, self.first, **more)

    stubborn = Stubborn.from_config(SCHEDULE)
    stubborn.set_timesteps(6)
    assert discarded_samples(stubborn, stubborn.timesteps[0], 6) == (False, True, True) * 2
    stubborn.every = 2  # it is no part of its configuration
    assert discarded_samples(stubborn, stubborn.timesteps[0], 6) == (False, True) * 3

    class Demanding(diffusers.DDIMScheduler):
        def step(self, noise: Any, t: Any, sample: Any, *, extra: Any, **more: Any) -> Any:
            return super().step(noise, t, sample, **more)

    demanding = Demanding.from_config(SCHEDULE)
    demanding.set_timesteps(2)
    assert discarded_samples(demanding, demanding.timesteps[0], 2) == (False, False)


def test_a_wrap_of_step_is_for_one_scheduler_and_one_time() -> None:
    ddim, given = made("ddim"), []
    ddim.set_timesteps(2)
    x = torch.ones(1, 1, 2, 2)

    def replace(sample: Any) -> Any:
        given.append(sample)
        return sample + 1

    plain = ddim.step(x, ddim.timesteps[0], x)[0]
    patch = SchedulerPatch(ddim, replace)
    other, step = copy.deepcopy(ddim), ddim.step
    assert not torch.equal(ddim.step(x, ddim.timesteps[0], x)[0], plain)
    assert torch.equal(other.step(x, ddim.timesteps[0], x)[0], plain) and len(given) == 1
    assert discarded_samples(ddim, ddim.timesteps[0], 2) == (False, False) and len(given) == 1
    patch.remove()
    assert torch.equal(step(x, ddim.timesteps[0], x)[0], plain) and "step" not in vars(ddim)


def test_a_step_that_passes_everything_on_is_wrapped_too() -> None:
    ddim = made("ddim")
    ddim.set_timesteps(2)
    x, own = torch.ones(1, 1, 2, 2), ddim.step
    plain = own(x, ddim.timesteps[0], x + 1)[0]

    def passes_on(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    ddim.step = passes_on
    patch = SchedulerPatch(ddim, lambda sample: sample + 1)
    assert torch.equal(ddim.step(x, ddim.timesteps[0], x)[0], plain)
    assert torch.equal(ddim.step(model_output=x, timestep=ddim.timesteps[0], sample=x, return_dict=False)[0], plain)
    patch.remove()
    assert ddim.step is passes_on


def test_what_a_scheduler_wants_at_each_step() -> None:
    stock = [
        getattr(diffusers, name)() for name in ("PNDMScheduler", "LCMScheduler", "FlowMatchEulerDiscreteScheduler")
    ]
    assert [needed_at_step(each) for each in stock] == [(), (), ()]
    assert needed_at_step(diffusers.RePaintScheduler()) == ("original_image", "mask")


def test_a_scheduler_whose_steps_want_more_is_refused_before_the_first_step() -> None:
    pipe = sd()
    pipe.scheduler = diffusers.RePaintScheduler()
    with pytest.raises(BadSetting, match="RePaintScheduler want original_image and mask"):
        t2ictl.generate(pipe, "a cat", steps=2)


def test_a_recorded_scheduler_whose_steps_want_more_is_left_out() -> None:
    pipe = sd()
    own, recorded = pipe.scheduler, RecordedScheduler("RePaintScheduler", {"num_train_timesteps": 1000})
    with pytest.warns(UserWarning, match="cannot be made: its steps want original_image and mask"):
        with use_scheduler(pipe, recorded):
            assert pipe.scheduler is own

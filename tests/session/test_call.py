"""What one evaluation does to the latents, in which order, and what is reported of it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.controls.base import Plan
from t2ictl.errors import NonFiniteLoss
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.guidance.rules import StepSize
from t2ictl.ports.unet import UNetPort
from t2ictl.processors import AttentionSegregation, StructuredGuidance
from t2ictl.session.call import MoveLog
from t2ictl.session.extra_passes import Evaluation
from t2ictl.session.mover import LatentMover
from t2ictl.settings.windows import Step
from tests import tiny
from tests.session.session_cases import PROMPT

MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))
STEP = Step(index=0, total=4, timestep=999.0)


class Euler:
    """A scheduler that scales its samples by a quarter."""

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample / 4


class Named(SimpleNamespace):
    """Something with the arguments of a U-Net."""

    forward = UNet2DConditionModel.forward


def port(channels: int) -> UNetPort:
    return UNetPort(Named(config=SimpleNamespace(out_channels=channels)))


def mover(*plans: Plan, channels: int = 4) -> tuple[LatentMover, list[MoveTrace]]:
    told: list[MoveTrace] = []
    adapter: Any = SimpleNamespace(port=port(channels), pipe=SimpleNamespace(scheduler=Euler()))
    made = LatentMover(adapter=adapter, plans=plans, passes=None, report=lambda trace, step: told.extend(trace))  # type: ignore[arg-type]
    return made, told


def evaluation(sample: Tensor, *, guided: bool = True) -> Evaluation:
    batch = BatchLayout.from_counts(prompts=1, images_per_prompt=len(sample) // (1 + guided), guided=guided)
    return Evaluation(step=STEP, batch=batch, inputs={"sample": sample, "timestep": 999.0}, timestep=999.0)


def pushing(by: float) -> Plan:
    return Plan(perturb=lambda x_BCYX, step: [torch.full_like(x_BCYX, by)])


def held_at(value: float) -> Plan:
    return Plan(fixed_latents=lambda x_BCYX, step: torch.full_like(x_BCYX, value))


@pytest.mark.parametrize("turn", [False, True])
def test_images_that_are_held_come_last_and_all_rows_get_them(turn: bool) -> None:
    plans = [held_at(5.0), pushing(1.0)]
    made, told = mover(*(plans[::-1] if turn else plans))
    sample = torch.zeros(2, 4, 2, 2)
    moved = made.move([], evaluation(sample))["sample"]
    assert torch.equal(moved, torch.full_like(sample, 5.0))
    # The scheduler's sample is four times as large, and so is the move.
    assert torch.equal(made.take_up(torch.zeros(1, 4, 2, 2)), torch.full((1, 4, 2, 2), 20.0))
    assert len(told) == 1 and told[0].length.tolist() == [4.0]  # what is held is no move that anybody counts
    assert not made.is_waiting and torch.equal(made.take_up(sample), sample)


def test_of_two_that_hold_the_second_gets_what_the_first_made() -> None:
    made, _ = mover(held_at(5.0), Plan(fixed_latents=lambda x_BCYX, step: x_BCYX + 1))
    assert torch.equal(made.move([], evaluation(torch.zeros(2, 4, 2, 2)))["sample"], torch.full((2, 4, 2, 2), 6.0))


def test_further_channels_are_those_of_the_pipeline() -> None:
    sample = torch.randn(2, 9, 2, 2, generator=tiny.generator())
    made, _ = mover(pushing(1.0))
    moved = made.move([], evaluation(sample))["sample"]
    assert torch.equal(moved[:, 4:], sample[:, 4:])
    assert torch.equal(moved[:, :4], (sample[1:, :4] + 1).repeat(2, 1, 1, 1))


def test_a_move_is_added_in_float32() -> None:
    """Half precision would round the move to half the distance of two numbers, and the sum back to where it was."""
    made, _ = mover(Plan(perturb=lambda x_BCYX, step: [torch.full(x_BCYX.shape, 0.00048835 / 4)]))
    made.move([], evaluation(torch.zeros(1, 4, 2, 2, dtype=torch.float16), guided=False))
    taken = made.take_up(torch.ones(1, 4, 2, 2, dtype=torch.float16))
    assert taken.dtype == torch.float16 and taken.unique().tolist() == [1.0009765625]


def test_a_push_that_the_scheduler_cannot_hold_is_not_made() -> None:
    made, told = mover(pushing(3e4))
    sample = torch.zeros(1, 4, 2, 2, dtype=torch.float16)
    assert torch.equal(made.move([], evaluation(sample, guided=False))["sample"], sample)
    assert told[0].skipped.tolist() == [True] and torch.equal(made.take_up(sample), sample)


def entry(*skipped: bool) -> MoveTrace:
    bad_B = torch.tensor(skipped)
    nothing_B = torch.zeros(len(skipped))
    return MoveTrace(
        step=STEP, iteration=0, terms={}, total=nothing_B, length=nothing_B, refined=bad_B & False, skipped=bad_B
    )


@pytest.mark.parametrize("at", [0, 1, 2])
def test_every_entry_is_looked_at_and_told_before_the_call_ends(at: int) -> None:
    told: list[MoveTrace] = []
    log = MoveLog(raise_nonfinite=True, on_move=told.append)
    trace = [entry(False, number == at, False) for number in range(3)]
    with pytest.raises(NonFiniteLoss, match=r"images \[1\]"):
        log.add(trace, STEP)
    assert log.entries == trace == told
    MoveLog(raise_nonfinite=True).add([entry(False, False)], STEP)
    MoveLog().add(trace, STEP)


@pytest.mark.parametrize(("mode", "scale"), [("raw", 1e9), ("normalized", 20.0), ("normalized", 1e5)])
def test_half_precision_that_overflows_is_told(mode: Any, scale: float) -> None:
    """The size of the raw mode in the normalized one multiplies latents by twenty at each step."""
    pipe = tiny.sd(dtype=torch.float16)
    far = AttentionSegregation(step=StepSize(scale=scale, final_scale_sq=1.0, mode=mode))
    with pytest.warns(RuntimeWarning, match="not finite"):
        with t2ictl.controlled(pipe, [far]) as session:
            latents = tiny.run(pipe, PROMPT, steps=8)
    assert scale == 20 or torch.isfinite(latents).all()
    assert all(torch.isfinite(each.length).all() for each in session.trace)
    with pytest.raises(NonFiniteLoss, match="moved latent"):
        with t2ictl.controlled(pipe, [far], on_nonfinite="raise"):
            tiny.run(pipe, PROMPT, steps=8)


def test_noise_that_is_not_finite_after_a_move_is_told() -> None:
    pipe = tiny.sd()
    plain = tiny.run(pipe, PROMPT, steps=2)
    pipe.unet.conv_out.register_forward_hook(lambda module, given, out: out * torch.nan)
    with pytest.warns(RuntimeWarning, match="result was not finite at 1 evaluations"):
        with t2ictl.controlled(pipe, [MOVES]):
            tiny.run(pipe, PROMPT, steps=1)
    with pytest.raises(NonFiniteLoss, match="at evaluation 0"):
        with t2ictl.controlled(pipe, [MOVES], on_nonfinite="raise"):
            tiny.run(pipe, PROMPT, steps=1)
    with warnings.catch_warnings(), t2ictl.controlled(pipe, record=True):  # where nothing moved, it is not of our doing
        warnings.simplefilter("error")
        assert tiny.run(pipe, PROMPT, steps=1).shape == plain.shape


def test_between_two_evaluations_no_pass_is_active_and_no_processor_ours() -> None:
    pipe, seen = tiny.sd(), list[Any]()
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    handle = attention.register_forward_pre_hook(lambda *_: seen.append(attention.processor))

    def look(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        assert seen[-1].active_pass.current is None and attention.processor is seen[-1].previous
        return given

    with t2ictl.controlled(pipe, [StructuredGuidance()]):
        tiny.run(pipe, PROMPT, steps=2, callback_on_step_end=look)
    handle.remove()
    assert len(seen) == 2


def test_a_processor_set_within_a_pass_is_not_overwritten() -> None:
    pipe, own = tiny.sd(), AttnProcessor2_0()
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    handle = pipe.unet.conv_out.register_forward_pre_hook(lambda *_: attention.set_processor(own))
    with t2ictl.controlled(pipe, [StructuredGuidance()]):
        tiny.run(pipe, PROMPT, steps=1)
        assert attention.processor is own
    handle.remove()
    assert attention.processor is own


SINGLE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize(
    ("name", "options", "moved"),
    [
        ("DPMSolverSinglestepScheduler", SINGLE, [0, 2, 4]),
        ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}, [0]),
        ("DPMSolverSinglestepScheduler", {}, [0, 1, 2, 3, 4, 5]),
        ("KDPM2AncestralDiscreteScheduler", {}, [0, 2, 4, 6, 8, 10]),
        ("SASolverScheduler", {}, [0, 1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_no_pass_is_paid_for_a_sample_that_is_thrown_away(name: str, options: Any, moved: list[int]) -> None:
    pipe = tiny.sd()
    pipe.scheduler = getattr(diffusers, name).from_config({**pipe.scheduler.config, **options})
    plain = tiny.run(pipe, PROMPT, steps=6)
    with t2ictl.controlled(pipe):
        assert torch.equal(tiny.run(pipe, PROMPT, steps=6), plain)
    with t2ictl.controlled(pipe, [MOVES], measure=[MOVES]) as session:
        assert not torch.equal(tiny.run(pipe, PROMPT, steps=6), plain)
    assert [each.step.index for each in session.trace] == moved == [each.step.index for each in session.measured]
    assert session.cost.extra_forwards == len(moved)

"""What can silently go wrong between a session and a pipeline, and what is refused by name."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import diffusers
import pytest
import torch

import t2ictl
from t2ictl.controls.base import Control
from t2ictl.errors import ControlConflict, ForeignCall, MoveLost, UnsupportedPipeline
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.settings.windows import Step
from tests import tiny
from tests.session.pipeline_cases import sibling, unreached
from tests.session.session_cases import PROMPT, pipeline

RULE = StepSize(scale=0.05, mode="normalized")
MOVES = AttentionSegregation(step=RULE)


# -- the scheduler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "lcm", "ddim"])
def test_step_keeps_its_signature(scheduler: str) -> None:
    """Stock pipelines look at it: a step that seems to take no generator draws from the global one."""
    pipe = pipeline("sd", scheduler=scheduler)
    plain = inspect.signature(pipe.scheduler.step)
    before = torch.get_rng_state()
    with t2ictl.controlled(pipe, [MOVES]):
        first = tiny.run(pipe, PROMPT, steps=3, eta=1.0)
        assert inspect.signature(pipe.scheduler.step) == plain
        assert pipe.scheduler.step.__name__ == "step"
        again = tiny.run(pipe, PROMPT, steps=3, eta=1.0)
        other = tiny.run(pipe, PROMPT, steps=3, eta=1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_scheduler_of_the_moment() -> None:
    """The user sets another scheduler between two calls of one session."""
    pipe = pipeline("sd")
    own, other = pipe.scheduler, tiny.scheduler("euler", pipe)
    with t2ictl.controlled(pipe, [MOVES]):
        pipe.scheduler = other
        second = tiny.run(pipe, PROMPT, steps=3)
    with t2ictl.controlled(pipe, [MOVES]):
        pipe.scheduler = own
        first = tiny.run(pipe, PROMPT, steps=3)
        pipe.scheduler = other
        assert torch.equal(tiny.run(pipe, PROMPT, steps=3), second)
        assert "step" not in own.__dict__
        pipe.scheduler = own
        assert torch.equal(tiny.run(pipe, PROMPT, steps=3), first)
    assert "step" not in own.__dict__ and "step" not in other.__dict__
    assert not torch.equal(tiny.run(pipe, PROMPT, steps=3), first)


def test_copy_of_a_wrapped_scheduler_is_a_scheduler_of_its_own() -> None:
    pipe = tiny.sd()
    plain = tiny.run(pipe, PROMPT, steps=3)
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=3)
        own, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
        assert pipe.scheduler.step.__self__ is pipe.scheduler
        assert torch.equal(tiny.run(pipe, PROMPT, steps=3), expected)
    assert torch.equal(tiny.run(pipe, PROMPT, steps=3), plain)
    assert "step" not in own.__dict__


@pytest.mark.parametrize("at", [0, 2])
def test_scheduler_replaced_in_the_middle(at: int) -> None:
    pipe = tiny.sd()
    replacement, seen = tiny.scheduler("ddim", pipe), []
    replacement.set_timesteps(3)

    def denoise(module: Any, inputs: Any, output: Any) -> None:
        seen.append(1)
        if len(seen) == at + 1:
            pipe.scheduler = replacement

    pipe.unet.conv_out.register_forward_hook(denoise)
    own = pipe.scheduler
    with t2ictl.controlled(pipe):  # nothing moves, nothing is lost
        assert torch.isfinite(tiny.run(pipe, PROMPT, steps=3)).all()
    pipe.scheduler = own
    seen.clear()
    with pytest.raises(MoveLost, match="evaluation 0" if at == 0 else "last evaluation"):
        with t2ictl.controlled(pipe, [MOVES]):
            tiny.run(pipe, PROMPT, steps=3)
    assert "step" not in own.__dict__ and "step" not in replacement.__dict__


def test_refinement_that_falls_on_a_discarded_evaluation_is_made_at_the_next() -> None:
    """Without this a two-stage scheduler, where every other evaluation is discarded, would hardly ever refine."""
    pipe = pipeline("sd", scheduler="heun")
    refinement = Refinement(thresholds=((0.45, 1.0),), max_iterations=2)  # never reached: evaluation 3 of 7
    controls = [AttendAndExcite(step=RULE, refinement=refinement, window=t2ictl.settings.windows.Window())]
    with t2ictl.controlled(pipe, controls) as session:
        tiny.run(pipe, PROMPT, steps=4)
    passes = [entry.step.index for entry in session.trace]
    assert passes == [0, 2, 4, 4, 4, 6]
    assert refinement.target(3, 7) == 1.0


def test_parity_moves_also_where_the_sample_is_discarded() -> None:
    pipe = pipeline("sd", scheduler="pndm")
    controls = [AttendAndExcite(step=RULE, refinement=None, parity=True, window=t2ictl.settings.windows.Window())]
    with t2ictl.controlled(pipe, controls) as session:
        tiny.run(pipe, PROMPT, steps=3)
    assert [entry.step.index for entry in session.trace] == [0, 1, 2, 3]


# -- another pipeline on the same denoiser ----------------------------------------------------------------------------


def broken_off(pipe: Any, after: int, *, by: str) -> None:
    """A call that ends early: by the pipeline's own flag, or by an error in the user's callback."""

    def callback(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        if index + 1 == after:
            if by == "error":
                raise KeyError("mine")
            pipe._interrupt = True
        return given

    try:
        tiny.run(pipe, PROMPT, steps=4, callback_on_step_end=callback)
    except KeyError:
        pass


@pytest.mark.parametrize("own_scheduler", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("moment", ["before", "finished", "interrupt", "error"])
def test_another_pipeline_on_the_same_denoiser(moment: str, strength: float, own_scheduler: bool) -> None:
    pipe = tiny.sd()
    other = sibling(pipe, **({"scheduler": tiny.scheduler("ddim", pipe)} if own_scheduler else {}))
    plain = tiny.run(other, "a cat", strength=strength)
    with t2ictl.controlled(pipe, [MOVES], record=True) as session:
        if moment == "finished":
            tiny.run(pipe, PROMPT, steps=2)
        elif moment in ("interrupt", "error"):
            broken_off(pipe, 2, by=moment)
        with pytest.raises((ForeignCall, MoveLost)):
            tiny.run(other, "a cat", strength=strength)
    # Noticed before it computes anything, but for the one that starts at the very timestep that is due, with a
    # scheduler of its own: that one is noticed when its first step takes up no move.
    is_alike = moment == "error" and own_scheduler and strength == 0.5
    assert session.cost.forwards == (0 if moment == "before" else 2 * 2) + 2 * is_alike
    assert torch.equal(tiny.run(other, "a cat", strength=strength), plain)


def test_another_pipeline_that_goes_on_where_the_call_ended() -> None:
    """A schedule cut short: the next timestep would be the right one, had this call not made all that it makes."""
    pipe = tiny.sdxl()
    parts = pipe.components | {"scheduler": tiny.scheduler("euler", pipe)}
    other = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        latents = tiny.run(pipe, PROMPT, steps=4, denoising_end=0.5)
        with pytest.raises(ForeignCall, match="after evaluation 2 of 2"):
            other(PROMPT, image=latents, num_inference_steps=4, denoising_start=0.5, output_type="latent")
    assert session.cost.forwards == 2 * 2


def test_another_pipeline_right_after_encoding() -> None:
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, [MOVES]) as session:
        pipe.encode_prompt(PROMPT, "cpu", 1, True)
        with pytest.raises(ForeignCall, match="text embeddings"):
            tiny.run(sibling(pipe), "a cat")
    assert session.cost.forwards == 0


def test_one_session_at_a_time() -> None:
    pipe = pipeline("sd")
    plain = tiny.run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)
        for again in (pipe, sibling(pipe)):
            with pytest.raises(ControlConflict, match="already has an open session"):
                with t2ictl.controlled(again, [MOVES]):
                    raise AssertionError("the second session opened")
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    with t2ictl.controlled(sibling(pipe), [MOVES]), pytest.raises(ForeignCall):
        tiny.run(pipe, PROMPT, steps=2)


def test_two_step_rules_conflict() -> None:
    pipe = pipeline("sd")
    both: list[Control] = [MOVES, AttendAndExcite(step=StepSize(scale=0.01, mode="normalized"))]
    with unreached(pipe), pytest.raises(ControlConflict, match="attention_segregation and attend_and_excite"):
        with t2ictl.controlled(pipe, both):
            tiny.run(pipe, PROMPT)


# -- pipelines that are refused ---------------------------------------------------------------------------------------


def test_rows_that_nobody_explains() -> None:
    base = tiny.sd()
    pipe = diffusers.StableDiffusionPAGPipeline(
        **base.components, requires_safety_checker=False, pag_applied_layers=["mid"]
    )
    pipe.set_progress_bar_config(disable=True)
    assert torch.isfinite(tiny.run(pipe, PROMPT, steps=1)).all()
    with unreached(pipe), pytest.raises(UnsupportedPipeline, match="3 rows where 2 were expected"):
        with t2ictl.controlled(pipe, [MOVES]):
            tiny.run(pipe, PROMPT, steps=1)


def test_pipelines_of_other_families() -> None:
    class Other:
        unet = torch.nn.Linear(1, 1)

    for pipe in (Other(), object(), diffusers.DDPMPipeline(tiny.unet(), tiny.scheduler("ddim"))):
        with pytest.raises(UnsupportedPipeline, match="SD 1.x, 2.x, SDXL"):
            t2ictl.controlled(pipe)


def test_compiled_denoisers() -> None:
    def whole(pipe: Any) -> None:
        pipe.unet = torch.compile(pipe.unet, backend="eager")

    def in_place(pipe: Any) -> None:
        pipe.unet.compile(backend="eager")

    def in_parts(pipe: Any) -> None:
        pipe.unet.compile_repeated_blocks(backend="eager")

    for compile_it in (whole, in_place, in_parts):
        pipe = tiny.sd()
        session = t2ictl.controlled(pipe, [MOVES])
        compile_it(pipe)
        with pytest.raises(UnsupportedPipeline, match="compiled"):
            t2ictl.controlled(pipe, [MOVES])
        with pytest.raises(UnsupportedPipeline, match="compiled|replaced"), session:
            tiny.run(pipe, PROMPT, steps=1)
    pipe = tiny.sd()
    plain = pipe.unet
    whole(pipe)
    pipe.unet = pipe.unet._orig_mod  # the remedy of the message
    with t2ictl.controlled(pipe, [MOVES]):
        assert torch.isfinite(tiny.run(pipe, PROMPT, steps=1)).all()
    assert pipe.unet is plain


def test_weights_that_are_elsewhere() -> None:
    pipe = tiny.sd()
    with torch.device("meta"):
        pipe.unet.mid_block.resnets[0].conv1.weight = torch.nn.Parameter(torch.empty(16, 16, 3, 3))
    with unreached(pipe), pytest.raises(UnsupportedPipeline, match="enable_model_cpu_offload"):
        with t2ictl.controlled(pipe, [MOVES]):
            pipe.encode_prompt(PROMPT, "cpu", 1, True)


def test_inference_mode() -> None:
    pipe = pipeline("sd")
    with torch.inference_mode():
        with unreached(pipe), pytest.raises(UnsupportedPipeline, match="inference_mode"):
            with t2ictl.controlled(pipe, [MOVES]):
                tiny.run(pipe, PROMPT, steps=1)
        with t2ictl.controlled(pipe, record=True) as session:  # maps need no gradient
            tiny.run(pipe, PROMPT, steps=1)
    assert session.record.map("circle").shape == (16, 16)


def test_gradient_checkpointing_stays_out_of_the_way() -> None:
    """The layers of a checkpointed pass run twice, the second time when nobody listens to their maps."""
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)
    pipe.unet.enable_gradient_checkpointing()
    with t2ictl.controlled(pipe, [MOVES]):
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)
    assert pipe.unet.is_gradient_checkpointing


def test_weights_that_ask_for_a_gradient_round_as_they_did() -> None:
    """Torch folds a product in another way where a weight asks for a gradient, with gradients switched off too."""
    pipe = pipeline("sd2")
    flags: set[tuple[bool, bool]] = set()

    def look(module: Any, inputs: Any) -> None:
        flags.add((torch.is_grad_enabled(), module.weight.requires_grad))

    plain = tiny.run(pipe, PROMPT, steps=3)
    with t2ictl.controlled(pipe):
        assert torch.equal(tiny.run(pipe, PROMPT, steps=3), plain)
    handle = pipe.unet.conv_in.register_forward_pre_hook(look)
    with t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=1)
    handle.remove()
    # The session's own pass asks for no gradient of weights; the pass that makes the image has the user's flags.
    assert flags == {(True, False), (False, True)}


def test_objective_sees_each_evaluation_once() -> None:
    """Steps are numbered as the pipeline makes them, also where a call makes fewer than the schedule has."""
    pipe = pipeline("sd_img2img")
    seen: list[Step] = []
    with t2ictl.controlled(pipe, [MOVES]) as session:
        tiny.run(pipe, PROMPT, steps=4, strength=0.5)
    seen = [entry.step for entry in session.trace]
    assert [(step.index, step.total) for step in seen] == [(0, 2), (1, 2)]
    assert seen[0].timestep > seen[1].timestep

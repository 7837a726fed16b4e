"""Whatever ends a session, the pipeline is afterwards what it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

import t2ictl
from t2ictl.errors import SpanNotFound, UnsupportedPipeline
from t2ictl.guidance.rules import StepSize
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from tests import tiny
from tests.session.pipeline_cases import state
from tests.session.session_cases import PROMPT

MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))


def prepared(build: Callable[[], Any]) -> tuple[Any, torch.Tensor]:
    """A pipeline after one plain call, some of its weights frozen by the user, and the latents of that call."""
    pipe = build()
    for parameter in list(pipe.unet.parameters())[::2]:
        parameter.requires_grad_(False)
    return pipe, tiny.run(pipe, PROMPT, steps=4)


class Stop(Exception):
    """An error of the user's own."""


@contextmanager
def in_third_evaluation(pipe: Any, error: type[BaseException]) -> Iterator[dict[str, Any]]:
    """Raise inside the third pass that makes the image; passes of the session end before the last layer."""
    count = 0

    def look(module: Any, inputs: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise error

    handle = pipe.unet.conv_out.register_forward_pre_hook(look)
    yield {}
    handle.remove()


@contextmanager
def in_backward(pipe: Any, error: type[BaseException]) -> Iterator[dict[str, Any]]:
    """Raise from inside the session's backward pass."""

    def look(gradient: torch.Tensor) -> None:
        raise error

    def listen(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(look)

    handle = pipe.unet.conv_in.register_forward_hook(listen)
    yield {}
    handle.remove()


@contextmanager
def in_callback(pipe: Any, error: type[BaseException]) -> Iterator[dict[str, Any]]:
    """Raise from the user's own callback."""

    def callback(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            raise error
        return given

    yield {"callback_on_step_end": callback}


PLACES = [in_third_evaluation, in_backward, in_callback]


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
def test_restored_after_a_break(build: Any, place: Any, error: type[BaseException]) -> None:
    pipe, plain = prepared(build)
    before = state(pipe)
    with place(pipe, error) as call:
        with pytest.raises(error), t2ictl.controlled(pipe, [MOVES], record=True) as session:
            pipe.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
            during = state(pipe)
            tiny.run(pipe, PROMPT, steps=4, **call)
    assert session.cost.backwards > 0
    assert during["pipe.functions"] != before["pipe.functions"]
    assert during["denoiser.keys"] != before["denoiser.keys"]
    assert during["processors"] == before["processors"]  # ours stand there for the length of an evaluation only
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)


@pytest.mark.parametrize("build", [tiny.sd, tiny.sd2, tiny.sdxl, tiny.sd_controlnet, tiny.sd_lcm])
def test_restored_after_normal_end(build: Any) -> None:
    pipe, plain = prepared(build)
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES, AttendAndExcite(step=MOVES.step)], record=True):
        controlled = tiny.run(pipe, PROMPT, steps=4)
        assert state(pipe)["gradients"] == before["gradients"]  # also inside, for whoever looks
    assert not torch.equal(controlled, plain)
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)


def test_restored_when_the_plan_fails_and_when_opening_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain = prepared(tiny.sd)
    before = state(pipe)
    with pytest.raises(SpanNotFound), t2ictl.controlled(pipe, [AttentionSegregation(concepts=("giraffe",))]):
        tiny.run(pipe, PROMPT)
    assert state(pipe) == before

    def fail(*args: Any) -> None:
        raise Stop

    monkeypatch.setattr(HookRegistry, "register_hook", fail)
    with pytest.raises(Stop), t2ictl.controlled(pipe, [MOVES]):
        pass
    monkeypatch.undo()
    pipe.unet.__dict__.pop("_diffusers_hook", None)
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)


def test_a_session_goes_on_after_a_call_that_was_broken_off() -> None:
    pipe, plain = prepared(tiny.sd)
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=4)
    before = state(pipe)
    for place in PLACES:
        with t2ictl.controlled(pipe, [MOVES]):
            with place(pipe, KeyboardInterrupt) as call, pytest.raises(KeyboardInterrupt):
                tiny.run(pipe, PROMPT, steps=4, **call)
            assert torch.equal(tiny.run(pipe, PROMPT, steps=4), expected)
        assert state(pipe) == before


def test_two_sessions_one_after_the_other_and_one_object_twice() -> None:
    pipe, plain = prepared(tiny.sd)
    before = state(pipe)
    session = t2ictl.controlled(pipe, [MOVES])
    results = []
    for _ in range(2):
        with session:
            results.append(tiny.run(pipe, PROMPT, steps=4))
        assert state(pipe) == before
        with t2ictl.controlled(pipe, [MOVES]):
            results.append(tiny.run(pipe, PROMPT, steps=4))
        assert state(pipe) == before
    assert all(torch.equal(each, results[0]) for each in results)
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)


# -- beside the hooks of others ---------------------------------------------------------------------------------------


class Counter(ModelHook):
    """Somebody else's hook: counts passes and doubles nothing."""

    count = 0

    def post_forward(self, module: Any, output: Any) -> Any:
        self.count += 1
        return output


def test_beside_a_hook_that_was_there_before() -> None:
    pipe, plain = prepared(tiny.sd)
    counter = Counter()
    HookRegistry.check_if_exists_or_initialize(pipe.unet).register_hook(counter, "counter")
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES]):
        moved = tiny.run(pipe, PROMPT, steps=2)
    assert counter.count == 2  # a pass that ends early does not come to its end there
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)
    assert counter.count == 6
    pipe.unet._diffusers_hook.remove_hook("counter")
    with t2ictl.controlled(pipe, [MOVES]):
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), moved)


@pytest.mark.parametrize("calls_with_both", [0, 1, 2])
@pytest.mark.parametrize("removed_inside", [True, False])
def test_beside_a_hook_that_comes_inside(calls_with_both: int, removed_inside: bool) -> None:
    pipe, plain = prepared(tiny.sd)
    before = state(pipe)
    counter = Counter()
    with t2ictl.controlled(pipe, [MOVES]) as session:
        expected = tiny.run(pipe, PROMPT, steps=2)
        HookRegistry.check_if_exists_or_initialize(pipe.unet).register_hook(counter, "counter")
        for _ in range(calls_with_both):
            assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)
        if removed_inside:
            pipe.unet._diffusers_hook.remove_hook("counter")
            assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)
    assert counter.count == 2 * calls_with_both
    assert session.cost.forwards == 2 * 2 * (1 + calls_with_both + removed_inside)
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)
    if removed_inside:
        assert state(pipe) == before
    else:
        assert counter.count == 2 * calls_with_both + 4
        pipe.unet._diffusers_hook.remove_hook("counter")
        assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)


def test_a_hook_that_leaves_inside_does_not_come_back() -> None:
    pipe, plain = prepared(tiny.sd)
    counter = Counter()
    HookRegistry.check_if_exists_or_initialize(pipe.unet).register_hook(counter, "counter")
    with t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=1)
        pipe.unet._diffusers_hook.remove_hook("counter")
        tiny.run(pipe, PROMPT, steps=1)
    seen = counter.count
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)
    assert counter.count == seen


def test_forward_made_anew_between_two_calls() -> None:
    """What model offloading does by hand: after each call ``forward`` is put back and wrapped again."""
    pipe, plain = prepared(tiny.sd)
    seen = []
    original = pipe.unet.forward

    def wrap() -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.append(1)
            return original(*args, **kwargs)

        pipe.unet.forward = forward

    wrap()
    with t2ictl.controlled(pipe, [MOVES]) as session:
        first = tiny.run(pipe, PROMPT, steps=2)
        wrap()
        second = tiny.run(pipe, PROMPT, steps=2)
        wrap()
        last = pipe.unet.forward
    assert torch.equal(first, second)
    assert session.cost.extra_forwards == 4
    assert pipe.unet.__dict__["forward"] is last
    assert "_diffusers_hook" not in pipe.unet.__dict__
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)


def test_a_wrap_around_the_hook_outlives_the_session() -> None:
    pipe, plain = prepared(tiny.sd)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        inner = pipe.unet.forward
        pipe.unet.forward = lambda *args, **kwargs: inner(*args, **kwargs)
        tiny.run(pipe, PROMPT, steps=2)
    assert session.cost.forwards == 4
    assert torch.equal(tiny.run(pipe, PROMPT, steps=4), plain)


# -- processors with weights ------------------------------------------------------------------------------------------


def give_image_processors(pipe: Any) -> None:
    """Put IP-Adapter processors, which carry weights, at all cross-attention layers, as loading an adapter does."""
    processors = dict(pipe.unet.attn_processors)
    for name in processors:
        if "attn2" in name:
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_out[0].in_features
            with torch.random.fork_rng(devices=[]):
                processors[name] = IPAdapterAttnProcessor2_0(width, tiny.TEXT_WIDTH, num_tokens=(4,), scale=0.5)
    pipe.unet.set_attn_processor(processors)


def test_weights_of_a_processor_stay_in_the_denoiser() -> None:
    """Whatever moves the denoiser to another device finds the weights of a processor only inside of it."""
    pipe = tiny.sd()
    give_image_processors(pipe)
    tiny.run(pipe, PROMPT, steps=1)
    before = state(pipe)
    weights = {id(each) for each in pipe.unet.parameters()}
    with t2ictl.controlled(pipe, record=True) as session:
        pipe.encode_prompt(PROMPT, "cpu", 1, True)
        assert {id(each) for each in pipe.unet.parameters()} == weights
        assert session.controls == ()
        seen = []

        def look(module: Any, inputs: Any) -> None:
            seen.append((type(module.processor).__name__, {id(each) for each in pipe.unet.parameters()}))

        handle = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.register_forward_pre_hook(look)
        tiny.run(pipe, PROMPT, steps=1)
        handle.remove()
        assert seen == [("ControlledAttention", weights)]
    assert state(pipe) == before


def test_replaced_denoiser_is_noticed() -> None:
    pipe, other = tiny.sd(), tiny.sd(seed=1)
    before = state(pipe)
    with pytest.raises(UnsupportedPipeline, match="replaced"), t2ictl.controlled(pipe, [MOVES]):
        mine, pipe.unet = pipe.unet, other.unet
        tiny.run(pipe, PROMPT, steps=1)
    pipe.unet = mine
    assert before["processors"] == state(pipe)["processors"]
    assert "forward" not in mine.__dict__ and "forward" not in other.unet.__dict__

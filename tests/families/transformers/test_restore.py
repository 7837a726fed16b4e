"""Whatever ends a session on a transformer, the pipeline is afterwards what it was before."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.controls.loss_control import LossControl
from t2ictl.errors import SpanNotFound
from t2ictl.processors import AttentionSegregation
from tests.families.transformers.cases import DISTINCT, FAMILIES, MOVES, PIPELINES, PROMPT, excite, families
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run

STEPS = 3


class Stop(Exception):
    """An error of the user's own."""


def callback_name(pipe: Any) -> str:
    """PixArt has the older callback."""
    return "callback" if type(pipe).__name__.startswith("PixArt") else "callback_on_step_end"


@contextmanager
def in_step(pipe: Any, error: type[BaseException]) -> Iterator[dict[str, Any]]:
    """Raise from inside the second scheduler step."""
    step, count = pipe.scheduler.step, [0]

    @functools.wraps(step)
    def broken(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise error
        return step(*args, **kwargs)

    pipe.scheduler.step = broken
    yield {}
    assert pipe.scheduler.__dict__.pop("step") is broken


@contextmanager
def in_backward(pipe: Any, error: type[BaseException]) -> Iterator[dict[str, Any]]:
    """Raise from inside the session's backward pass."""

    def fail(gradient: torch.Tensor) -> None:
        raise error

    def listen(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(fail)

    handle = next(each for each in pipe.transformer.modules() if isinstance(each, torch.nn.LayerNorm))
    with handle.register_forward_hook(listen):
        yield {}


@contextmanager
def in_transformer(pipe: Any, error: type[BaseException]) -> Iterator[dict[str, Any]]:
    """Raise behind the last block of a pass that makes the image."""
    count = [0]

    def fail(module: Any, inputs: Any) -> None:
        count[0] += not torch.is_grad_enabled()
        if count[0] == 2:
            raise error

    with pipe.transformer.proj_out.register_forward_pre_hook(fail):
        yield {}


@contextmanager
def in_callback(pipe: Any, error: type[BaseException]) -> Iterator[dict[str, Any]]:
    """Raise from the user's own callback."""

    def callback(*given: Any) -> dict[str, Any]:
        if 1 in given[:2]:
            raise error
        return {}

    yield {callback_name(pipe): callback}


PLACES = [in_step, in_backward, in_transformer, in_callback]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("name", DISTINCT)
def test_restored_after_a_break(name: str, place: Any) -> None:
    pipe = FAMILIES[name]()
    for parameter in list(pipe.transformer.parameters())[::2]:
        parameter.requires_grad_(False)
    plain = run(pipe, PROMPT, steps=STEPS)
    before = state(pipe)
    for error in (KeyboardInterrupt, Stop):
        with place(pipe, error) as call, pytest.raises(error):
            with t2ictl.controlled(pipe, [MOVES], record=True) as session:
                run(pipe, PROMPT, steps=STEPS, **call)
        assert session.cost.extra_forwards > 0
        assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


@families
def test_a_loss_that_raises(name: str) -> None:
    pipe = FAMILIES[name]()
    plain = run(pipe, PROMPT, steps=STEPS)
    before = state(pipe)

    def broken(maps_BNYX: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        raise Stop

    with pytest.raises(Stop), t2ictl.controlled(pipe, [LossControl(broken)]):
        run(pipe, PROMPT, steps=STEPS)
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


@pytest.mark.parametrize("name", DISTINCT)
def test_a_session_goes_on_after_a_call_that_was_broken_off(name: str) -> None:
    pipe = FAMILIES[name]()
    with t2ictl.controlled(pipe, [MOVES]):
        expected = run(pipe, PROMPT, steps=STEPS)
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES]):
        for place in (in_backward, in_transformer, in_callback):
            with place(pipe, KeyboardInterrupt) as call, pytest.raises(KeyboardInterrupt):
                run(pipe, PROMPT, steps=STEPS, **call)
            assert torch.equal(run(pipe, PROMPT, steps=STEPS), expected)
    assert state(pipe) == before


# ControlNets of SD3 and HunyuanDiT draw from the global random numbers, whatever generator is given.
DRAWING = [*DISTINCT, "sd3_controlnet", "hunyuan_dit_controlnet", "flux_img2img", "chroma_inpaint"]


@pytest.mark.parametrize("name", DRAWING)
def test_global_random_numbers_are_drawn_as_without_a_session(name: str) -> None:
    pipe, drawn = PIPELINES[name](), []
    for controls in (None, [], [excite()]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            if controls is None:
                latents = run(pipe, PROMPT, steps=2, seed=None)
            else:
                with t2ictl.controlled(pipe, controls):
                    latents = run(pipe, PROMPT, steps=2, seed=None)
            drawn.append((latents, torch.get_rng_state()))
    assert torch.equal(drawn[0][0], drawn[1][0]) and not torch.equal(drawn[0][0], drawn[2][0])
    assert all(torch.equal(each[1], drawn[0][1]) for each in drawn)


@families
def test_restored_when_the_plan_fails(name: str) -> None:
    pipe = FAMILIES[name]()
    plain = run(pipe, PROMPT, steps=STEPS)
    before = state(pipe)
    with pytest.raises(SpanNotFound), t2ictl.controlled(pipe, [AttentionSegregation(concepts=("giraffe",))]):
        run(pipe, PROMPT, steps=STEPS)
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)

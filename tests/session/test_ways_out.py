"""How sessions end: closed ones that somebody has kept, breaks at any line, two threads, and the last way out."""

from __future__ import annotations

import asyncio
import copy
import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import diffusers
import pytest
import torch

import t2ictl
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.errors import ControlConflict, ForeignCall, MoveLost
from t2ictl.guidance.rules import StepSize
from t2ictl.processors import AttentionSegregation, StructuredGuidance
from tests import tiny
from tests.session.pipeline_cases import sibling, state
from tests.session.session_cases import PROMPT

MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))


def used(pipe: Any) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """A pipeline after one call, its latents, and what it then is."""
    plain = tiny.run(pipe, PROMPT, steps=2)
    return pipe, plain, state(pipe)


# -- closed sessions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["encode_prompt", "shallow copy"])
def test_what_was_kept_of_a_closed_session_installs_nothing(kept: str) -> None:
    pipe, plain, before = used(tiny.sd())
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)
        encode, other = pipe.encode_prompt, copy.copy(pipe)
    if kept == "encode_prompt":
        found = encode(PROMPT, "cpu", 1, True)
        assert torch.equal(found[0], pipe.encode_prompt(PROMPT, "cpu", 1, True)[0])
    else:
        assert torch.equal(tiny.run(other, PROMPT, steps=2), plain)
        with t2ictl.controlled(other, [MOVES]):
            assert torch.equal(tiny.run(other, PROMPT, steps=2), expected)
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)


def test_a_step_that_was_kept_passes_on() -> None:
    pipe, plain, _ = used(tiny.sd())
    with t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=2)
        step = pipe.scheduler.step
    pipe.scheduler.step = step
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        moved = tiny.run(pipe, PROMPT, steps=2)
    assert not torch.equal(moved, plain) and len(session.trace) == 2
    assert pipe.scheduler.step is step


@pytest.mark.parametrize("by", ["release", "another thread"])
def test_a_session_that_is_closed_while_a_control_plans(by: str) -> None:
    """As when an awaited call is cancelled: its thread goes on, and the block has long been left."""
    pipe, plain, before = used(tiny.sd())
    planning, closed = threading.Event(), threading.Event()

    class Slow(Control):
        name, needs_words, has_losses = "slow", False, False

        def plan(self, context: PlanContext) -> Plan:
            planning.set()
            assert closed.wait(10)
            return Plan()

    async def cancelled() -> list[BaseException]:
        errors: list[BaseException] = []

        def call() -> None:
            try:
                tiny.run(pipe, PROMPT, steps=2)
            except BaseException as error:
                errors.append(error)

        worker = threading.Thread(target=call)
        with t2ictl.controlled(pipe, [Slow()]):
            worker.start()
            assert planning.wait(10)
            if by == "release":
                assert t2ictl.release(pipe)
        closed.set()
        worker.join()
        return errors

    (error,) = asyncio.run(cancelled())
    assert isinstance(error, ForeignCall) and "was closed while" in str(error)
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)


def test_the_last_way_out() -> None:
    pipe, plain, before = used(tiny.sd())
    assert not t2ictl.release(pipe)
    session = t2ictl.controlled(pipe, [MOVES, StructuredGuidance()], record=True)
    session.__enter__()
    moved = tiny.run(pipe, PROMPT, steps=2)
    with pytest.raises(ControlConflict, match=r"t2ictl\.release\(pipe\)"):
        t2ictl.controlled(pipe, [MOVES]).__enter__()
    assert t2ictl.release(sibling(pipe)) and not session.is_open  # whichever pipeline has the denoiser
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    with session:  # and it opens again
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), moved)
    assert not t2ictl.release(object()) and state(pipe) == before


def test_a_block_whose_session_was_released_is_left_in_peace() -> None:
    pipe, plain, before = used(tiny.sd())
    with t2ictl.controlled(pipe, [MOVES]) as session:
        tiny.run(pipe, PROMPT, steps=2)
        assert t2ictl.release(pipe)
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    assert len(session.trace) == 2 and state(pipe) == before


@pytest.mark.parametrize("is_one_object", [False, True])
def test_of_two_threads_one_has_the_pipeline(is_one_object: bool) -> None:
    pipe, plain, before = used(tiny.sd())

    def attempt() -> tuple[list[Any], list[str]]:
        one = t2ictl.controlled(pipe)
        sessions = [one, one if is_one_object else t2ictl.controlled(pipe)]
        start, results = threading.Barrier(2), list[str]()

        def enter(session: Any) -> None:
            start.wait()
            try:
                session.__enter__()
                results.append("open")
            except ControlConflict:
                results.append("refused")

        workers = [threading.Thread(target=enter, args=(each,)) for each in sessions]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sessions, sorted(results)

    for _ in range(10):
        sessions, results = attempt()
        assert results == ["open", "refused"]
        next(each for each in sessions if each.is_open).__exit__(None, None, None)
        assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)


# -- what a session leaves behind it ----------------------------------------------------------------------------------


def test_records_go_with_their_last_reader() -> None:
    pipe, seen = tiny.sd(), list[Any]()
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            with t2ictl.controlled(pipe, [MOVES, StructuredGuidance()], record=True, measure=[MOVES]) as session:
                tiny.run(pipe, PROMPT, steps=2)
            seen += [weakref.ref(session), weakref.ref(session.record)]
            del session
        assert [each() for each in seen] == [None] * 4
    finally:
        gc.enable()


def test_the_active_pass_ends_with_the_session() -> None:
    """A pass that broke off, in a session whose processors somebody has kept."""
    pipe, _, _ = used(tiny.sd())
    kept: list[Any] = []

    def stop(*_: Any) -> None:
        kept.append(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor)
        raise KeyboardInterrupt

    handle = pipe.unet.conv_out.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt), t2ictl.controlled(pipe, [StructuredGuidance()]):
        tiny.run(pipe, PROMPT, steps=2)
    handle.remove()
    assert kept[0].active_pass.current is None


def test_a_users_own_encode_prompt_comes_back() -> None:
    pipe, plain, _ = used(tiny.sd())
    own, calls = pipe.encode_prompt, list[int]()

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    pipe.encode_prompt = encode_prompt
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=2)
    assert pipe.encode_prompt is encode_prompt and state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain) and len(calls) == 2


@contextmanager
def lost_move(pipe: Any) -> Iterator[None]:
    """The scheduler is replaced while the denoiser computes for the last step."""
    replacement, count = tiny.scheduler("ddim", pipe), 0
    replacement.set_timesteps(2)
    own = pipe.scheduler

    def replace(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            pipe.scheduler = replacement

    handle = pipe.unet.conv_out.register_forward_hook(replace)
    yield
    handle.remove()
    pipe.scheduler = own


def test_a_lost_move_is_told_once() -> None:
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)
        with lost_move(pipe):
            tiny.run(pipe, PROMPT, steps=2)
        with pytest.raises(MoveLost):
            tiny.run(pipe, PROMPT, steps=2)
        for _ in range(2):
            assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)


def test_an_error_of_the_block_hides_no_lost_move_behind_it() -> None:
    pipe = tiny.sd()
    with pytest.raises(ZeroDivisionError), t2ictl.controlled(pipe, [MOVES]), lost_move(pipe):
        tiny.run(pipe, PROMPT, steps=2)
        raise ZeroDivisionError


def test_the_record_is_that_of_the_last_call_from_its_beginning() -> None:
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, record=True, measure=[MOVES]) as session:
        for text, steps in ((PROMPT, 3), ("a cat and a dog", 2)):
            tiny.run(pipe, text, steps=steps)
        assert session.record.prompts[0].text == "a cat and a dog" and session.record.steps == 2
        assert len(session.measured) == 2
    with t2ictl.controlled(pipe, record=True) as alone:
        tiny.run(pipe, "a cat and a dog", steps=2)
    assert torch.equal(session.record.map("cat"), alone.record.map("cat"))


def test_cost_adds_up_over_blocks() -> None:
    pipe, session = tiny.sd(), t2ictl.controlled(tiny.sd())
    session = t2ictl.controlled(pipe)
    with session:
        tiny.run(pipe, PROMPT, steps=3)
    first = copy.copy(session.cost)
    session.cost.peak_bytes = 2**60  # a block before, in which more was used
    with session:
        pass
    assert session.cost.seconds > first.seconds > 0
    assert session.cost.peak_bytes == 2**60 and session.cost.forwards == first.forwards


# -- breaks at any line -----------------------------------------------------------------------------------------------


class Break(BaseException):
    """Stands for a KeyboardInterrupt, which may come between any two lines."""


@contextmanager
def broken_at(number: int, is_ours: Callable[[FrameType], bool]) -> Iterator[list[int]]:
    """Raise at one line of our own code; counts the lines that it has seen."""
    seen = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not is_ours(frame):
            return None
        if event == "line":
            seen[0] += 1
            if seen[0] == number:
                sys.settrace(None)
                raise Break
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


def in_opening_and_closing(frame: FrameType) -> bool:
    name, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
    if name == "t2ictl.session.session":
        return function in ("__enter__", "__exit__")
    return name in ("t2ictl.session.patches", "t2ictl.session.hooks", "t2ictl.patching") and function != "<listcomp>"


def session_of(pipe: Any) -> None:
    with t2ictl.controlled(pipe, [MOVES]):
        pipe.encode_prompt(PROMPT, "cpu", 1, True)
        pipe.scheduler.set_timesteps(1)
        states = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
        t = pipe.scheduler.timesteps[0]
        pipe.scheduler.step(pipe.unet(torch.ones(1, 4, 8, 8), t, states).sample, t, torch.ones(1, 4, 8, 8))


def test_a_break_at_any_line_of_opening_and_closing_leaves_a_way_out() -> None:
    pipe, plain, before = used(tiny.sd())
    for _ in range(2):  # the first one measures the scheduler
        with torch.no_grad(), broken_at(0, in_opening_and_closing) as lines:
            session_of(pipe)
    after = state(pipe)
    assert lines[0] > 150
    numbers = sorted({*range(1, 26), *range(26, lines[0], 1 + lines[0] // 12), *range(lines[0] - 25, lines[0] + 1)})
    left = []
    for number in numbers:
        with torch.no_grad(), pytest.raises(Break), broken_at(number, in_opening_and_closing):
            session_of(pipe)
        if state(pipe) != after:
            left.append(number)
            t2ictl.release(pipe)
        assert state(pipe) == after, number
    # The very first and last lines cannot be guarded: nothing is held yet, or the block is being entered or left.
    assert len(left) <= 0.05 * len(numbers), left
    assert before["processors"] == after["processors"]
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)


def test_a_skipped_update_is_told_at_the_end_of_the_block() -> None:
    pipe = tiny.sd()
    far = AttentionSegregation(step=StepSize(scale=1e38, mode="raw"))
    with pytest.warns(RuntimeWarning, match="updates were skipped"), t2ictl.controlled(pipe, [far]):
        tiny.run(pipe, PROMPT, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with t2ictl.controlled(pipe, [MOVES]):
            tiny.run(pipe, PROMPT, steps=1)
    assert isinstance(pipe, diffusers.StableDiffusionPipeline)

"""Prompts that callbacks encode while a session is at work, and copies that are made of its pipeline."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.processors import AttentionSegregation, StructuredGuidance
from tests import tiny
from tests.session.pipeline_cases import state
from tests.session.session_cases import MOVES, PROMPT, at_step, pipeline

# -- prompts ----------------------------------------------------------------------------------------------------------


def schedule(at: int, text: str) -> dict[str, Any]:
    """Go on with another prompt from a step on, as prompt schedules do."""

    def callback(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        if index == at:
            found = pipe.encode_prompt(text, "cpu", 1, True)
            given["prompt_embeds"] = torch.cat([found[1], found[0]])
        return given

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_prompt_that_a_callback_encodes_starts_no_call(at: int) -> None:
    pipe = pipeline("sd")
    call = schedule(at, "a red cat and a blue dog")
    plain = tiny.run(pipe, PROMPT, steps=6, **call)
    assert at == 5 or not torch.equal(plain, tiny.run(pipe, PROMPT, steps=6))
    with t2ictl.controlled(pipe, record=True) as session:
        assert torch.equal(tiny.run(pipe, PROMPT, steps=6, **call), plain)
    assert session.record.steps == 6 and session.record.prompts[0].text == PROMPT
    half = AttentionSegregation(step=MOVES.step, window=t2ictl.Window(stop=0.5))
    with t2ictl.controlled(pipe, [half]) as session:
        tiny.run(pipe, PROMPT, steps=6, **call)
        assert [entry.step.index for entry in session.trace] == [0, 1, 2]
        tiny.run(pipe, "a cat and a dog", steps=2)  # the next call is one of its own
        assert [entry.step.index for entry in session.trace] == [0]


@pytest.mark.parametrize(("text", "is_told"), [("a red circle and a green square", True), (PROMPT + ".", False)])
def test_words_that_a_scheduled_prompt_does_not_have_in_their_places_are_told(text: str, is_told: bool) -> None:
    pipe = pipeline("sd")
    with warnings.catch_warnings(record=True) as told, t2ictl.controlled(pipe, [MOVES]):
        warnings.simplefilter("always")
        tiny.run(pipe, PROMPT, steps=4, **schedule(1, text))
    assert [str(each.message).count("at their places in") for each in told] == [1] * is_told
    with warnings.catch_warnings(), t2ictl.controlled(pipe):  # nothing looks for words
        warnings.simplefilter("error")
        tiny.run(pipe, PROMPT, steps=4, **schedule(1, text))


def test_a_call_after_one_that_broke_off_in_a_callback_begins_anew() -> None:
    pipe = pipeline("sd")

    def stop(pipe: Any) -> None:
        pipe.encode_prompt("a cat", "cpu", 1, True)
        raise KeyboardInterrupt

    with t2ictl.controlled(pipe, [MOVES], record=True) as session:
        expected = tiny.run(pipe, PROMPT, steps=4)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                tiny.run(pipe, "a cat and a dog", steps=4, **at_step(1, stop))
            assert torch.equal(tiny.run(pipe, PROMPT, steps=4), expected)
            assert session.record.steps == 4 and session.record.prompts[0].text == PROMPT


def test_words_of_embeddings_that_a_callback_made_are_known() -> None:
    pipe = pipeline("sd")
    made: list[Tensor] = []

    def encode(pipe: Any) -> None:
        made.extend(pipe.encode_prompt("a cat and a dog", "cpu", 1, True))

    with t2ictl.controlled(pipe, [MOVES], record=True) as session:
        tiny.run(pipe, PROMPT, steps=2, **at_step(0, encode))
        tiny.run(pipe, None, steps=2, prompt_embeds=made[0], negative_prompt_embeds=made[1])
    assert session.record.prompts[0].text == "a cat and a dog"


class Twice(diffusers.StableDiffusionPipeline):
    """A pipeline that encodes two prompts before its loop, the second one for its image."""

    def __call__(self, prompt: Any = None, **more: Any) -> Any:
        self.encode_prompt("a frog", "cpu", 1, True)
        return super().__call__(prompt, **more)


def test_a_pipeline_that_encodes_twice_before_its_loop() -> None:
    pipe = Twice(**tiny.sd().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with t2ictl.controlled(pipe, record=True) as session:
        for text in (PROMPT, "a cat"):
            tiny.run(pipe, text, steps=2)
            assert session.record.steps == 2 and session.record.prompts[0].text == text


# -- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["between", "in a callback"])
def test_a_deep_copy_made_in_a_session_is_a_pipeline_of_its_own(moment: str) -> None:
    pipe = tiny.sd()
    plain, copies = tiny.run(pipe, PROMPT, steps=3), list[Any]()
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES, StructuredGuidance()]):
        expected = tiny.run(pipe, PROMPT, steps=3)
        if moment == "between":
            copies.append(copy.deepcopy(pipe))
        else:
            tiny.run(pipe, PROMPT, steps=3, **at_step(0, lambda pipe: copies.append(copy.deepcopy(pipe))))
        (made,) = copies
        assert torch.equal(tiny.run(made, PROMPT, steps=3), plain)
        with t2ictl.controlled(made, [MOVES, StructuredGuidance()]):  # beside the session that is open
            assert torch.equal(tiny.run(made, PROMPT, steps=3), expected)
        with torch.no_grad():
            for weight in made.unet.parameters():
                weight.mul_(-1.5)
        assert torch.equal(tiny.run(pipe, PROMPT, steps=3), expected)
    assert state(pipe) == before
    assert not {"_t2ictl", "forward", "_diffusers_hook", "__deepcopy__"} & set(vars(made.unet))
    with t2ictl.controlled(made, [MOVES]):
        assert not torch.equal(tiny.run(made, PROMPT, steps=3), expected)


def test_a_deep_copy_of_the_denoiser_has_the_hooks_of_others() -> None:
    class Counter(diffusers.hooks.ModelHook):
        count = 0

        def post_forward(self, module: Any, output: Any) -> Any:
            self.count += 1
            return output

    pipe, counter = tiny.sd(), Counter()
    diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipe.unet).register_hook(counter, "counter")
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)
        other = tiny.sd()
        other.unet = copy.deepcopy(pipe.unet)
    counted = counter.count
    with t2ictl.controlled(other, [MOVES]):
        assert torch.equal(tiny.run(other, PROMPT, steps=2), expected)
    theirs = other.unet._diffusers_hook.get_hook("counter")
    assert counter.count == counted and theirs is not counter and theirs.count > counted
    assert list(other.unet._diffusers_hook.hooks) == ["counter"]

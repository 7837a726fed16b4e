"""What callbacks do in the middle of a call: change latents, exchange prompts, switch guidance off, stop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.processors import AttentionSegregation
from t2ictl.settings.windows import Window
from tests.families.transformers.cases import FAMILIES, MOVES, OTHER, PROMPT, distance, held, shared
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run, settings

STEPS = 3
Change = Callable[[Any, dict[str, Any]], dict[str, Any]]
#: PixArt calls back without a way to return anything.
CALLED_BACK = [name for name in FAMILIES if not name.startswith("pixart")]
callers = pytest.mark.parametrize("name", CALLED_BACK)


def calling(change: Change, *names: str, at: int = 0) -> dict[str, Any]:
    """Arguments of a call that changes something at the end of a step."""

    def callback(pipe: Any, index: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        return change(pipe, dict(given)) if index == at else {}

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", *names]}


def check(pipe: Any, call: dict[str, Any], prompt: Any = PROMPT) -> tuple[Tensor, Tensor]:
    """Recorded bit-equal, moved, restored; return the plain and the moved latents."""
    call = {"steps": STEPS} | call
    plain = run(pipe, prompt, **call)
    before = state(pipe)
    recorded, session = held(pipe, [], prompt, record=True, **call)
    assert torch.equal(recorded, plain)
    assert session.record.steps > 0
    moved, session = held(pipe, [MOVES], prompt, **call)
    assert distance(moved, plain) > 1e-3 and torch.isfinite(moved).all()
    assert state(pipe) == before
    assert torch.equal(run(pipe, prompt, **call), plain)
    return plain, moved


@callers
def test_latents_that_a_callback_changes(name: str) -> None:
    kept: list[Tensor] = []

    def change(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
        kept.append(given["latents"])
        return {"latents": given["latents"] * 0.9}

    pipe = shared(name)
    plain, _ = check(pipe, calling(change))
    assert distance(plain, run(pipe, PROMPT, steps=STEPS)) > 1e-3
    kept.clear()
    moved, _ = held(pipe, [MOVES], steps=STEPS, **calling(change, at=STEPS - 1))
    assert torch.equal(moved, kept[-1] * 0.9)


@pytest.mark.parametrize("name", ["pixart_alpha", "pixart_sigma"])
def test_latents_that_an_older_callback_changes_in_place(name: str) -> None:
    pipe, call = shared(name), {"callback": lambda index, timestep, latents: latents.mul_(0.9)}
    plain, _ = check(pipe, call)
    assert distance(plain, run(pipe, PROMPT, steps=STEPS)) > 1e-3


# -- another prompt ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def rows_of(pipe: Any, text: str) -> Tensor:
    """Conditional text rows of a prompt, as the call of this family encodes it."""
    more: dict[str, Any] = {"max_sequence_length": settings(pipe).get("max_sequence_length")}
    if type(pipe).__name__.startswith("StableDiffusion3"):
        more |= {"prompt_2": None, "prompt_3": None}
    if type(pipe).__name__.startswith("Hunyuan"):
        more = {"negative_prompt": ""}
    rows: Tensor = pipe.encode_prompt(prompt=text, device="cpu", num_images_per_prompt=1, **more)[0]
    return rows


def exchange(text: str) -> Change:
    """Go on with the rows of another prompt, which the callback encodes."""

    def change(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
        rows = rows_of(pipe, text)
        old = given["prompt_embeds"]
        return {"prompt_embeds": rows if len(old) == len(rows) else torch.cat([old[: -len(rows)], rows])}

    return change


@pytest.mark.parametrize(
    ("name", "at"), [*((name, 0) for name in CALLED_BACK), ("sd3", STEPS - 1), ("flux", STEPS - 1)]
)
def test_a_prompt_that_a_callback_encodes(name: str, at: int) -> None:
    pipe, call = shared(name), calling(exchange("a cat and a dog"), "prompt_embeds", at=at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # words are sought at their places in the first prompt
        plain, _ = check(pipe, call)
        assert torch.equal(plain, run(pipe, PROMPT, steps=STEPS)) == (at == STEPS - 1)
        half = AttentionSegregation(step=MOVES.step, window=Window(stop=0.5))
        with t2ictl.controlled(pipe, [half], record=True) as session:
            run(pipe, PROMPT, steps=STEPS, **call)
            assert session.record.steps == STEPS and session.record.prompts[0].text == PROMPT
            assert [entry.step.index for entry in session.trace] == [0, 1]
            run(pipe, OTHER, steps=2)  # the next call is one of its own
            assert session.record.prompts[0].text == OTHER and [entry.step.index for entry in session.trace] == [0]


@callers
def test_rows_that_a_callback_changes(name: str) -> None:
    pipe = shared(name)
    louder = calling(lambda pipe, given: {"prompt_embeds": given["prompt_embeds"] * 1.2}, "prompt_embeds")
    plain, _ = check(pipe, louder)
    assert distance(plain, run(pipe, PROMPT, steps=STEPS)) > 1e-3


@callers
def test_words_of_another_prompt_are_told(name: str) -> None:
    pipe = shared(name)
    with warnings.catch_warnings(record=True) as told, t2ictl.controlled(pipe, [MOVES]):
        warnings.simplefilter("always")
        run(pipe, PROMPT, steps=STEPS, **calling(exchange("a red circle and a green frog"), "prompt_embeds"))
    assert sum("at their places in" in str(each.message) for each in told) == 1


# -- the rest of the call ---------------------------------------------------------------------------------------------


@callers
def test_interrupt(name: str) -> None:
    def stop(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return {}

    pipe, call = FAMILIES[name](), calling(stop, at=0)
    plain, _ = check(pipe, call)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        stopped = run(pipe, PROMPT, steps=STEPS, **call)
        assert len(session.trace) == 1
        assert not torch.equal(run(pipe, PROMPT, steps=STEPS), stopped)  # the next call is whole again
        assert len(session.trace) == STEPS
    assert stopped.shape == plain.shape


def without_guidance(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Drop the unconditional rows, as the callbacks of diffusers do."""
    pipe._guidance_scale = 0.0
    more = {key: given[key][-1:] for key in ("prompt_embeds", "pooled_prompt_embeds") if len(given.get(key, ())) > 1}
    return more


@pytest.mark.parametrize("name", ["sd3", "chroma"])
def test_guidance_that_a_callback_switches_off(name: str) -> None:
    pipe, names = FAMILIES[name](), ["prompt_embeds"] + ["pooled_prompt_embeds"] * (name == "sd3")
    call = calling(without_guidance, *names)
    plain, _ = check(pipe, call)
    assert distance(plain, run(pipe, PROMPT, steps=STEPS)) > 1e-3


def test_a_generator_of_the_user_is_left_as_without_a_session() -> None:
    pipe = shared("sd3")
    states = []
    for controls in (None, [MOVES]):
        own = torch.Generator().manual_seed(5)
        if controls is None:
            run(pipe, PROMPT, generator=own, steps=STEPS)
        else:
            held(pipe, controls, generator=own, steps=STEPS)
        states.append(own.get_state())
    assert torch.equal(*states)

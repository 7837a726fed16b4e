"""Text embeddings in the place of prompts: whose words they are is known, named, or refused; nothing else changes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.errors import PromptUnknown
from tests.families.transformers.cases import FAMILIES, MOVES, OTHER, PROMPT, STEPS, distance, families, held, shared
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run, settings

NEGATIVE = "a green frog"
UNKNOWN = "needs the words"

# What encode_prompt returns, by the names under which a call takes it; "" for what it does not take.
PAIRS = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
ROLES = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
RETURNED: dict[str, tuple[str, ...]] = {
    "pixart": PAIRS,
    "sana": PAIRS,
    "sd3": ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    "flux": ("prompt_embeds", "pooled_prompt_embeds", ""),
    "chroma": (PAIRS[0], "", PAIRS[1], PAIRS[2], "", PAIRS[3]),
}


@torch.no_grad()
def encoded(pipe: Any, prompt: Any = PROMPT, **more: Any) -> dict[str, Any]:
    """Arguments of a call, made by the pipeline's own ``encode_prompt`` as its call makes them."""
    own = {"prompt": prompt, "device": "cpu", "num_images_per_prompt": 1} | more
    family = t2ictl.controlled(pipe).adapter.family
    if family == "hunyuan_dit":
        found: dict[str, Any] = {}
        for index, suffix in ((0, ""), (1, "_2")):
            negative = {"negative_prompt": "" if isinstance(prompt, str) else [""] * len(prompt)}
            returned = pipe.encode_prompt(**negative | own, text_encoder_index=index)
            found |= {f"{name}{suffix}": each for name, each in zip(ROLES, returned, strict=True)}
        return found
    length = {"max_sequence_length": settings(pipe)["max_sequence_length"]}
    if family == "sana":
        own["complex_human_instruction"] = default(pipe, "complex_human_instruction")
    if family in ("sd3", "flux"):
        own |= {"prompt_2": None} | ({"prompt_3": None} if family == "sd3" else {})
    returned = pipe.encode_prompt(**own, **length)
    return {name: each for name, each in zip(RETURNED[family], returned, strict=True) if name}


def default(pipe: Any, name: str) -> Any:
    return inspect.signature(type(pipe).__call__).parameters[name].default


def call_with(pipe: Any, given: dict[str, Any], **more: Any) -> torch.Tensor:
    """A call with embeddings; PixArt, SANA and Sigma have a negative prompt by default."""
    if "negative_prompt_embeds" in given:
        more = {"negative_prompt": None} | more
    return run(pipe, None, **{"steps": STEPS} | given | more)


@families
def test_embeddings_are_those_that_the_prompt_gives(name: str) -> None:
    pipe = shared(name)
    assert torch.equal(call_with(pipe, encoded(pipe)), run(pipe, PROMPT, steps=STEPS))


@pytest.mark.parametrize("how", ["outside", "inside"])
@families
def test_controls_act_as_with_the_prompt(name: str, how: str) -> None:
    pipe = shared(name)
    plain, before = run(pipe, PROMPT, steps=STEPS), state(pipe)
    expected, spoken = held(pipe, [MOVES], record=True)
    given, words = (encoded(pipe), PROMPT) if how == "outside" else ({}, None)
    with t2ictl.controlled(pipe, [MOVES], record=True, prompt=words) as session:
        given = given or encoded(pipe)
        moved = call_with(pipe, given)
    assert torch.equal(moved, expected) and distance(moved, plain) > 1e-3
    for word in ("red", "circle", "blue square"):
        assert torch.equal(session.record.map(word), spoken.record.map(word))
    assert state(pipe) == before
    assert torch.equal(call_with(pipe, given), plain)


@families
def test_without_the_words(name: str) -> None:
    pipe = shared(name)
    given, plain = encoded(pipe), run(pipe, PROMPT, steps=STEPS)
    for controls, record in (([MOVES], False), ([], True)):
        with t2ictl.controlled(pipe, controls, record=record) as session:
            with pytest.raises(PromptUnknown, match=UNKNOWN):
                call_with(pipe, given)
        assert session.cost.forwards == 0
    with t2ictl.controlled(pipe):  # nobody asks for words
        assert torch.equal(call_with(pipe, given), plain)


@families
def test_several_rows_of_embeddings(name: str) -> None:
    pipe, prompts = shared(name), [PROMPT, OTHER]
    expected, spoken = held(pipe, [MOVES], prompts, record=True)
    given = encoded(pipe, prompts)
    with t2ictl.controlled(pipe, [MOVES], record=True, prompt=prompts) as session:
        assert torch.equal(call_with(pipe, given), expected)
    for row, word in enumerate(("circle", "green frog")):
        assert torch.equal(session.record.map(word, image=row), spoken.record.map(word, image=row))
    with (
        t2ictl.controlled(pipe, [MOVES], prompt=[PROMPT, OTHER, PROMPT]),
        pytest.raises(PromptUnknown, match="3 prompts"),
    ):
        call_with(pipe, given)


@pytest.mark.parametrize("name", ["sd3", "flux", "chroma", "pixart_sigma", "sana"])
def test_rows_of_another_length(name: str) -> None:
    """What a row's length says of how its text was read."""
    pipe = shared(name)
    expected, _ = held(pipe, [MOVES], max_sequence_length=17)
    with t2ictl.controlled(pipe, [MOVES], prompt=PROMPT):
        given = encoded_at(pipe, 17)
    with t2ictl.controlled(pipe, [MOVES], prompt=PROMPT):
        assert torch.equal(call_with(pipe, given, max_sequence_length=17), expected)


def encoded_at(pipe: Any, length: int) -> dict[str, Any]:
    """Embeddings of rows of another length."""
    own = settings(pipe)["max_sequence_length"]
    inner = pipe.encode_prompt

    def encode(**given: Any) -> Any:
        assert given["max_sequence_length"] == own
        return inner(**{**given, "max_sequence_length": length})

    pipe.encode_prompt = encode
    try:
        return encoded(pipe)
    finally:
        pipe.encode_prompt = inner
        pipe.__dict__.pop("encode_prompt", None)


GUIDED: dict[str, dict[str, Any]] = {name: {} for name in FAMILIES} | {"flux": {"true_cfg_scale": 3.0}}
del GUIDED["flux_schnell"]


@pytest.mark.parametrize("name", GUIDED)
def test_embeddings_of_a_negative_prompt(name: str) -> None:
    pipe, more = shared(name), GUIDED[name]
    expected, _ = held(pipe, [MOVES], negative_prompt=NEGATIVE, **more)
    if name == "flux":
        given, negative = encoded(pipe), encoded(pipe, NEGATIVE)
        given |= {f"negative_{key}": each for key, each in negative.items()}
    else:
        given = encoded(pipe, negative_prompt=NEGATIVE)
    with t2ictl.controlled(pipe, [MOVES], prompt=PROMPT):
        assert torch.equal(call_with(pipe, given, **more), expected)
    assert distance(expected, held(pipe, [MOVES], **more)[0]) > 1e-3


# The others do not repeat the rows that they are given.
@pytest.mark.parametrize("name", ["sana", "pixart_sigma"])
def test_several_images_of_one_row(name: str) -> None:
    pipe = shared(name)
    expected, _ = held(pipe, [MOVES], num_images_per_prompt=2)
    with t2ictl.controlled(pipe, [MOVES], prompt=PROMPT):
        assert torch.equal(call_with(pipe, encoded_plainly(name), num_images_per_prompt=2), expected)


def encoded_plainly(name: str) -> dict[str, Any]:
    """Embeddings from a pipeline of its own, of which no session knows."""
    return encoded(FAMILIES[name]())

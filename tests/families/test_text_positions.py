"""Texts read from another position on: against position ids handed to the encoders, and put back whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import t2ictl
from t2ictl.errors import UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.families.text_positions import position_offset
from t2ictl.processors import StructuredGuidance
from tests.tiny import run, sd, sdxl

TEXTS = ("a red circle", "a blue square")
PROMPT = "a red circle and a blue square"  # start a red circle and a blue square end: 0 to 8


def by_position_ids(pipe: Any, first: tuple[int, ...]) -> Tensor:
    """Rows of TEXTS by the encoders' own argument."""
    pairs, rows = [(pipe.tokenizer, pipe.text_encoder)], []
    if hasattr(pipe, "tokenizer_2"):
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))
    for tokenizer, encoder in pairs:
        ids = tokenizer(list(TEXTS), padding="max_length", max_length=16, return_tensors="pt").input_ids
        places = [[0, *(min(15, place + start - 1) for place in range(1, 16))] for start in first]
        with torch.no_grad():
            made = encoder(ids, position_ids=torch.tensor(places), output_hidden_states=True)
        rows.append(made.hidden_states[-2] if len(pairs) == 2 else made[0])
    return torch.cat(rows, dim=-1)


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("first", [(1, 5), (3, 1), (12, 14)])
def test_rows_are_those_of_the_encoders_own_argument(build: Any, first: tuple[int, int]) -> None:
    pipe = build()
    adapter = find_adapter(pipe)
    plain = adapter.encode(pipe.encode_prompt, {"device": "cpu"}, TEXTS)
    found = adapter.encode(pipe.encode_prompt, {"device": "cpu"}, TEXTS, first)
    torch.testing.assert_close(found.embeds, by_position_ids(pipe, first), rtol=0, atol=1e-6)
    assert [torch.equal(*pair) for pair in zip(found.embeds, plain.embeds, strict=True)] == [
        place == 1 for place in first
    ]
    assert torch.equal(adapter.encode(pipe.encode_prompt, {"device": "cpu"}, TEXTS).embeds, plain.embeds)


def test_encoders_are_put_back_after_an_error() -> None:
    pipe = sd()
    ids = pipe.tokenizer(list(TEXTS), padding="max_length", max_length=16, return_tensors="pt").input_ids
    before = pipe.text_encoder(ids)[0]
    with pytest.raises(UnsupportedPipeline, match="reads 2 texts where 3 were given"):
        with position_offset([pipe.text_encoder], [1, 2, 3]):
            pipe.text_encoder(ids)
    with pytest.raises(KeyboardInterrupt):
        with position_offset([pipe.text_encoder], [1, 2]):
            raise KeyboardInterrupt
    assert torch.equal(pipe.text_encoder(ids)[0], before)
    assert not any(module._forward_pre_hooks for module in pipe.text_encoder.modules())


def test_an_encoder_without_positions_is_refused() -> None:
    with pytest.raises(UnsupportedPipeline, match="no table of positions"):
        with position_offset([nn.Linear(1, 1)], [1]):
            raise AssertionError("must not get here")


def value_rows(pipe: Any, **settings: Any) -> Tensor:
    """The value context of the conditional row at the first cross-attention of a run."""
    seen: list[Tensor] = []
    layer = next(module for name, module in pipe.unet.named_modules() if name.endswith("attn2.to_v"))
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    with t2ictl.controlled(pipe, [StructuredGuidance(**settings)]):
        run(pipe, PROMPT, steps=1)
    hook.remove()
    return seen[-1][-1]


@pytest.mark.parametrize("build", [sd, sdxl])
def test_phrases_are_read_where_they_stand(build: Any) -> None:
    pipe = build()
    adapter = find_adapter(pipe)
    own = adapter.encode(pipe.encode_prompt, {"device": "cpu"}, (PROMPT,)).embeds[0]
    both = by_position_ids(pipe, (1, 5))
    expected = own.clone()
    expected[1:4] = 2 / 3 * own[1:4] + 1 / 3 * both[0, 1:4]
    expected[5:8] = 2 / 3 * own[5:8] + 1 / 3 * both[1, 1:4]
    torch.testing.assert_close(value_rows(pipe, phrases=TEXTS, positions="prompt"), expected, rtol=0, atol=1e-5)
    published = value_rows(pipe, phrases=TEXTS)
    assert torch.equal(published[:5], value_rows(pipe, phrases=TEXTS, positions="prompt")[:5])
    assert (published - expected)[5:8].abs().amax() > 1e-2


def test_one_text_at_two_places_is_read_twice() -> None:
    pipe = sd()
    texts: list[list[str]] = []
    original = pipe.encode_prompt

    def listening(*args: Any, **call: Any) -> Any:
        texts.append(call["prompt"])
        return original(*args, **call)

    pipe.encode_prompt = listening
    prompt = "a red circle and a dog and a red circle"
    phrases = ("a red circle", "a red circle#2", "a dog")
    try:
        StructuredGuidance.attn_processors(pipe, [prompt], phrases=phrases)
        StructuredGuidance.attn_processors(pipe, [prompt], phrases=phrases, positions="prompt")
    finally:
        del pipe.encode_prompt
    assert sorted(len(each) for each in texts) == [1, 1, 2, 3]  # the prompts by themselves, then the phrases

"""Rows recognized by their text states: through rounding and large channels, and the warning where none is known."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.attention.cache import TensorCache
from t2ictl.errors import ControlConflict, UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.processors.structured_guidance.control import StructuredGuidance
from t2ictl.processors.token_merging.control import TokenMerging
from t2ictl.standalone.by_content import RowMatcher
from t2ictl.standalone.recorder import MapRecorder, encode
from tests.tiny import run, sd, sdxl

PROMPT, OTHER = "a red circle and a blue square", "a red circle and a blue heart"
PHRASES = ("a blue square",)


def large(pipe: Any) -> Any:
    """Give two channels of the text states the size that they have in CLIP."""
    for encoder in (each for each in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if each is not None):
        for name, module in encoder.named_modules():
            if name.endswith("final_layer_norm"):
                with torch.no_grad():
                    module.bias[:2] = torch.tensor([28.09, -33.07])
    return pipe


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_of_large_channels_keeps_a_row_known(dtype: torch.dtype) -> None:
    states_PKC = encode(find_adapter(large(sd())), [PROMPT, OTHER, "", "a red circle and a blue square a"])
    match = RowMatcher(states_PKC)
    noise = 1 + torch.finfo(dtype).eps * torch.randn(states_PKC.shape, generator=torch.Generator().manual_seed(0))
    assert match((states_PKC * noise).to(dtype)) == (0, 1, 2, 3)


def act(pipe: Any, **call: Any) -> Tensor:
    """How far processors made for PROMPT change an image."""
    before = pipe.unet.attn_processors
    plain = run(pipe, PROMPT, steps=2, **call)
    pipe.unet.set_attn_processor(StructuredGuidance.attn_processors(pipe, PROMPT, phrases=PHRASES))
    made = run(pipe, PROMPT, steps=2, **call)
    pipe.unet.set_attn_processor(dict(before))
    return (made.float() - plain.float()).abs().max()


def test_processors_made_before_a_pipeline_goes_to_half_precision_still_act() -> None:
    pipe = large(sd())
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(StructuredGuidance.attn_processors(pipe, [PROMPT], phrases=PHRASES))
    pipe.to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = run(pipe, PROMPT, steps=2)
    pipe.unet.set_attn_processor(before)
    assert not torch.equal(made, run(pipe, PROMPT, steps=2))


def test_strangers_are_told_once_and_known_rows_never() -> None:
    pipe = sdxl()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert act(pipe) > 0
    with pytest.warns(UserWarning, match="without prompt_2") as told:
        assert act(pipe, prompt_2=OTHER) == 0
    assert len([each for each in told if "prompt_2" in str(each.message)]) == 1


def test_later_processors_take_the_place_of_earlier_ones() -> None:
    pipe = sd()
    before = pipe.unet.attn_processors
    for phrases in (PHRASES, ("a red circle",), PHRASES):
        pipe.unet.set_attn_processor(StructuredGuidance.attn_processors(pipe, [PROMPT], phrases=phrases))
    made = run(pipe, PROMPT, steps=2)
    standing = [each.previous for each in pipe.unet.attn_processors.values() if hasattr(each, "previous")]
    assert standing and all(any(each is other for other in before.values()) for each in standing)
    with t2ictl.controlled(pipe, [StructuredGuidance(phrases=PHRASES)]):
        with pytest.raises(UnsupportedPipeline, match="Put the earlier processors back"):
            run(pipe, PROMPT, steps=1)
    for _ in range(2):  # a dict that is copied can be put back again
        pipe.unet.set_attn_processor(dict(before))
    with t2ictl.controlled(pipe, [StructuredGuidance(phrases=PHRASES)]):
        assert torch.equal(run(pipe, PROMPT, steps=2), made)


@pytest.mark.parametrize("mode", ["values", "keys"])
def test_processors_follow_a_pipeline_to_another_precision(mode: str) -> None:
    exact, pipe = sd(dtype=torch.float64), sd()
    made = []
    for one in (exact, pipe):
        one.unet.set_attn_processor(StructuredGuidance.attn_processors(one, [PROMPT], phrases=PHRASES, mode=mode))
        made.append(run(one.to(torch.float32), PROMPT, steps=2))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-4)


def test_nothing_is_made_in_an_open_session() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe) as session:
        run(pipe, PROMPT, steps=1)
        for make in (StructuredGuidance.attn_processors, TokenMerging.embeds, MapRecorder):
            with pytest.raises(ControlConflict, match="open session"):
                make(pipe, [PROMPT])
        assert session.cost.forwards == 2


def test_what_is_written_under_inference_mode_is_seen() -> None:
    latest = TensorCache()
    with torch.inference_mode():
        states = torch.ones(2)
        assert latest(states, None, lambda: states.sum().item()) == 2
        states.mul_(3)
        assert latest(states, None, lambda: states.sum().item()) == 6

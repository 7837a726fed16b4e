"""Texts read by the first layers only: against the encoders' own hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2ictl.errors import BadSetting
from t2ictl.families import find_adapter
from t2ictl.families.text_depth import truncated_encoder
from tests.tiny import sd, sdxl

PROMPT = "a red circle and a blue square"


def encode(pipe: Any, depth: float) -> Any:
    return find_adapter(pipe).encode(pipe.encode_prompt, {"device": "cpu"}, [PROMPT], depth=depth)


def states(pipe: Any, suffix: str, layer: int) -> torch.Tensor:
    """The state after so many layers, by the encoder's own output_hidden_states."""
    tokenizer, encoder = getattr(pipe, f"tokenizer{suffix}"), getattr(pipe, f"text_encoder{suffix}")
    ids = tokenizer([PROMPT], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        made: torch.Tensor = encoder(ids, output_hidden_states=True).hidden_states[layer]
    return made


@pytest.mark.parametrize(("depth", "layer"), [(0.0, 0), (1 / 3, 1), (2 / 3, 2), (1.0, 3)])
def test_one_encoder_gives_a_layers_state_after_its_final_norm(depth: float, layer: int) -> None:
    pipe = sd()
    norms = [m for name, m in pipe.text_encoder.named_modules() if name.endswith("final_layer_norm")]
    wanted = norms[0](states(pipe, "", layer)).detach()
    torch.testing.assert_close(encode(pipe, depth).embeds, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("depth", "layer"), [(0.0, 0), (1 / 3, 1), (2 / 3, 2)])
def test_two_encoders_give_theirs_without_a_norm(depth: float, layer: int) -> None:
    pipe = sdxl()
    counts = [getattr(pipe, f"text_encoder{suffix}").config.num_hidden_layers for suffix in ("", "_2")]
    layers = [min(round(depth * count), count - 1) for count in counts]  # the pipeline never takes the last one's
    assert layer in layers
    wanted = torch.cat([states(pipe, *each) for each in zip(("", "_2"), layers, strict=True)], dim=-1)
    torch.testing.assert_close(encode(pipe, depth).embeds, wanted, rtol=0, atol=1e-6)


def test_whole_depth_is_the_stock_encoding_and_nothing_is_left_behind() -> None:
    pipe = sd()
    stock = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0].detach()
    with pytest.raises(KeyboardInterrupt):
        with truncated_encoder([pipe.text_encoder], 0.5):
            raise KeyboardInterrupt
    assert torch.equal(encode(pipe, 1.0).embeds, stock)
    assert not any("forward" in vars(module) for module in pipe.text_encoder.modules())


@pytest.mark.parametrize("depth", [-0.1, 1.1])
def test_depths_out_of_range_are_refused(depth: float) -> None:
    with pytest.raises(BadSetting, match="no share of the layers"):
        with truncated_encoder([sd().text_encoder], depth):
            pass

"""Recorded maps are an explicit softmax over queries and keys that are computed anew, for each stock processor.

The reference takes the inputs of an attention layer from a hook, and projects, normalizes and
rotates them itself, as the equations of the family say.

Legend: ``B`` row, ``H`` head, ``L`` position, ``Q`` place of the image, ``K`` text position, ``D`` head width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.families import find_adapter
from tests import tiny_transformers as tiny

PROMPT = "a red circle and a skateboard"
GUIDED = {"flux": {"true_cfg_scale": 3.0, "negative_prompt": "a dog"}}
# Pipelines that put unconditional rows before the conditional ones.
BATCHED = ("pixart_alpha", "pixart_sigma", "sana", "hunyuan_dit", "sd3", "sd35")


class Inputs:
    """What one attention layer was called with, the first time in a step, each time that gradients are off."""

    def __init__(self, attention: torch.nn.Module) -> None:
        self.seen: list[dict[str, Any]] = []
        attention.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")
        self.seen.append({**dict(zip(names, args, strict=False)), **kwargs})


def heads(x_BLC: Tensor, count: int) -> Tensor:
    return x_BLC.unflatten(-1, (count, -1)).transpose(1, 2)


def rotated(x_BHLD: Tensor, tables: Any) -> Tensor:
    """Turn each pair of channels by the angle of its position."""
    cos_LD, sin_LD = tables
    out = torch.empty_like(x_BHLD)
    for pair in range(x_BHLD.shape[-1] // 2):
        even, odd = x_BHLD[..., 2 * pair], x_BHLD[..., 2 * pair + 1]
        out[..., 2 * pair] = even * cos_LD[:, 2 * pair] - odd * sin_LD[:, 2 * pair]
        out[..., 2 * pair + 1] = odd * cos_LD[:, 2 * pair + 1] + even * sin_LD[:, 2 * pair + 1]
    return out


def normed(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def cross(layer: Any, given: dict[str, Any], text: int) -> tuple[Tensor, Tensor, Any]:
    """Queries of places, keys of text, and the mask, of cross-attention."""
    q, k = layer.to_q(given["hidden_states"]), layer.to_k(given["encoder_hidden_states"])
    if type(layer.processor).__name__.startswith("Sana"):  # normalized before heads are split
        q, k = normed(layer.norm_q, q), normed(layer.norm_k, k)
        q_BHQD, k_BHKD = heads(q, layer.heads), heads(k, layer.heads)
    else:
        q_BHQD, k_BHKD = normed(layer.norm_q, heads(q, layer.heads)), normed(layer.norm_k, heads(k, layer.heads))
    if given.get("image_rotary_emb") is not None:  # of the places alone
        q_BHQD = rotated(q_BHQD, given["image_rotary_emb"])
    mask = given.get("attention_mask")
    return q_BHQD, k_BHKD, None if mask is None else mask[:, None]  # (B, 1, 1, K)


def joint_last(layer: Any, given: dict[str, Any], text: int) -> tuple[Tensor, Tensor, Any]:
    """The same of SD 3: the image's own projections for places, the text's for words; nothing is rotated."""
    q_BHQD = normed(layer.norm_q, heads(layer.to_q(given["hidden_states"]), layer.heads))
    k_BHKD = normed(layer.norm_added_k, heads(layer.add_k_proj(given["encoder_hidden_states"]), layer.heads))
    return q_BHQD, k_BHKD, None


def joint_first(layer: Any, given: dict[str, Any], text: int) -> tuple[Tensor, Tensor, Any]:
    """The same of FLUX.1 and Chroma: text stands first, and both are rotated by their ids."""
    q_BHQD = layer.norm_q(heads(layer.to_q(given["hidden_states"]), layer.heads))
    k_BHKD = layer.norm_added_k(heads(layer.add_k_proj(given["encoder_hidden_states"]), layer.heads))
    cos, sin = given["image_rotary_emb"]
    q_BHQD, k_BHKD = rotated(q_BHQD, (cos[text:], sin[text:])), rotated(k_BHKD, (cos[:text], sin[:text]))
    mask = given.get("attention_mask")
    return q_BHQD, k_BHKD, None if mask is None else mask[:, :, text:, :text]


def single_first(layer: Any, given: dict[str, Any], text: int) -> tuple[Tensor, Tensor, Any]:
    """The same of blocks in which text and image share their projections."""
    q_BHLD = rotated(layer.norm_q(heads(layer.to_q(given["hidden_states"]), layer.heads)), given["image_rotary_emb"])
    k_BHLD = rotated(layer.norm_k(heads(layer.to_k(given["hidden_states"]), layer.heads)), given["image_rotary_emb"])
    mask = given.get("attention_mask")
    return q_BHLD[:, :, text:], k_BHLD[:, :, :text], None if mask is None else mask[:, :, text:, :text]


def explicit(q_BHQD: Tensor, k_BHKD: Tensor, mask: Any) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q_BHQD, k_BHKD) / q_BHQD.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(dim=-1)


REFERENCES = {"cross": cross, "joint last": joint_last, "joint first": joint_first, "single first": single_first}


@pytest.mark.parametrize("name", tiny.FAMILIES)
@torch.no_grad()
def test_each_layer_of_each_stock_processor(name: str) -> None:
    pipe = tiny.FAMILIES[name](dtype=torch.float32)
    layers = find_adapter(pipe).word_layers
    inputs = {layer: Inputs(pipe.transformer.get_submodule(layer.module)) for layer in layers}
    every = t2ictl.Recording(layers=("*",), by="layer")
    with t2ictl.controlled(pipe, record=every) as session:
        tiny.run(pipe, PROMPT, steps=2, **GUIDED.get(name, {}))
    assert len(layers) >= 4
    for layer in layers:
        attention = pipe.transformer.get_submodule(layer.module)
        kind = layer.kind if layer.text == "keys" else f"{layer.kind} {layer.text}"
        recorded_STYX = session.record.maps[layer.address.rpartition(".")[0]][:, 0]
        calls = inputs[layer].seen
        per_step = len(calls) // 2
        for step in range(2):
            given = calls[step * per_step]  # the conditional call comes first where there are two
            text = given["image_rotary_emb"][0].shape[0] - 48 if "first" in kind else 0
            q_BHQD, k_BHKD, mask = REFERENCES[kind](attention, given, text)
            maps_BHQK = explicit(q_BHQD, k_BHKD, mask)
            own_QK = maps_BHQK[1 if name in BATCHED else 0].mean(dim=0)
            expected_TYX = own_QK[:, list(session.record.columns)].T.unflatten(1, tiny.TOKENS)
            assert torch.allclose(recorded_STYX[step], expected_TYX, rtol=0, atol=1e-6), layer.address

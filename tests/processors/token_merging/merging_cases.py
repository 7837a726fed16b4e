"""What the tests of token merging share: prompts, settings, and rows as the text encoders make them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import t2ictl
from t2ictl.processors import TokenMerging
from t2ictl.settings.windows import Window
from tests.tiny import generator, run

# The paper's method; by default nothing is merged and only the entropy moves rows.
paper = functools.partial(TokenMerging, merge=True, binding_steps=3)
PROMPT = "a red circle and a blue square"  # start a red circle and a blue square end: 0 to 8
OBJECTS = "a cat with a hat and a dog"  # start a cat with a hat and a dog end: 0 to 9
MERGE: dict[str, Any] = {"entropy_steps": 0, "binding_steps": 0}
ALWAYS: dict[str, Any] = {"window": Window(), "thresholds": (0.0,)}


def encoded(pipe: Any, text: str) -> Tensor:
    """Rows of one text, by the text encoders themselves."""
    pairs, rows = [(pipe.tokenizer, pipe.text_encoder)], []
    if hasattr(pipe, "tokenizer_2"):
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))
    for tokenizer, encoder in pairs:
        ids = tokenizer(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            made = encoder(ids, output_hidden_states=True)
        rows.append(made.hidden_states[-2] if len(pairs) == 2 else made[0])
    return torch.cat(rows, dim=-1)[0]


class Spy:
    """Attention written out, with masks; keeps its probabilities of the last call."""

    probabilities: Tensor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], hidden_states.shape[0])
        projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (attn.head_to_batch_dim(each) for each in projected)
        scores = attn.scale * q @ k.mT + (0 if mask is None else mask)
        probabilities = scores.softmax(dim=-1)
        self.probabilities = probabilities.unflatten(0, (-1, attn.heads))
        return attn.to_out[0](attn.batch_to_head_dim(probabilities @ v))


def spied(pipe: Any) -> list[Spy]:
    """Put spies on all layers; those of cross-attention at the size of the latent."""
    spies = {name: Spy() for name in pipe.unet.attn_processors}
    pipe.unet.set_attn_processor(dict(spies))
    return [spy for name, spy in spies.items() if "attn2" in name]


def noise(rows: int, seed: int = 5) -> Tensor:
    return torch.randn(rows, 4, 16, 16, generator=generator(seed), dtype=torch.float64)


def with_control(pipe: Any, prompt: Any, *controls: Any, **call: Any) -> tuple[Tensor, Any]:
    with t2ictl.controlled(pipe, list(controls)) as session:
        return run(pipe, prompt, **call), session

"""One attention layer of each kind in tiny transformer pipelines, edits of one stage, and latents under them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import t2ictl
from t2ictl.attention.edits import AttentionCall, Edit, Heads, fused
from t2ictl.controls import AttentionEdit
from tests import tiny_transformers as tiny
from tests.tiny_variants import VARIANTS

PROMPT = "a red circle and a blue square"
PLACES = tiny.TOKENS[0] * tiny.TOKENS[1]


@dataclass(frozen=True)
class Where:
    """A layer.

    Args:
        family: name of the pipeline.
        address: of the layer.
        module: of its attention.
        first: where the places of the image begin in the first result of the module.
    """

    family: str
    address: str
    module: str
    first: int = 0

    @property
    def image(self) -> slice:
        """The places of the image in the first result of the module."""
        return slice(self.first, self.first + PLACES)

    @property
    def attention(self) -> Any:
        """The module of the shared pipeline."""
        return pipe_of(self.family).transformer.get_submodule(self.module)


LAYERS = {
    "joint, text last": Where("sd3", "transformer_blocks.1.joint", "transformer_blocks.1.attn"),
    "joint, text first": Where("flux", "transformer_blocks.1.joint", "transformer_blocks.1.attn"),
    "joint, masked": Where("chroma", "transformer_blocks.1.joint", "transformer_blocks.1.attn"),
    "joint, before a reference": Where("flux_kontext", "transformer_blocks.1.joint", "transformer_blocks.1.attn"),
    "single": Where(
        "flux",
        "single_transformer_blocks.0.single",
        "single_transformer_blocks.0.attn",
        tiny.TEXT,
    ),
    "single, before a reference": Where(
        "flux_kontext",
        "single_transformer_blocks.0.single",
        "single_transformer_blocks.0.attn",
        tiny.TEXT,
    ),
    "cross": Where("pixart_alpha", "transformer_blocks.1.cross", "transformer_blocks.1.attn2"),
    "cross, of two texts": Where("hunyuan_dit", "blocks.1.cross", "blocks.1.attn2"),
    "self": Where("pixart_alpha", "transformer_blocks.1.self", "transformer_blocks.1.attn1"),
    "self, beside joint": Where("sd35", "transformer_blocks.1.self", "transformer_blocks.1.attn2"),
    "linear": Where("sana", "transformer_blocks.1.linear", "transformer_blocks.1.attn1"),
}
WITH_KERNEL = {name: each for name, each in LAYERS.items() if name != "linear"}


@functools.cache
def pipe_of(family: str) -> Any:
    """A pipeline that tests share: sessions leave it as it was."""
    return {**tiny.FAMILIES, **VARIANTS}[family]()


def latents(pipe: Any, **call: Any) -> Tensor:
    """Latents of two steps from one seed."""
    found: Tensor = tiny.run(pipe, PROMPT, steps=2, **call)
    return found


@functools.cache
def plain(family: str) -> Tensor:
    """Latents of the untouched pipeline."""
    return latents(pipe_of(family))


def edited(where: Where, *edits: Edit, **call: Any) -> Tensor:
    """Latents under edits of one layer."""
    pipe = pipe_of(where.family)
    with t2ictl.controlled(pipe, [AttentionEdit(where.address, edit) for edit in edits]):
        return latents(pipe, **call)


def hooked(
    where: Where, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None, part: str = ""
) -> Tensor:
    """Latents with plain hooks of torch at a layer, or at a part of it, and no session."""
    module = where.attention.get_submodule(part) if part else where.attention
    with ExitStack() as hooks:
        if before is not None:
            hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
        if after is not None:
            hooks.enter_context(module.register_forward_hook(after))
        return latents(pipe_of(where.family))


class Identity(Edit):
    """Edits of one stage each that change nothing; those at the kernel hand on new tensors."""

    @staticmethod
    def of(stage: str) -> Edit:
        """The edit of one stage."""
        return {each.__name__.lower(): each for each in Identity.__subclasses__()}[stage]()


class Tokens(Identity):
    def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_BQC.clone(), context_BKC.clone()


class Values(Identity):
    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        return context_BKC


class Project(Identity):
    def project(self, call: AttentionCall, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return q_BHQD.clone(), k_BHKD.clone(), v_BHKD.clone()


class Attend(Identity):
    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        return fused(call.attention, heads)


class Scores(Identity):
    def scores(self, call: AttentionCall, scores_BHQK: Tensor) -> Tensor:
        return scores_BHQK.clone()


class Weights(Identity):
    def weights(self, call: AttentionCall, weights_BHQK: Tensor) -> Tensor:
        return weights_BHQK.clone()


class Output(Identity):
    def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
        return out_BQC.clone()


class HandWritten:
    """A processor of somebody's own for PixArt's layers, whose softmax is no call of torch's kernel."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = q @ k.mT * attn.scale
        scores = scores if attention_mask is None else scores + attention_mask[:, None]
        return attn.to_out[0]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class WithAdapter:
    """The processor that was there, and beside it one more kernel call with keys of its own, as an IP-Adapter has.

    Args:
        previous: the processor.
        keys: how many.
        is_first: whether the adapter's call comes first.
    """

    def __init__(self, previous: Any, keys: int, *, is_first: bool) -> None:
        self.previous, self.keys, self.is_first = previous, keys, is_first

    def _adapter(self, attn: Any, hidden_states: Tensor) -> Tensor:
        q = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        k = q[:, :, : self.keys] * 0.3
        return F.scaled_dot_product_attention(q, k, k + 1).transpose(1, 2).flatten(2)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Any:
        more = self._adapter(attn, hidden_states) if self.is_first else None
        found = self.previous(attn, hidden_states, encoder_hidden_states, attention_mask)
        more = self._adapter(attn, hidden_states) if more is None else more
        return (found[0] + 0.1 * more, *found[1:]) if isinstance(found, tuple) else found + 0.1 * more


def with_processor(where: Where, processor: Any) -> ExitStack:
    """Put a processor at a layer for the length of a ``with`` block."""
    stack, own = ExitStack(), where.attention.processor
    where.attention.set_processor(processor)
    stack.callback(where.attention.set_processor, own)
    return stack


def rows_of(x: Tensor) -> Tensor:
    """Other rows: each takes the place of the next one."""
    return torch.roll(x, 1, dims=1)

"""Activation checkpointing of transformers: the same gradients and latents to the last bit, less kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.families import find_adapter
from t2ictl.processors import AttentionSegregation
from t2ictl.session.checkpoints import Checkpointing, Recomputed
from t2ictl.session.hooks import Frozen
from tests.tiny_transformers import FAMILIES, flux, run, sana, sd3, sd35

PROMPT = "a red circle and a blue square"
WAYS: tuple[Checkpointing, ...] = ("feed_forward", "all", "block")


def first_inputs(pipe: Any) -> dict[str, Any]:
    """The arguments, by name, of the first call of the denoiser."""
    found: list[dict[str, Any]] = []
    bind = find_adapter(pipe).port.bind
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(bind(args, kwargs)), with_kwargs=True
    )
    run(pipe, PROMPT, steps=2)
    handle.remove()
    return found[0] | {"return_dict": False}


def saved_by(forward: Callable[[], Tensor], weights: Any) -> tuple[Tensor, dict[int, Tensor]]:
    """What a piece of code returns, and the tensors that autograd keeps, by their storage."""
    own = {each.untyped_storage().data_ptr() for each in weights}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    return result, {place: tensor for place, tensor in kept.items() if place not in own}


def gradient(pipe: Any, inputs: dict[str, Any], way: Checkpointing) -> tuple[Tensor, dict[int, Tensor]]:
    """The gradient of a whole pass in which somebody listens in the second block, and what is kept for it."""
    port = find_adapter(pipe).port
    x_RCYX = port.latents(inputs).detach().requires_grad_()
    block = list(port.blocks())[1][0]
    heard = [layer.module for layer in port.layers if layer.module.startswith(f"{block}.") and layer.has_words]

    with Frozen(port.denoiser)(), Recomputed(port, way, heard)():
        forward = functools.partial(port.denoiser, **port.with_latents(inputs, x_RCYX))
        result, kept = saved_by(lambda: forward()[0], port.denoiser.parameters())
    return torch.autograd.grad(result.square().sum(), x_RCYX)[0], kept


def size(kept: dict[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
def test_gradients_are_bit_equal_and_less_is_kept(build: Any) -> None:
    pipe = build()
    inputs = first_inputs(pipe)
    plain, everything = gradient(pipe, inputs, "off")
    assert plain.abs().max() > 0
    sizes = [size(everything)]
    for way in WAYS:
        again, kept = gradient(pipe, inputs, way)
        assert torch.equal(again, plain)
        sizes.append(size(kept))
    assert sizes == sorted(sizes, reverse=True) and sizes[1] < 0.95 * sizes[0] and sizes[3] < 0.5 * sizes[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", [sd35, flux, sana])
def test_latents_are_bit_equal(build: Any, way: Checkpointing) -> None:
    pipe = build()
    with t2ictl.controlled(pipe, [AttentionSegregation()]):
        plain = run(pipe, [PROMPT, "a cat and a dog"], steps=2)
    with t2ictl.controlled(pipe, [AttentionSegregation()], checkpointing=way) as session:
        assert torch.equal(run(pipe, [PROMPT, "a cat and a dog"], steps=2), plain)
    assert session.trace and not torch.equal(run(pipe, [PROMPT, "a cat and a dog"], steps=2), plain)


@pytest.mark.parametrize(
    ("build", "heard", "beside"),
    [
        (flux, "transformer_blocks.1.attn", {"ff", "ff_context"}),
        (sd35, "transformer_blocks.1.attn", {"attn2", "ff", "ff_context"}),
        (sd3, "transformer_blocks.1.attn", {"ff", "ff_context"}),
        (sana, "transformer_blocks.1.attn2", {"attn1", "ff"}),
    ],
)
def test_blocks_are_run_again_whole_where_nobody_listens(build: Any, heard: str, beside: set[str]) -> None:
    """Where somebody does, what he does not hear of the block is."""
    pipe = build()
    port = find_adapter(pipe).port
    with Recomputed(port, "block", [heard])():
        held = {name for name, module in pipe.transformer.named_modules() if "forward" in module.__dict__}
    own = heard.rpartition(".")[0]
    blocks = {name for name, _ in port.blocks()}
    assert len(blocks) > 2 and held == blocks - {own} | {f"{own}.{name}" for name in beside}
    assert not any("forward" in module.__dict__ for module in pipe.transformer.modules())


def test_what_blocks_get_by_name_is_seen_by_hooks_of_saved_tensors() -> None:
    """Such hooks move what is kept to another place; FLUX.1 hands its states over by name."""
    pipe = flux()
    inputs, states = first_inputs(pipe), list[Tensor]()

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        states.append(kwargs["hidden_states"])

    blocks = [block for _, block in find_adapter(pipe).port.blocks()]
    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    _, kept = gradient(pipe, inputs, "block")
    for handle in handles:
        handle.remove()
    first_run = states[: len(blocks)]
    assert {each.untyped_storage().data_ptr() for each in first_run} <= kept.keys()

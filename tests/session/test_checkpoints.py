"""Activation checkpointing of extra passes: the same latents to the last bit, less kept, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

import t2ictl
from t2ictl.errors import BadSetting
from t2ictl.guidance.rules import Refinement
from t2ictl.ports.unet import UNetPort, unet_layers
from t2ictl.processors import AttendAndExcite, AttentionSegregation, StructuredGuidance, TokenMerging
from t2ictl.session.checkpoints import Checkpointing, Recomputed
from tests.tiny import run, sd, sd2, sdxl

PROMPT = "a red circle and a blue square"
WAYS: tuple[Checkpointing, ...] = ("feed_forward", "all", "block")
CONTROLS: dict[str, list[Any]] = {
    "segregation": [AttentionSegregation()],
    "refined": [AttendAndExcite(refinement=Refinement(thresholds=((0.0, 0.9),), max_iterations=2))],
    "edits beside": [StructuredGuidance(), AttentionSegregation(layers=("cross",))],
    "text rows": [TokenMerging()],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("controls", CONTROLS.values(), ids=CONTROLS)
@pytest.mark.parametrize("build", [sd, sd2, sdxl])
def test_latents_are_bit_equal(build: Any, controls: list[Any], way: Checkpointing) -> None:
    pipe = build()
    assert all(each.requires_grad for each in pipe.unet.parameters())  # as pipelines come: our passes freeze them
    with t2ictl.controlled(pipe, controls):
        plain = run(pipe, [PROMPT, "a cat and a dog"], steps=2)
    with t2ictl.controlled(pipe, controls, checkpointing=way) as session:
        assert torch.equal(run(pipe, [PROMPT, "a cat and a dog"], steps=2), plain)
    assert session.trace and all(each.grad is None for each in pipe.unet.parameters())


def kept_bytes(pipe: Any, way: Checkpointing) -> int:
    weights = {each.untyped_storage().data_ptr() for each in pipe.unet.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with t2ictl.controlled(pipe, [AttentionSegregation()], checkpointing=way):
            run(pipe, PROMPT, steps=1)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("build", [sd, sdxl])
def test_less_is_kept_for_the_backward_pass(build: Any) -> None:
    off, feed_forward, everything, block = (kept_bytes(build(), way) for way in ("off", *WAYS))
    assert block < everything < feed_forward < 0.95 * off and everything < 0.6 * off


def test_layers_run_again_are_those_in_which_nobody_listens() -> None:
    pipe, seen = sd(), list[tuple[str, bool]]()
    for module in pipe.unet.modules():
        if isinstance(module, (FeedForward, Attention, ResnetBlock2D)):
            kind = "self" if isinstance(module, Attention) and not module.is_cross_attention else type(module).__name__
            inner: Any = getattr(module, "norm1", getattr(module, "to_q", None)) or module.net[0]  # type: ignore[union-attr]

            def note(_: Any, __: Any, kind: str = kind) -> None:
                seen.append((kind, torch.is_grad_enabled()))

            inner.register_forward_pre_hook(note)
    counted = {}
    for way in ("off", *WAYS):
        seen.clear()
        with t2ictl.controlled(pipe, [AttentionSegregation(layers=("cross",))], checkpointing=way):
            run(pipe, PROMPT, steps=1)
        counted[way] = {
            kind: seen.count((kind, True)) for kind in ("FeedForward", "self", "Attention", "ResnetBlock2D")
        }
    off = counted["off"]
    assert min(off.values()) > 2
    assert counted["feed_forward"] == {**off, "FeedForward": 2 * off["FeedForward"]}
    # All cross-attention layers have one of our processors, and are run once.
    assert counted["all"] == {kind: n if kind == "Attention" else 2 * n for kind, n in off.items()}
    assert counted["block"] == counted["all"]  # there is no transformer block in which nobody listens


def test_nothing_is_left_on_the_modules() -> None:
    pipe = sd()
    before = [dict(each.__dict__) for each in pipe.unet.modules()]
    own = next(each for each in pipe.unet.modules() if isinstance(each, ResnetBlock2D))
    kept = own.__dict__["forward"] = own.forward  # somebody's own, as accelerate puts it there
    with pytest.raises(KeyboardInterrupt), Recomputed(UNetPort(pipe.unet), "all", heard=())():
        assert own.__dict__["forward"] is not kept
        raise KeyboardInterrupt
    assert own.__dict__.pop("forward") is kept
    assert all(was.keys() == each.__dict__.keys() for was, each in zip(before, pipe.unet.modules(), strict=True))


def test_a_layer_in_which_somebody_listens_is_kept_as_it_is() -> None:
    pipe = sd()
    layers = unet_layers(pipe.unet)
    touched = [pipe.unet.get_submodule(layer.module) for layer in layers if layer.order < 3]
    others = [pipe.unet.get_submodule(layer.module) for layer in layers if layer.order >= 3]
    with Recomputed(UNetPort(pipe.unet), "all", heard=[layer.module for layer in layers if layer.order < 3])():
        assert not any("forward" in each.__dict__ for each in touched)
        assert all("forward" in each.__dict__ for each in others) and others


def test_blocks_are_run_again_whole_where_nobody_listens() -> None:
    pipe = sd()
    port, names = UNetPort(pipe.unet), {module: name for name, module in pipe.unet.named_modules()}
    heard = next(layer.module for layer in port.layers if layer.kind == "cross")
    own = heard.rpartition(".")[0]
    with Recomputed(port, "block", heard=[heard])():
        held = {name for module, name in names.items() if "forward" in module.__dict__}
    blocks = {name for name, _ in port.blocks()}
    assert own in blocks and held == blocks - {own} | {f"{own}.attn1", f"{own}.ff"}


def test_an_unknown_way_is_refused_before_anything_is_done() -> None:
    with pytest.raises(BadSetting, match="checkpointing cannot be 'some'"):
        t2ictl.controlled(sd(), [AttentionSegregation()], checkpointing="some")  # type: ignore[arg-type]

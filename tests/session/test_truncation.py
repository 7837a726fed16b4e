"""Extra pass ends early, holds no gradient of weights, and gives the same gradient to the last bit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from t2ictl.attention.layers import select_layers
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.guidance.rules import Refinement
from t2ictl.processors import AttendAndExcite, AttentionSegregation
from t2ictl.session.session import Session
from tests.tiny import run, sd, sd2, sdxl

PROMPT = "a red circle and a blue square"


def session(pipe: Any, control: Control, *, truncate: bool) -> Session:
    return Session(
        pipe, (control,), recording=None, words=None, parser="grammar", raise_nonfinite=True, truncate=truncate
    )


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
@pytest.mark.parametrize(
    "control",
    [
        AttentionSegregation(),
        AttentionSegregation(layers=("down",)),
        AttendAndExcite(refinement=Refinement(thresholds=((0.0, 0.9),), max_iterations=2)),
    ],
    ids=["all", "down", "refined"],
)
def test_truncated_and_full_runs_are_bit_equal(build: Any, control: Control) -> None:
    pipe, made = build(dtype=torch.float64), []
    for truncate in (True, False):
        with session(pipe, control, truncate=truncate):
            made.append(run(pipe, [PROMPT, "a cat and a dog"], steps=3))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], run(pipe, [PROMPT, "a cat and a dog"], steps=3))


def layers_run(pipe: Any, control: Control, *, truncate: bool) -> tuple[list[str], list[str]]:
    """Names of the attention layers that extra pass and the pipeline's pass run, in order."""
    own: list[str] = []
    guided: list[str] = []
    hooks = []
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn1", "attn2")):

            def note(_: Any, __: Any, name: str = name) -> None:
                (own if torch.is_grad_enabled() else guided).append(name)

            hooks.append(module.register_forward_pre_hook(note))
    with session(pipe, control, truncate=truncate):
        run(pipe, PROMPT, steps=1)
    for hook in hooks:
        hook.remove()
    return own, guided


@pytest.mark.parametrize("where", ["down.0.*.cross", "mid", "cross@2", "cross@1"])
def test_the_pass_ends_with_the_last_layer_that_is_needed(where: str) -> None:
    pipe = sd()
    control = AttentionSegregation(layers=(where,))
    opened = session(pipe, control, truncate=True)
    last = select_layers([layer for layer in opened.adapter.layers if layer.kind == "cross"], where)[-1]
    own, guided = layers_run(pipe, control, truncate=True)
    assert own[-1] == last.module and own == guided[: len(own)]
    assert layers_run(pipe, control, truncate=False) == (guided, guided)
    if where != "cross@1":
        assert len(own) < len(guided)


class Watched(Control):
    """Keeps what hangs on the maps of extra pass."""

    name, paper, families = "watched", "", ("sd", "sdxl")

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.leaves: list[Tensor] = []
        self.asking: list[bool] = []

    def plan(self, context: PlanContext) -> Plan:
        layers = select_layers(context.adapter.layers, f"cross@{context.adapter.semantic_stride}")
        return Plan(objectives=(Objective(name=self.name, layers=layers, evaluate=self.evaluate),))

    def evaluate(self, maps: Tensor, step: Any) -> Losses:
        self.asking = [each.requires_grad for each in self.unet.parameters()]
        waiting, seen = [maps.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                self.leaves.append(node.variable)
            waiting += [each for each, _ in node.next_functions]
        return Losses(terms={"map": maps[..., 2].square().sum((1, 2))})


@pytest.mark.parametrize("build", [sd, sdxl])
def test_the_graph_leads_to_the_latents_and_to_no_weight(build: Any) -> None:
    pipe = build()
    before = {name: each.requires_grad for name, each in pipe.unet.named_parameters()}
    assert all(before.values())
    control = Watched(pipe.unet)
    with session(pipe, control, truncate=True):
        run(pipe, PROMPT, steps=1)
    (leaf,) = control.leaves
    assert leaf.shape == (1, 4, 16, 16) and leaf.requires_grad
    assert {name: each.requires_grad for name, each in pipe.unet.named_parameters()} == before
    assert all(each.grad is None for each in pipe.unet.parameters())


def stable_diffusion_shape() -> Any:
    """The topology of SD 1.5: four levels, two layers a block, no attention in the innermost; a tenth of its width."""
    return sd(layers_per_block=2, block_out_channels=(16, 32, 64, 64), sample_size=64, norm_num_groups=8)


def flops(pipe: Any, control: Control | None, *, truncate: bool = True) -> int:
    with FlopCounterMode(display=False) as counter:
        if control is None:
            run(pipe, PROMPT, steps=1, height=128, width=128)
        else:
            with session(pipe, control, truncate=truncate):
                run(pipe, PROMPT, steps=1, height=128, width=128)
    return counter.get_total_flops()


def test_one_update_costs_far_fewer_operations() -> None:
    """On SD 1.5 itself it is 1.08 forward passes where the whole U-Net costs 1.55 (two rows make a guided pass)."""
    pipe, control = stable_diffusion_shape(), AttentionSegregation()
    with session(pipe, control, truncate=True) as opened:
        assert opened.adapter.semantic_stride == 4
    plain = flops(pipe, None)
    truncated, full = (flops(pipe, control, truncate=each) - plain for each in (True, False))
    forward = plain / 2
    assert truncated < 0.8 * full
    assert truncated < 1.2 * forward < 1.4 * forward < full


def test_one_update_holds_far_less_for_the_backward_pass() -> None:
    pipe, control = stable_diffusion_shape(), AttentionSegregation()
    weights = {each.untyped_storage().data_ptr() for each in pipe.unet.parameters()}
    held: Counter[bool] = Counter()
    for truncate in (True, False):
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with session(pipe, control, truncate=truncate):
                run(pipe, PROMPT, steps=1, height=128, width=128)
        held[truncate] = sum(kept.values())
    assert held[True] < 0.6 * held[False]

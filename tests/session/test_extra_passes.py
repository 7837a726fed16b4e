"""Extra passes: one projection serves the layer and its map, text is projected once, rows that are done leave."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

import t2ictl
from t2ictl import Window
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.ports.unet import unet_layers
from t2ictl.processors import AttendAndExcite, AttentionSegregation, StructuredGuidance
from tests.tiny import run, sd, sd2, sdxl

PROMPT = "a red circle and a blue square"
MORE = "a cat and a dog"


def projections(pipe: Any) -> Counter[str]:
    """Counts calls of the projections of cross-attention, in passes with gradients and in others."""
    seen: Counter[str] = Counter()
    for name, module in pipe.unet.named_modules():
        part = name.rpartition(".")[2]
        if part in {"to_q", "to_k", "to_v"} and ".attn2." in name:

            def note(_: Any, __: Any, part: str = part) -> None:
                seen[part if torch.is_grad_enabled() else f"image {part}"] += 1

            module.register_forward_pre_hook(note)
    return seen


def test_text_is_projected_once_a_call_and_queries_once_a_pass() -> None:
    pipe = sd()
    seen = projections(pipe)
    layers = sum(layer.kind == "cross" for layer in unet_layers(pipe.unet))
    with t2ictl.controlled(pipe, [AttentionSegregation(layers=("cross",))]):
        run(pipe, PROMPT, steps=4)
    assert seen["to_q"] == 4 * layers and layers > 3
    assert seen["to_k"] == seen["to_v"] == layers
    with t2ictl.controlled(pipe, [AttentionSegregation(layers=("cross",))]):
        run(pipe, PROMPT, steps=2)
    assert seen["to_k"] == 2 * layers  # another call encodes its text anew


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
@pytest.mark.parametrize("processor", ["plain", "sliced", "fused"])
def test_moves_do_not_depend_on_the_processor_that_was_there(build: Any, processor: str) -> None:
    pipe = build(dtype=torch.float64)
    made = []
    for chosen in ("default", processor):
        if chosen == "plain":
            pipe.unet.set_attn_processor(AttnProcessor())
        elif chosen == "sliced":
            pipe.enable_attention_slicing(1)
        elif chosen == "fused":
            pipe.fuse_qkv_projections(vae=False)
        with t2ictl.controlled(pipe, [AttentionSegregation()]) as session:
            made.append(run(pipe, PROMPT, steps=3))
        assert len(session.trace) == 3
    # The explicit stock processor of SD 2.x drops to float32 where the layer asks for upcasting.
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-4 if processor in ("plain", "sliced") else 1e-9)
    assert (made[0] - run(pipe, PROMPT, steps=3)).abs().max() > 1e-3


def refining(**more: Any) -> AttendAndExcite:
    return AttendAndExcite(
        refinement=Refinement(thresholds=((0.0, 0.6),), max_iterations=6, **more), step=StepSize(scale=40.0)
    )


@pytest.mark.parametrize("beside", [[], [StructuredGuidance()]], ids=["alone", "beside an edit"])
def test_images_that_are_good_enough_leave_the_batch_and_come_out_as_alone(beside: list[Any]) -> None:
    pipe, prompts = sd(dtype=torch.float64), [PROMPT, MORE, "a bird"]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    with t2ictl.controlled(pipe, [refining(), *beside]) as together:
        made = run(pipe, prompts, steps=3, seed=None, generator=generators)
    passes, cost = [], 0
    for row, prompt in enumerate(prompts):
        with t2ictl.controlled(pipe, [refining(), *beside]) as alone:
            one = run(pipe, prompt, steps=3, seed=None, generator=torch.Generator().manual_seed(row + 1))
        torch.testing.assert_close(made[row], one[0], rtol=0, atol=1e-8)
        passes.append(len(alone.trace))
        cost += alone.cost.extra_forwards
    assert len(set(passes)) > 1, "the rows need unlike numbers of passes, or nothing leaves"
    assert len(together.trace) == max(passes)
    # An edit may want the whole batch, so beside one the rows stay; else the batch costs what its images cost alone.
    assert together.cost.extra_forwards == (max(passes) * 3 if beside else cost)


def test_looking_seldom_gives_the_same_images() -> None:
    pipe, made = sd(), []
    for look in (1, 4):
        with t2ictl.controlled(pipe, [refining(check_every=look)]):
            made.append(run(pipe, [PROMPT, MORE], steps=2))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("start", [0.0, 0.25])
def test_updates_at_every_so_many_steps(every: int, start: float) -> None:
    pipe = sd()
    control = AttentionSegregation(step=StepSize(every=every), window=Window(start=start))
    with t2ictl.controlled(pipe, [control]) as session:
        run(pipe, PROMPT, steps=8)
    first = int(start * 8)
    assert [each.step.index for each in session.trace] == list(range(first, 8, every))
    assert session.cost.extra_forwards == session.cost.backwards == len(session.trace)

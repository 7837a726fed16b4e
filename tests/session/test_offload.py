"""Weights that are not always where they are needed: offloading of whole models, of layers, and casting."""

from __future__ import annotations

import pytest
import torch

import t2ictl
from t2ictl.errors import UnsupportedPipeline
from t2ictl.guidance.rules import StepSize
from t2ictl.processors.attention_segregation import AttentionSegregation
from tests import tiny
from tests.session.pipeline_cases import unreached
from tests.session.session_cases import PROMPT

accelerate = pytest.importorskip("accelerate")  # what diffusers offloads with; a skip here fails the run
MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))


def test_model_offloading() -> None:
    """What ``enable_model_cpu_offload``, which needs an accelerator, does to the denoiser before and after a call."""
    pipe = tiny.sd()
    plain = tiny.run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)

    def renew() -> None:
        accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
        accelerate.cpu_offload_with_hook(pipe.unet, "cpu")

    renew()
    with t2ictl.controlled(pipe, [MOVES], record=True) as session:
        for calls in (1, 2, 3):
            assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)
            assert session.cost.extra_forwards == 2 * calls
            renew()
        forward = pipe.unet.forward
    assert pipe.unet.forward is forward and "_diffusers_hook" not in pipe.unet.__dict__
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)


def test_model_offloading_switched_on_inside() -> None:
    pipe = tiny.sd()
    plain = tiny.run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        expected = tiny.run(pipe, PROMPT, steps=2)
        accelerate.cpu_offload_with_hook(pipe.unet, "cpu")
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)
    assert session.cost.forwards == 2 * 4
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)


def test_sequential_offloading() -> None:
    pipe = tiny.sd()
    plain = tiny.run(pipe, PROMPT, steps=2)
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    with t2ictl.controlled(pipe, record=True) as session:  # maps need no gradient
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    assert float(session.record.map("circle").sum()) > 0
    with unreached(pipe), pytest.raises(UnsupportedPipeline, match="enable_model_cpu_offload"):
        with t2ictl.controlled(pipe, [MOVES]):
            tiny.run(pipe, PROMPT, steps=2)


def test_group_offloading_and_layerwise_casting() -> None:
    cpu = torch.device("cpu")
    grouped, cast = tiny.sd(), tiny.sd()
    grouped.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    cast.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    for pipe, name in ((grouped, "group_offloading"), (cast, "layerwise_casting")):
        plain = tiny.run(pipe, PROMPT, steps=2)
        with t2ictl.controlled(pipe, record=True):
            assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
        with unreached(pipe), pytest.raises(UnsupportedPipeline, match=name):
            with t2ictl.controlled(pipe, [MOVES]):
                tiny.run(pipe, PROMPT, steps=2)

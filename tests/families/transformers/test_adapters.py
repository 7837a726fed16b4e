"""Adapters of transformers: LoRA weights at the projections, and image prompts with processors of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from torch import Tensor

from tests import tiny
from tests.families.transformers.cases import FAMILIES, MOVES, PROMPT, STEPS, distance, families, held
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run

# -- LoRA -------------------------------------------------------------------------------------------------------------

# Argument of the call that scales the adapter's weights; PixArt and HunyuanDiT have none.
LORA_SCALE = {
    "sana": "attention_kwargs",
    "sd3": "joint_attention_kwargs",
    "flux": "joint_attention_kwargs",
    "chroma": "joint_attention_kwargs",
}


def add_lora(pipe: Any) -> None:
    """A LoRA adapter with random weights at all projections of attention, by the class's own method or by PEFT's."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        if hasattr(pipe.transformer, "add_adapter"):
            pipe.transformer.add_adapter(config)
        else:
            inject_adapter_in_model(config, pipe.transformer)


def check(pipe: Any, **call: Any) -> tuple[Tensor, Tensor]:
    """Recorded bit-equal, moved, restored; return the plain and the moved latents."""
    call = {"steps": STEPS} | call
    plain = run(pipe, PROMPT, **call)
    before = state(pipe)
    recorded, session = held(pipe, [], record=True, **call)
    assert torch.equal(recorded, plain)
    assert float(session.record.map("circle").std()) > 1e-4
    moved, _ = held(pipe, [MOVES], **call)
    assert torch.isfinite(moved).all() and distance(moved, plain) > 1e-3
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, **call), plain)
    return plain, moved


@families
def test_lora(name: str) -> None:
    pipe = FAMILIES[name]()
    without = run(pipe, PROMPT, steps=STEPS)
    add_lora(pipe)
    plain, _ = check(pipe)
    assert distance(plain, without) > 1e-3


@pytest.mark.parametrize("name", LORA_SCALE)
def test_the_scale_of_an_adapter_is_that_of_the_call(name: str) -> None:
    pipe = FAMILIES[name]()
    add_lora(pipe)
    layers = {key: each for key, each in pipe.transformer.named_modules() if hasattr(each, "scaling")}
    before = {key: dict(each.scaling) for key, each in layers.items()}
    whole, moved = check(pipe)
    half, moved_by_half = check(pipe, **{LORA_SCALE[name]: {"scale": 0.5}})
    assert distance(half, whole) > 1e-3 and distance(moved_by_half, moved) > 1e-3
    # The session's own passes end early, inside the transformer; the scale is taken back there too.
    assert layers and {key: dict(each.scaling) for key, each in layers.items()} == before


# -- image prompts ----------------------------------------------------------------------------------------------------

IMAGE_WIDTH = 20


def values(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=tiny.generator(seed))


def flux_adapter(pipe: Any) -> dict[str, Any]:
    """Load tiny weights as ``load_ip_adapter`` does; return the arguments of a call, for both sides of the guidance."""
    width, text = 32, pipe.transformer.config.joint_attention_dim
    layers = {}
    for number in range(len(pipe.transformer.transformer_blocks)):
        for kind in "kv":
            layers[f"{number}.to_{kind}_ip.weight"] = values(ord(kind) + number, width, text) / text**0.5
            layers[f"{number}.to_{kind}_ip.bias"] = torch.zeros(width)
    projection = {
        "proj.weight": values(1, 4 * text, IMAGE_WIDTH),
        "proj.bias": torch.zeros(4 * text),
        "norm.weight": torch.ones(text),
        "norm.bias": torch.zeros(text),
    }
    weights = [{"image_proj": projection, "ip_adapter": layers}]
    pipe.transformer._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
    names = ("ip_adapter_image_embeds", "negative_ip_adapter_image_embeds")
    return {name: [values(seed, 1, 1, IMAGE_WIDTH)] for seed, name in enumerate(names)}


def sd3_adapter(pipe: Any) -> dict[str, Any]:
    """Put an adapter's processors and projection as ``load_ip_adapter`` does; return the arguments of a call."""
    wide, time = 32, 64
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        pipe.transformer.image_proj = IPAdapterTimeImageProjection(
            embed_dim=IMAGE_WIDTH, output_dim=wide, hidden_dim=time, heads=1, num_queries=4, timestep_in_dim=wide
        )
        sizes = {"hidden_size": wide, "ip_hidden_states_dim": wide, "head_dim": 16, "timesteps_emb_dim": time}
        names = pipe.transformer.attn_processors
        pipe.transformer.set_attn_processor({name: SD3IPAdapterJointAttnProcessor2_0(**sizes) for name in names})
    return {"ip_adapter_image_embeds": values(2, 2, 5, IMAGE_WIDTH)}


IMAGE_PROMPTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "flux": (flux_adapter, {}),
    "flux true": (flux_adapter, {"true_cfg_scale": 3.0, "negative_prompt": "a frog"}),
    "sd3": (sd3_adapter, {}),
    "sd3 skip": (sd3_adapter, {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0}),
}


@pytest.mark.parametrize("which", IMAGE_PROMPTS)
def test_image_prompts(which: str) -> None:
    """Their processors call the kernel a second time, with keys of the image prompt: that is no map of words."""
    pipe = FAMILIES[which.partition(" ")[0]]()
    adapter, more = IMAGE_PROMPTS[which]
    plain, before = run(pipe, PROMPT, steps=STEPS, **more), held(pipe, [], record=True, **more)[1].record
    prompted, _ = check(pipe, **adapter(pipe), **more)
    assert distance(prompted, plain) > 1e-2
    given = adapter(pipe)
    after = held(pipe, [], record=True, **given, **more)[1].record
    first, second = (each.map("circle", step=0) for each in (before, after))
    assert first.shape == second.shape == (8, 6)
    check(pipe, **given, **more, num_images_per_prompt=2)

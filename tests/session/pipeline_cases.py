"""What users do to a pipeline, the pipelines they use, and what is looked at around a session."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch

from tests import tiny


def state(pipe: Any) -> dict[str, Any]:
    """Everything that a session touches or might touch. Functions and modules are compared by identity."""
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    parts = {"pipe": pipe, "denoiser": denoiser, "scheduler": pipe.scheduler}
    found: dict[str, Any] = {"processors": dict(denoiser.attn_processors)}
    for name, part in parts.items():
        found[f"{name}.keys"] = set(part.__dict__)
        found[f"{name}.functions"] = {key: value for key, value in part.__dict__.items() if callable(value)}
    for name, module in denoiser.named_modules():
        found[f"denoiser.{name}.keys"] = set(module.__dict__) | set(module._modules)
    found["gradients"] = [each.requires_grad for each in denoiser.parameters()]
    found["names"] = [name for name, _ in denoiser.named_parameters()]
    found["random"] = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    found["modes"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    return found


def sibling(pipe: Any, **parts: Any) -> Any:
    """An image-to-image pipeline made of the same parts, as users make it."""
    other = diffusers.StableDiffusionImg2ImgPipeline(**(pipe.components | parts), requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


@contextmanager
def unreached(pipe: Any) -> Iterator[None]:
    """The denoiser computes nothing."""
    calls: list[int] = []
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield
    finally:
        handle.remove()
    assert not calls


def add_lora(pipe: Any) -> None:
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        names = ["to_q", "to_k", "to_v", "to_out.0"]
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))


def give_image_prompt(pipe: Any) -> dict[str, Any]:
    """Load tiny IP-Adapter weights as ``load_ip_adapter`` does, and make the arguments of a call with it."""
    width = tiny.TEXT_WIDTH
    projection = {
        "proj.weight": torch.randn(4 * width, width, generator=tiny.generator(1)),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    layers = {}
    names = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(names):
        rows = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for kind in ("k", "v"):
            values = torch.randn(rows, width, generator=tiny.generator(ord(kind) + number))
            layers[f"{2 * number + 1}.to_{kind}_ip.weight"] = values
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    pipe.set_ip_adapter_scale(0.6)
    image = torch.randn(1, 1, width, generator=tiny.generator(3))
    return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(image), image])]}


def fuse(pipe: Any) -> None:
    pipe.fuse_qkv_projections()


def slice_attention(pipe: Any) -> None:
    pipe.enable_attention_slicing(1)


def old_processors(pipe: Any) -> None:
    pipe.unet.set_default_attn_processor()
    pipe.unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd2": tiny.sd2,
    "img2img": tiny.sd_img2img,
    "inpaint": tiny.sd_inpaint,
    "inpaint 9 channels": functools.partial(tiny.sd_inpaint, channels=9),
    "controlnet": tiny.sd_controlnet,
    "lcm": tiny.sd_lcm,
    "sdxl img2img": tiny.sdxl_img2img,
    "sdxl inpaint": tiny.sdxl_inpaint,
    "sdxl controlnet": tiny.sdxl_controlnet,
}

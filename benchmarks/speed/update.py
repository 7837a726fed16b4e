"""What one latent update costs: operations and bytes of the published way and of ours, on real layer shapes.

The published way runs the whole U-Net with an explicit softmax in every attention layer; ours
stops after the last layer whose maps are needed and keeps fused kernels elsewhere. Operations
are counted on the ``meta`` device, so that the shapes are the real ones and no weights are needed.
Both are read by our tap, whose own queries and keys add 0.01 F (SD 1.5) and 0.04 F (SDXL) to the published way.
The last two ways compute some layers again in place of keeping them (``controlled(..., checkpointing=...)``).

Run ``python -m t2ictl.benchmarks.speed.update``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.passes import ActivePass, DenoiserPass, StopForward
from t2ictl.attention.processor import ControlledAttention
from t2ictl.families.unet import unet_layers
from t2ictl.maps.recorder import MapTap
from t2ictl.session.checkpoints import Checkpointing, Recomputed
from t2ictl.settings.windows import Step

__all__ = ["MODELS", "main", "measure"]

#: Name of a way in the table, and the arguments of :func:`measure`.
WAYS: dict[str, dict[str, Any]] = {
    "published": {"published": True},
    "ours": {"published": False},
    'ours, `checkpointing="feed_forward"`': {"published": False, "checkpointing": "feed_forward"},
    'ours, `checkpointing="all"`': {"published": False, "checkpointing": "all"},
}

# The published configurations; weights play no part in counting.
MODELS: dict[str, dict[str, Any]] = {
    "SD 1.5, 512 x 512": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SD 2.1, 768 x 768": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "SDXL, 1024 x 1024": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def _inputs(unet: UNet2DConditionModel, rows: int = 1) -> tuple[Tensor, dict[str, Any]]:
    """A latent that wants a gradient, and the other arguments of the denoiser."""
    side, width = unet.config.sample_size, unet.config.cross_attention_dim

    def zeros(*shape: int) -> Tensor:
        """Something of this shape for each row."""
        return torch.zeros(rows, *shape, device="meta", dtype=unet.dtype)

    sample = zeros(4, side, side).requires_grad_()
    keywords: dict[str, Any] = {"encoder_hidden_states": zeros(77, width)}
    if unet.config.addition_embed_type:
        keywords["added_cond_kwargs"] = {"text_embeds": zeros(1280), "time_ids": zeros(6)}
    return sample, keywords


def _update(unet: UNet2DConditionModel, factor: int, *, truncate: bool) -> Callable[[], Tensor]:
    """Set up one update: forward, mean map of the semantic layers; returns what gives the loss."""
    layers = [layer for layer in unet_layers(unet) if layer.kind == "cross" and layer.stride == factor]
    active_pass, tap = ActivePass(), MapTap(layers, slice(None))
    for layer in layers:
        attention: Any = unet.get_submodule(layer.module)
        attention.set_processor(ControlledAttention(layer, attention.processor, active_pass))
    sample, keywords = _inputs(unet)

    def run() -> Tensor:
        """Run to the last map, and give a loss of it."""
        active_pass.current = DenoiserPass(
            batch=BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=False),
            latent_size=(sample.shape[-2], sample.shape[-1]),
            step=Step(index=0, total=1, timestep=1.0),
            taps=[tap],
            stop_after=layers[-1].address if truncate else None,
            is_own=truncate,
        )
        try:
            unet(sample, torch.ones((), device="meta"), **keywords)
        except StopForward:
            pass
        return tap.mean().square().sum()

    run.sample = sample  # type: ignore[attr-defined]
    return run


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Use CUDA's flash kernel, which on the ``meta`` device nothing would choose: there torch takes the unfused one."""

    def flash(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, **_: Any) -> Tensor:
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
        return out

    with mock.patch.object(F, "scaled_dot_product_attention", flash):
        yield


def _saved_bytes(run: Callable[[], Tensor], unet: UNet2DConditionModel) -> tuple[Tensor, int]:
    """Bytes of the distinct storages that autograd keeps for backward, weights not counted."""
    weights = {each.untyped_storage()._cdata for each in unet.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (tensor, storage.nbytes())  # the tensor keeps its storage's address taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    return loss, sum(size for _, size in kept.values())


def measure(name: str, *, published: bool, checkpointing: Checkpointing = "off") -> dict[str, float]:
    """Count one update.

    Args:
        name: a key of :data:`MODELS`.
        published: the published way (all of the U-Net, explicit softmax, trainable weights), or ours.
        checkpointing: which layers are computed again for the backward pass.

    Returns:
        ``forward`` and ``backward`` in F, where F is one plain forward pass of one row, and
        ``saved`` in GiB of float16.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**MODELS[name]).half().eval()
    unet.requires_grad_(published)
    if published:
        unet.set_attn_processor(AttnProcessor())
    sample, keywords = _inputs(unet)
    with _flash_attention():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(sample, torch.ones((), device="meta"), **keywords)
        plain = counter.get_total_flops()
        run = _update(unet, factor=4, truncate=not published)
        with FlopCounterMode(display=False) as forward, Recomputed(unet, checkpointing)():
            loss, saved = _saved_bytes(run, unet)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(loss, run.sample)  # type: ignore[attr-defined]
    return {
        "forward": forward.get_total_flops() / plain,
        "backward": backward.get_total_flops() / plain,
        "saved": saved / 2**30,
    }


def main() -> int:
    """Print the table.

    Returns:
        Exit status 0.
    """
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    print("| model | way | forward (F) | backward (F) | sum (F) | kept for backward (GiB, float16) |")
    print("|---|---|---|---|---|---|")
    for name in MODELS:
        for way, arguments in WAYS.items():
            found = measure(name, **arguments)
            total = found["forward"] + found["backward"]
            print(
                f"| {name} | {way} | {found['forward']:.3f} | {found['backward']:.3f} | {total:.3f} | "
                f"{found['saved']:.2f} |"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Transformers as published, without weights: what the measurements of their updates share.

Configurations and text lengths are those of the released models at 1024 x 1024 pixels. Layers whose maps are heard are
those of each family's adapter.

Letters: ``B`` batch row, ``C`` channels, ``Y`` ``X`` latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from t2ictl.families.flux import FluxAdapter
from t2ictl.families.pixart import PixArtAdapter
from t2ictl.families.sana import SanaAdapter
from t2ictl.families.stable_diffusion_3 import StableDiffusion3Adapter
from t2ictl.families.transformers import TransformerAdapter
from t2ictl.ports.base import Inputs

__all__ = ["TRANSFORMERS", "Published", "empty_adapter", "transformer_inputs"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One released transformer.

    Args:
        title: its name.
        adapter: its family.
        config: of its class.
        cells: of each side of the latent at 1024 pixels.
        shapes: of its arguments beside the latent, with one row.
        flags: arguments that are no tensors.
    """

    title: str
    adapter: type[TransformerAdapter]
    config: Mapping[str, Any]
    cells: int
    shapes: Mapping[str, tuple[int, ...]]
    flags: Mapping[str, Any] = field(default_factory=dict)


_SD35: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}
# 77 positions of CLIP, then 256 of T5.
_SD35_SHAPES = {"encoder_hidden_states": (1, 333, 4096), "pooled_projections": (1, 2048), "timestep": (1,)}

#: By the name that the command takes.
TRANSFORMERS: dict[str, Published] = {
    "flux": Published(
        title="FLUX.1-dev",
        adapter=FluxAdapter,
        config={"guidance_embeds": True},  # else the defaults of its class
        cells=128,
        shapes={
            "hidden_states": (1, 4096, 64),
            "encoder_hidden_states": (1, 512, 4096),
            "pooled_projections": (1, 768),
            "timestep": (1,),
            "guidance": (1,),
            "img_ids": (4096, 3),
            "txt_ids": (512, 3),
        },
    ),
    "sd35m": Published(
        title="SD3.5-medium",
        adapter=StableDiffusion3Adapter,
        config={
            **_SD35,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
        cells=128,
        shapes=_SD35_SHAPES,
    ),
    "sd35l": Published(
        title="SD3.5-large",
        adapter=StableDiffusion3Adapter,
        config={
            **_SD35,
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
        },
        cells=128,
        shapes=_SD35_SHAPES,
    ),
    "sana": Published(
        title="SANA-1.6B",
        adapter=SanaAdapter,
        config={},  # the defaults of its class
        cells=32,
        shapes={"encoder_hidden_states": (1, 300, 2304), "encoder_attention_mask": (1, 300), "timestep": (1,)},
    ),
    "pixart": Published(
        title="PixArt-Sigma-XL-2",
        adapter=PixArtAdapter,
        config={
            "sample_size": 128,
            "num_layers": 28,
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "cross_attention_dim": 1152,
            "caption_channels": 4096,
            "interpolation_scale": 2,
            "use_additional_conditions": False,
        },
        cells=128,
        shapes={"encoder_hidden_states": (1, 300, 4096), "encoder_attention_mask": (1, 300), "timestep": (1,)},
        flags={"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
}


def empty_adapter(model: Published) -> TransformerAdapter:
    """Make a transformer on torch's ``meta`` device: the real shapes in bfloat16, and no contents.

    Args:
        model: which one.

    Returns:
        Its adapter; there is nothing else in its pipeline. Weights ask for no gradient, as in passes of a session.
    """
    with torch.device("meta"):
        denoiser = model.adapter.denoiser_class(**model.config).eval().requires_grad_(False)
    nn.Module.to(
        denoiser, torch.bfloat16
    )  # that of diffusers warns of parts to be kept in float32, of which it has none
    return model.adapter(SimpleNamespace(transformer=denoiser))


def transformer_inputs(model: Published, adapter: TransformerAdapter) -> tuple[Tensor, Inputs]:
    """Make the arguments of one evaluation of one row.

    Args:
        model: which one.
        adapter: what :func:`empty_adapter` made of it.

    Returns:
        A latent ``latent_BCYX`` that wants a gradient, and the denoiser's arguments, made of it.
    """
    port = adapter.port
    zeros = {name: torch.zeros(shape, device="meta", dtype=torch.bfloat16) for name, shape in model.shapes.items()}
    latent_BCYX = torch.zeros(
        1, port.latent_channels, model.cells, model.cells, device="meta", dtype=torch.bfloat16, requires_grad=True
    )
    inputs = {port.sample_name: latent_BCYX, **zeros, **model.flags}
    return latent_BCYX, port.with_latents(inputs, latent_BCYX)

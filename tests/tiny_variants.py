"""Image-to-image, inpainting and ControlNet with the tiny pipelines of :mod:`tests.tiny_transformers`.

Every variant takes over the parts of its family, as users do with ``from_pipe``; run it with
``tests.tiny_transformers.run``, which adds image, mask and control image.

Example:
    >>> run(VARIANTS["sd3_img2img"](), "a red circle", steps=2).shape
    torch.Size([1, 8, 16, 12])
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    ChromaImg2ImgPipeline,
    ChromaInpaintPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    HunyuanDiT2DControlNetModel,
    HunyuanDiTControlNetPipeline,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
)

from tests.tiny import _finish, _seeded
from tests.tiny_transformers import chroma, flux, hunyuan_dit, run, sana, sd3

__all__ = ["VARIANTS", "run"]

# Packed channels of FLUX Fill: latents and masked latents of 2 x 2 cells of four channels, and the mask's 8 x 8 pixels.
FILL_CHANNELS = 16 + 16 + 64


Net = Callable[[Any], Any]


def sd3_of(channels: int, **config: Any) -> Any:
    """SD3 with 16 latent channels, the only number that its inpainting accepts; ``channels`` 16, or 33 with a mask."""
    return sd3(in_channels=channels, out_channels=16, **config)


def chroma_with_field(**config: Any) -> Any:
    """Chroma whose configuration has ``guidance_embeds``: its inpainting reads the field, its class does not set it."""
    pipe = chroma(**config)
    pipe.transformer.register_to_config(guidance_embeds=False)
    return pipe


def _variant(
    cls: Any,
    family: Callable[..., Any],
    net: Net | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Any:
    """Pipeline ``cls`` with the parts of ``family``, and a ControlNet that ``net`` makes from the transformer."""
    pipe = family(seed=seed, **config)
    accepted = inspect.signature(cls.__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in accepted}
    if "requires_safety_checker" in accepted:
        parts["requires_safety_checker"] = False
    if net is not None:
        with _seeded(seed):
            parts["controlnet"] = net(pipe.transformer)
    return _finish(cls(**parts), dtype)


@torch.no_grad()
def _controlnet(cls: Any, transformer: Any, **config: Any) -> Any:
    """A ControlNet with the transformer's weights, its zero layers filled: an untrained one would do nothing."""
    accepted = inspect.signature(cls.__init__).parameters
    shared = {name: value for name, value in transformer.config.items() if name in accepted}
    net = cls(**(shared | config))
    net.load_state_dict(transformer.state_dict(), strict=False)
    for layer in net.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.1)
    return net


def _net(cls: Any, **config: Any) -> Net:
    return functools.partial(_controlnet, cls, **config)


# Fewer layers than the transformer, as released ControlNets have.
_SD3_NET = _net(SD3ControlNetModel, num_layers=2)
_SD3_MASK_NET = _net(SD3ControlNetModel, num_layers=2, extra_conditioning_channels=1)
_FLUX_NET = _net(FluxControlNetModel, num_layers=2, num_single_layers=1)
_SANA_NET = _net(SanaControlNetModel, num_layers=2)
_HUNYUAN_NET = _net(HunyuanDiT2DControlNetModel, transformer_num_layers=4)

VARIANTS: dict[str, Callable[..., Any]] = {
    name: functools.partial(_variant, *row)
    for name, row in {
        "sd3_img2img": (StableDiffusion3Img2ImgPipeline, sd3),
        "sd3_inpaint": (StableDiffusion3InpaintPipeline, functools.partial(sd3_of, 16)),
        "sd3_inpaint_33": (StableDiffusion3InpaintPipeline, functools.partial(sd3_of, 33)),
        "sd3_controlnet": (StableDiffusion3ControlNetPipeline, sd3, _SD3_NET),
        "sd3_controlnet_inpaint": (StableDiffusion3ControlNetInpaintingPipeline, sd3, _SD3_MASK_NET),
        "flux_img2img": (FluxImg2ImgPipeline, flux),
        "flux_inpaint": (FluxInpaintPipeline, flux),
        "flux_controlnet": (FluxControlNetPipeline, flux, _FLUX_NET),
        "flux_controlnet_img2img": (FluxControlNetImg2ImgPipeline, flux, _FLUX_NET),
        "flux_controlnet_inpaint": (FluxControlNetInpaintPipeline, flux, _FLUX_NET),
        "flux_fill": (FluxFillPipeline, functools.partial(flux, in_channels=FILL_CHANNELS, out_channels=16)),
        "flux_kontext": (FluxKontextPipeline, flux),
        "chroma_img2img": (ChromaImg2ImgPipeline, chroma),
        "chroma_inpaint": (ChromaInpaintPipeline, chroma_with_field),
        "hunyuan_dit_controlnet": (HunyuanDiTControlNetPipeline, hunyuan_dit, _HUNYUAN_NET),
        "sana_controlnet": (SanaControlNetPipeline, sana, _SANA_NET),
    }.items()
}

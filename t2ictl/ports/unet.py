"""The U-Net of SD 1.x, SD 2.x and SDXL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from t2ictl.attention.layers import Layer
from t2ictl.attention.processor import ControlledAttention
from t2ictl.errors import BadSetting
from t2ictl.ports.base import DenoiserPort, Inputs

__all__ = ["UNetPort", "unet_layers"]


_BLOCK = re.compile(
    r"(?P<place>down|mid|up)_block[s]?\.(?:(?P<block>\d+)\.)?attentions\.(?P<attention>\d+)"
    r"\.transformer_blocks\.(?P<layer>\d+)\.(?P<name>attn[12])\.processor"
)


class UNetPort(DenoiserPort):
    """``UNet2DConditionModel``: cross-attention to text, latents as they are."""

    component = "unet"
    sample_name = "sample"
    # Pipelines that evaluate it several times in a step (self-attention guidance, panoramas) do so on other latents.
    several_calls = False
    processor_class = ControlledAttention

    @classmethod
    def _stock_class(cls) -> type[nn.Module]:
        return UNet2DConditionModel

    @property
    def latent_channels(self) -> int:
        """Channels that it predicts."""
        return int(self.denoiser.config.out_channels)

    @property
    def native_cells(self) -> tuple[int, int]:
        """Its sample size."""
        own = self.denoiser.config.sample_size
        sides = own if isinstance(own, (list, tuple)) else (own, own)
        if not all(isinstance(each, int) for each in sides):
            raise BadSetting("The model does not say which size its images have.", "Ask for both, width and height.")
        return int(sides[0]), int(sides[1])

    def without_text(self, inputs: Inputs) -> dict[str, Any]:
        """Take out the mask of the text's positions; pooled states become zero."""
        kept = {key: value for key, value in inputs.items() if key != "encoder_attention_mask"}
        added = kept.get("added_cond_kwargs") or {}
        if "text_embeds" in added:
            kept["added_cond_kwargs"] = {**added, "text_embeds": torch.zeros_like(added["text_embeds"])}
        return kept

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Self- and cross-attention of all transformer blocks."""
        return unet_layers(self.denoiser)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield residual blocks and transformer blocks."""
        for name, module in self.denoiser.named_modules():
            if isinstance(module, (ResnetBlock2D, BasicTransformerBlock)):
                yield name, module


def unet_layers(denoiser: nn.Module) -> tuple[Layer, ...]:
    """List the attention layers of a U-Net in the order in which it runs them.

    Args:
        denoiser: a ``UNet2DConditionModel``.

    Returns:
        The layers. Layers that are not part of a transformer block have no address and are left alone.
    """
    levels = len(denoiser.config.down_block_types)  # type: ignore[union-attr, arg-type]
    order = {"down": 0, "mid": 1, "up": 2}
    found = []
    for name in denoiser.attn_processors:  # type: ignore[union-attr]
        match = _BLOCK.fullmatch(name)
        if match is None:
            continue
        block = int(match["block"] or 0)
        level = {"down": block, "mid": levels - 1, "up": levels - 1 - block}[match["place"]]
        key = (order[match["place"]], block, int(match["attention"]), int(match["layer"]), match["name"])
        found.append((key, match["place"], 2**level, name.removesuffix(".processor")))
    layers = []
    for position, (key, place, stride, module) in enumerate(sorted(found)):
        kind = "self" if key[4] == "attn1" else "cross"
        layers.append(
            Layer(
                address=f"{place}.{key[1]}.{key[2]}.{key[3]}.{kind}",
                module=module,
                kind=kind,  # type: ignore[arg-type]
                block=place,
                stride=stride,
                order=position,
                depth=position / len(found),
                heads=denoiser.get_submodule(module).heads,  # type: ignore[arg-type]
            )
        )
    return tuple(layers)

"""The attention layers of a U-Net."""

from __future__ import annotations

import re

from torch import nn

from t2ictl.attention.layers import Layer

__all__ = ["unet_layers"]


_BLOCK = re.compile(
    r"(?P<place>down|mid|up)_block[s]?\.(?:(?P<block>\d+)\.)?attentions\.(?P<attention>\d+)"
    r"\.transformer_blocks\.(?P<layer>\d+)\.(?P<name>attn[12])\.processor"
)


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
                block=place,  # type: ignore[arg-type]
                stride=stride,
                order=position,
                heads=denoiser.get_submodule(module).heads,  # type: ignore[arg-type]
            )
        )
    return tuple(layers)

"""What one latent update costs: operations and bytes of the published way and of ours, on real layer shapes.

The published way runs the whole U-Net with an explicit softmax in every attention layer; ours
stops after the last layer whose maps are needed and keeps fused kernels elsewhere. Operations
are counted on the ``meta`` device, so that the shapes are the real ones and no weights are needed.
Both are read by our tap, whose own queries and keys add 0.01 F (SD 1.5) and 0.04 F (SDXL) to the published way.
The last ways compute some layers again in place of keeping them (``controlled(..., checkpointing=...)``). Transformers
have a table of their own (:mod:`t2ictl.benchmarks.speed.transformer_update`).

Command: ``t2ictl bench speed update``, or ``t2ictl bench speed update --model flux,sd35m``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import PassKind, StopForward
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import (
    MODELS,
    empty_unet,
    first_pass,
    flash_attention,
    listen,
    operations_of,
    saved_bytes,
    unet_inputs,
)
from t2ictl.benchmarks.speed.transformer_update import HEAD, transformer_rows
from t2ictl.benchmarks.speed.transformers import TRANSFORMERS
from t2ictl.errors import BadSetting
from t2ictl.maps.recorder import MapTap
from t2ictl.ports.unet import UNetPort, unet_layers
from t2ictl.session.checkpoints import Checkpointing, Recomputed

__all__ = ["measure", "run"]

#: Name of a way in the table, and the arguments of :func:`measure`.
WAYS: dict[str, dict[str, Any]] = {
    "published": {"published": True},
    "ours": {"published": False},
    'ours, `checkpointing="feed_forward"`': {"published": False, "checkpointing": "feed_forward"},
    'ours, `checkpointing="all"`': {"published": False, "checkpointing": "all"},
    'ours, `checkpointing="block"`': {"published": False, "checkpointing": "block"},
}


def _heard(unet: UNet2DConditionModel, factor: int) -> list[Layer]:
    """The cross-attention layers of one size."""
    return [layer for layer in unet_layers(unet) if layer.kind == "cross" and layer.stride == factor]


def _update(unet: UNet2DConditionModel, factor: int, *, truncate: bool) -> tuple[Callable[[], Tensor], Tensor]:
    """Set up one update: what runs to the mean map of the semantic layers and returns a loss, and the latent."""
    layers = _heard(unet, factor)
    active_pass, tap = listen(unet, layers), MapTap(layers, slice(None))
    latent_BCYX, keywords = unet_inputs(unet)

    def forward() -> Tensor:
        """Run to the last map, and return a loss of it."""
        stop = layers[-1].address if truncate else None
        kind = PassKind.MAPS if truncate else PassKind.IMAGE
        active_pass.begin(first_pass(latent_BCYX, guided=False, taps=[tap], stop_after=stop, kind=kind))
        try:
            unet(latent_BCYX, torch.ones((), device="meta"), **keywords)
        except StopForward:
            pass
        return tap.mean().square().sum()

    return forward, latent_BCYX


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
    unet = empty_unet(name)
    unet.requires_grad_(published)
    if published:
        unet.set_attn_processor(AttnProcessor())
    latent_BCYX, keywords = unet_inputs(unet)
    with flash_attention():
        with torch.no_grad():
            _, plain = operations_of(lambda: unet(latent_BCYX, torch.ones((), device="meta"), **keywords))
        update, moved_BCYX = _update(unet, factor=4, truncate=not published)
        with Recomputed(UNetPort(unet), checkpointing, [layer.module for layer in _heard(unet, 4)])():
            (loss, saved), forward = operations_of(lambda: saved_bytes(update, unet))
        _, backward = operations_of(lambda: torch.autograd.grad(loss, moved_BCYX))
    return {"forward": forward / plain, "backward": backward / plain, "saved": saved / 2**30}


def run(model: str = "") -> None:
    """Print a row for each model and way.

    Args:
        model: names of transformers, with commas; empty for the U-Nets.

    Raises:
        BadSetting: if there is no transformer of such a name.
    """
    if model:
        print_table(HEAD, transformer_rows(_known(model)))
        return
    head = ("model", "way", "forward (F)", "backward (F)", "sum (F)", "kept for backward (GiB, float16)")
    print_table(head, _rows())


def _known(model: str) -> tuple[str, ...]:
    names = tuple(each.strip() for each in model.split(","))
    if unknown := [each for each in names if each not in TRANSFORMERS]:
        raise BadSetting(f"There is no model {unknown[0]!r} to measure.", f"Models: {', '.join(TRANSFORMERS)}.")
    return names


def _rows() -> Iterator[tuple[str, ...]]:
    for name in MODELS:
        for way, arguments in WAYS.items():
            found = measure(name, **arguments)
            work = (found["forward"], found["backward"], found["forward"] + found["backward"])
            yield name, way, *(f"{each:.3f}" for each in work), f"{found['saved']:.2f}"

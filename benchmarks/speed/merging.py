"""What token merging costs over plain sampling: operations on real layer shapes.

Counted on the ``meta`` device, piece by piece: one evaluation of the entropy (forward to the last layer that is
read, and back to the text rows), the prediction under a phrase, and one evaluation of the semantic loss (a
text of one position, whole U-Net, and back). Their sum over the steps of a preset, for two groups, stands beside
plain guided sampling of 50 steps, which is 100 F; F is one plain forward pass of one row. The published way runs
the whole U-Net with explicit softmax every time, three semantic updates, and one more pass a group and step for
trajectories of the phrases.

Command: ``t2ictl bench speed merging``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from t2ictl.attention.layers import select_layers
from t2ictl.attention.passes import ActivePass, DenoiserPass, PassKind, StopForward
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import (
    MODELS,
    TOKENS,
    empty_unet,
    first_pass,
    flash_attention,
    listen,
    operations_of,
    unet_inputs,
)
from t2ictl.maps.recorder import MapTap
from t2ictl.ports.unet import unet_layers
from t2ictl.processors.token_merging.control import TokenMerging
from t2ictl.processors.token_merging.presets import PRESETS, published_layers

__all__ = ["measure", "run"]

STEPS, GROUPS = 50, 2
PLAIN = 2 * STEPS  # both branches of the guidance


def _look(unet: UNet2DConditionModel, active_pass: ActivePass, tokens: int, now: DenoiserPass) -> tuple[int, int]:
    """Operations of one pass with a text of some tokens, and of the way back to it."""
    latent_BCYX, keywords = unet_inputs(unet)
    text = torch.zeros(1, tokens, unet.config.cross_attention_dim, device="meta", dtype=unet.dtype, requires_grad=True)
    active_pass.begin(now)

    def forward() -> Tensor:
        """Run to the last map, or to the noise where none is wanted."""
        try:
            moved = {**keywords, "encoder_hidden_states": text}
            noise = unet(latent_BCYX.detach(), torch.ones((), device="meta"), **moved)
        except StopForward:
            noise = None
        maps = [tap.mean().square().sum() for tap in now.taps if isinstance(tap, MapTap)]
        return torch.stack(maps).sum() if maps or noise is None else noise.sample.square().sum()

    loss, there = operations_of(forward)
    _, back = operations_of(lambda: torch.autograd.grad(loss, text))
    active_pass.end()
    return there, back


def measure(name: str, *, published: bool) -> dict[str, float]:
    """Count the pieces.

    Args:
        name: a key of :data:`MODELS`.
        published: whole passes with an explicit softmax, or ours.

    Returns:
        ``target``, ``semantic`` (one look, there and back) and ``entropy`` (the same), in F.
    """
    unet = empty_unet(name)
    unet.requires_grad_(False)
    if published:
        unet.set_attn_processor(AttnProcessor())
    latent_BCYX, keywords = unet_inputs(unet)
    with flash_attention():
        with torch.no_grad():
            _, plain = operations_of(lambda: unet(latent_BCYX, torch.ones((), device="meta"), **keywords))
        cross = [layer for layer in unet_layers(unet) if layer.kind == "cross"]
        active_pass = listen(unet, cross)
        read = select_layers(
            cross, published_layers("sdxl" if unet.config.addition_embed_type else "sd", cross, factor=4)
        )
        stop = None if published else read[-1].address
        taps = [MapTap(read, slice(None))]
        reading = first_pass(
            latent_BCYX, guided=False, taps=taps, stop_after=stop, kind=PassKind.IMAGE if published else PassKind.MAPS
        )
        entropy = _look(unet, active_pass, TOKENS, reading)
        text_kind = PassKind.IMAGE if published else PassKind.OTHER_TEXT
        semantic = _look(unet, active_pass, 1, first_pass(latent_BCYX, guided=False, kind=text_kind))
    return {"target": 1.0, "semantic": sum(semantic) / plain, "entropy": sum(entropy) / plain}


def total(pieces: dict[str, float], window: float, entropy: int, semantic: int, *, published: bool) -> float:
    """Sum the pieces over an image.

    Args:
        pieces: from :func:`measure`.
        window: part of the schedule with updates.
        entropy: entropy updates in a step.
        semantic: semantic updates in a step.
        published: with a further pass for the trajectory of each phrase.

    Returns:
        Work as a multiple of plain sampling.
    """
    steps = round(window * STEPS)
    targets = (2 if published else 1) if semantic else 0
    a_step = GROUPS * (targets * pieces["target"] + semantic * pieces["semantic"]) + entropy * pieces["entropy"]
    return 1 + steps * a_step / PLAIN


def run() -> None:
    """Print a row for each model and way."""
    head = ("model", "way", "entropy look (F)", "semantic look (F)", "attribute (x plain)", "object (x plain)")
    print_table(head, _rows())


def _rows() -> Iterator[tuple[str, ...]]:
    for name in MODELS:
        pieces = {published: measure(name, published=published) for published in (True, False)}
        ways = [
            ("published", True, 3),
            ("ours, with the semantic loss", False, 3),
            ("ours", False, TokenMerging().binding_steps),
        ]
        for way, published, semantic in ways:
            found = pieces[published]
            sums = [
                total(found, each.window.stop, each.entropy, semantic, published=published)
                for each in (PRESETS["attribute"], PRESETS["object"])
            ]
            yield name, way, *(f"{figure:.2f}" for figure in (found["entropy"], found["semantic"], *sums))

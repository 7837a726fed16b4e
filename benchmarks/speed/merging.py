"""What token merging costs over plain sampling: operations on real layer shapes.

Counted on the ``meta`` device, piece by piece: one look at the entropy (forward to the last layer that is
read, and back to the text rows), the prediction under a phrase, and one look at the semantic loss (a
text of one position, whole U-Net, and back). Their sum over the steps of a preset, for two groups, stands beside
plain guided sampling of 50 steps, which is 100 F; F is one plain forward pass of one row. The published way runs
the whole U-Net with explicit softmax every time, three semantic updates, and one more pass a group and step for
trajectories of the phrases.

Run ``python -m t2ictl.benchmarks.speed.merging``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.layers import select_layers
from t2ictl.attention.passes import ActivePass, DenoiserPass, StopForward
from t2ictl.attention.processor import ControlledAttention
from t2ictl.benchmarks.speed.update import MODELS, _flash_attention, _inputs
from t2ictl.families.unet import unet_layers
from t2ictl.maps.recorder import MapTap
from t2ictl.processors.token_merging.control import PRESETS, TokenMerging, published_layers
from t2ictl.settings.windows import Step

__all__ = ["main", "measure"]

STEPS, GROUPS = 50, 2
PLAIN = 2 * STEPS  # both branches of the guidance


def _flops(run: Callable[[], Any]) -> tuple[Any, int]:
    with FlopCounterMode(display=False) as counter:
        found = run()
    return found, counter.get_total_flops()


def _look(unet: UNet2DConditionModel, active_pass: ActivePass, tokens: int, now: DenoiserPass) -> tuple[int, int]:
    """Operations of one pass with a text of some tokens, and of the way back to it."""
    sample, keywords = _inputs(unet)
    text = torch.zeros(1, tokens, unet.config.cross_attention_dim, device="meta", dtype=unet.dtype, requires_grad=True)
    active_pass.current = now

    def forward() -> Tensor:
        """Run to the last map, or to the noise where none is wanted."""
        try:
            noise = unet(sample.detach(), torch.ones((), device="meta"), **{**keywords, "encoder_hidden_states": text})
        except StopForward:
            noise = None
        maps = [tap.mean().square().sum() for tap in now.taps if isinstance(tap, MapTap)]
        return torch.stack(maps).sum() if maps or noise is None else noise.sample.square().sum()

    loss, there = _flops(forward)
    _, back = _flops(lambda: torch.autograd.grad(loss, text))
    active_pass.current = None
    return there, back


def measure(name: str, *, published: bool) -> dict[str, float]:
    """Count the pieces.

    Args:
        name: a key of :data:`MODELS`.
        published: whole passes with an explicit softmax, or ours.

    Returns:
        ``target``, ``semantic`` (one look, there and back) and ``entropy`` (the same), in F.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**MODELS[name]).half()
    unet.requires_grad_(False)
    if published:
        unet.set_attn_processor(AttnProcessor())
    sample, keywords = _inputs(unet)
    with _flash_attention():
        _, plain = _flops(lambda: torch.no_grad()(unet)(sample, torch.ones((), device="meta"), **keywords))
        cross, active_pass = [layer for layer in unet_layers(unet) if layer.kind == "cross"], ActivePass()
        for layer in cross:
            attention: Any = unet.get_submodule(layer.module)
            attention.set_processor(ControlledAttention(layer, attention.processor, active_pass))
        read = select_layers(
            cross, published_layers("sdxl" if unet.config.addition_embed_type else "sd", cross, factor=4)
        )
        shared: dict[str, Any] = {
            "batch": BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=False),
            "latent_size": (sample.shape[-2], sample.shape[-1]),
            "step": Step(index=0, total=1, timestep=1.0),
        }
        stop = None if published else read[-1].address
        entropy = _look(
            unet,
            active_pass,
            77,
            DenoiserPass(taps=[MapTap(read, slice(None))], stop_after=stop, is_own=not published, **shared),
        )
        semantic = _look(unet, active_pass, 1, DenoiserPass(is_free=not published, **shared))
    return {"target": 1.0, "semantic": sum(semantic) / plain, "entropy": sum(entropy) / plain}


def total(pieces: dict[str, float], window: float, entropy: int, semantic: int, *, published: bool) -> float:
    """Sum the pieces over an image.

    Args:
        pieces: as :func:`measure` gives them.
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


def main() -> int:
    """Print the table.

    Returns:
        Exit status 0.
    """
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    print("| model | way | entropy look (F) | semantic look (F) | attribute (x plain) | object (x plain) |")
    print("|---|---|---|---|---|---|")
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
            figures = f"{found['entropy']:.2f} | {found['semantic']:.2f} | {sums[0]:.2f} | {sums[1]:.2f}"
            print(f"| {name} | {way} | {figures} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What recording the maps of words costs the pass that makes the image, on real layer shapes.

Operations are counted on the ``meta`` device. Words add nothing by their number: a map needs the softmax over all
tokens, whichever of them is kept. Times are those of the embedded model, in pairs::

    python -m t2ictl.benchmarks.speed.maps
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

import t2ictl
from t2ictl import Recording
from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.layers import select_layers
from t2ictl.attention.passes import ActivePass, DenoiserPass
from t2ictl.attention.processor import ControlledAttention
from t2ictl.benchmarks.speed.pairs import interval, paired_ratios
from t2ictl.benchmarks.speed.update import MODELS, _flash_attention, _inputs
from t2ictl.families.unet import unet_layers
from t2ictl.maps.recorder import POINTING_LAYERS, MapTap
from t2ictl.settings.windows import Step

__all__ = ["main", "operations"]

PROMPT = "a small dotted red circle and a large blue square"  # ten words
WORDS = ("small", "dotted", "red", "circle", "large", "blue", "square", "and")
LAYERS = {"semantic size (default)": "cross@4", "down and up blocks (maps, editor)": POINTING_LAYERS}


def operations(name: str, layers: Any) -> float:
    """Count one guided evaluation with maps of its conditional row.

    Args:
        name: one of the models of :mod:`t2ictl.benchmarks.speed.update`.
        layers: the layers that are listened to.

    Returns:
        Operations over those without maps.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**MODELS[name]).half().eval()
    sample, keywords = _inputs(unet, rows=2)
    heard = select_layers(select_layers(unet_layers(unet), layers), "cross")
    active_pass = ActivePass()
    for layer in heard:
        attention: Any = unet.get_submodule(layer.module)
        attention.set_processor(ControlledAttention(layer, attention.processor, active_pass))
    counted = []
    for taps in ([], [MapTap(heard, slice(1, 2))]):
        active_pass.current = DenoiserPass(
            batch=BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=True),
            latent_size=(sample.shape[-2], sample.shape[-1]),
            step=Step(index=0, total=1, timestep=1.0),
            taps=taps,
        )
        with torch.no_grad(), _flash_attention(), FlopCounterMode(display=False) as counter:
            unet(sample, torch.ones((), device="meta"), **keywords)
        counted.append(counter.get_total_flops())
    return counted[1] / counted[0]


def time_ratios(pairs: int) -> dict[str, list[float]]:
    """Time whole images of the embedded model with eight words recorded.

    Args:
        pairs: measurements of each.

    Returns:
        Ratios over plain images, by layers.
    """
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def made(recording: Recording | bool) -> Any:
        return lambda: t2ictl.generate(pipe, PROMPT, seed=1, steps=10, record=recording)

    ways = {
        "default": made(Recording(words=WORDS)),
        "down and up blocks": made(Recording(words=WORDS, layers=POINTING_LAYERS)),
    }
    return paired_ratios(made(False), ways, pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables.

    Args:
        arguments: of the command line; None for those of the process.

    Returns:
        Exit status 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs; 0: operations alone")
    chosen = parser.parse_args(arguments)
    for name in MODELS:
        for label, layers in LAYERS.items():
            print(f"{name}, {label}: {operations(name, layers):.4f} x plain operations")
    if chosen.pairs:
        for label, ratios in time_ratios(chosen.pairs).items():
            low, high = interval(ratios)
            print(f"time, embedded model, {label}: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] x plain")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What recording the maps of words costs the pass that makes the image, on real layer shapes.

Operations are counted on the ``meta`` device. Words add nothing by their number: a map needs the softmax over all
tokens, whichever of them is kept. Times are those of the embedded model, in pairs::

    t2ictl bench speed maps
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import t2ictl
from t2ictl import Recording
from t2ictl.attention.layers import select_layers
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import (
    MODELS,
    embedded_model,
    empty_unet,
    first_pass,
    flash_attention,
    listen,
    operations_of,
    unet_inputs,
)
from t2ictl.benchmarks.speed.pairs import paired_ratios, print_ratios
from t2ictl.maps.recorder import POINTING_LAYERS, MapTap
from t2ictl.ports.unet import unet_layers

__all__ = ["operations", "run"]

PROMPT = "a small dotted red circle and a large blue square"  # ten words
WORDS = ("small", "dotted", "red", "circle", "large", "blue", "square", "and")
LAYERS = {"semantic size (default)": "cross@4", "down and up blocks (maps, editor)": POINTING_LAYERS}


def operations(name: str, layers: Any) -> float:
    """Count one guided evaluation with maps of its conditional row.

    Args:
        name: a key of :data:`t2ictl.benchmarks.speed.models.MODELS`.
        layers: the layers that are listened to.

    Returns:
        Operations over those without maps.
    """
    unet = empty_unet(name)
    latent_BCYX, keywords = unet_inputs(unet, rows=2)
    heard = select_layers(select_layers(unet_layers(unet), layers), "cross")
    active_pass = listen(unet, heard)
    counted = []
    for taps in ([], [MapTap(heard, slice(1, 2))]):
        active_pass.begin(first_pass(latent_BCYX, guided=True, taps=taps))
        with torch.no_grad(), flash_attention():
            _, count = operations_of(lambda: unet(latent_BCYX, torch.ones((), device="meta"), **keywords))
        counted.append(count)
    return counted[1] / counted[0]


def time_ratios(pairs: int) -> dict[str, list[float]]:
    """Time whole images of the embedded model with eight words recorded.

    Args:
        pairs: measurements of each.

    Returns:
        Ratios over plain images, by layers.
    """
    pipe = embedded_model()

    def made(recording: Recording | bool) -> Any:
        return lambda: t2ictl.generate(pipe, PROMPT, seed=1, steps=10, record=recording)

    ways = {
        "default": made(Recording(words=WORDS)),
        "down and up blocks": made(Recording(words=WORDS, layers=POINTING_LAYERS)),
    }
    return paired_ratios(made(False), ways, pairs)


def run(pairs: int = 10) -> None:
    """Print the operations of all models, and times of the embedded one.

    Args:
        pairs: timed pairs; 0: operations alone.
    """
    print_table(("operations, x plain", *LAYERS), _rows())
    if pairs:
        print_ratios("embedded model, eight words", time_ratios(pairs))


def _rows() -> Iterator[tuple[str, ...]]:
    for name in MODELS:
        yield name, *(f"{operations(name, layers):.4f}" for layers in LAYERS.values())

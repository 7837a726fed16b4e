"""What structured guidance costs over plain sampling: operations and paired times on real layer shapes.

Operations are counted on the ``meta`` device for one guided evaluation (two rows, one of them edited). The published
way computes attention once for each value; ours projects one averaged context. The phrases are encoded once an
image, in one batch; their share of an image of 50 steps stands in a column of its own. Times are those of whole
evaluations of the U-Net with random weights, plain and controlled in turn, so that a busy machine slows both.

Command: ``t2ictl bench speed structured``, with ``--pairs 0`` for the operations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from t2ictl.attention.edits import AttentionCall, Edit, Heads, fused, split_heads
from t2ictl.attention.passes import ActivePass
from t2ictl.attention.processor import ControlledAttention
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import (
    MODELS,
    TOKENS,
    empty_unet,
    first_pass,
    flash_attention,
    operations_of,
    unet_inputs,
)
from t2ictl.benchmarks.speed.pairs import device_and_dtype, paired_ratios, print_ratios
from t2ictl.ports.unet import unet_layers
from t2ictl.processors.structured_guidance.edits import AveragedMaps, AveragedValues, Structure
from t2ictl.settings.windows import Window

__all__ = ["operations", "run", "time_ratios"]

STEPS = 50  # of the image over which the encoding of the phrases is reckoned
# Text encoders by their published sizes: width, feed-forward width, layers, heads.
ENCODERS = {
    "SD 1.5, 512 x 512": ((768, 3072, 12, 12),),
    "SD 2.1, 768 x 768": ((1024, 4096, 23, 16),),
    "SDXL, 1024 x 1024": ((768, 3072, 12, 12), (1280, 5120, 32, 20)),
}


WAYS = ("values", "keys", "published values")


class _SeveralValues(Edit):
    """The published way: attention once for each value, then their mean."""

    def __init__(self, phrases: int) -> None:
        self._phrases = phrases

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Attend k + 1 times in the conditional row."""
        out_BHQD, cond = fused(call.attention, heads), slice(1, 2)
        own = replace(heads, q=heads.q[cond], k=heads.k[cond], v=heads.v[cond])
        more = [out_BHQD[cond]]
        for _ in range(self._phrases):
            v_BHKD = split_heads(call.attention, call.attention.to_v(heads.context[cond]))
            more.append(fused(call.attention, replace(own, v=v_BHKD)))
        return torch.cat([out_BHQD[:1], torch.stack(more).mean(dim=0)])


def _structure(phrases: int, width: int, device: str, dtype: torch.dtype) -> Structure:
    """Phrases of three tokens each, side by side; what is in the rows plays no part in time or count."""
    holds_NK = torch.zeros(phrases, TOKENS, dtype=torch.bool, device=device)
    for number in range(phrases):
        holds_NK[number, 1 + 4 * number : 4 + 4 * number] = True
    states_NKC = torch.zeros(phrases, TOKENS, width, device=device, dtype=dtype)
    return Structure(states=states_NKC, holds=holds_NK, levels=torch.zeros(phrases, device=device))


def _edits(phrases: int, width: int, device: str) -> dict[str, Edit]:
    structures = {("cond", 0): _structure(phrases, width, device, torch.float32)}
    return {
        "values": AveragedValues(structures, 1.0, Window()),
        "keys": AveragedMaps(structures, 1.0, Window()),
        "published values": _SeveralValues(phrases),
    }


def _evaluation(unet: UNet2DConditionModel, side: int, device: str) -> Callable[[Edit | None], Any]:
    """A guided evaluation, plain (None) or with an edit at every cross-attention."""
    latent_BCYX, keywords = unet_inputs(unet, 2, side, device)
    layers, active_pass = [layer for layer in unet_layers(unet) if layer.kind == "cross"], ActivePass()
    plain = dict(unet.attn_processors)
    names = {layer: f"{layer.module}.processor" for layer in layers}
    ours = plain | {name: ControlledAttention(layer, plain[name], active_pass) for layer, name in names.items()}

    def evaluate(edit: Edit | None) -> Any:
        """Run it once."""
        unet.set_attn_processor(dict(plain if edit is None else ours))
        edits = {layer.address: [edit] for layer in layers}
        active_pass.end()
        if edit is not None:
            active_pass.begin(first_pass(latent_BCYX, guided=True, edits=edits))
        with torch.no_grad():
            return unet(latent_BCYX, torch.ones((), device=device), **keywords)

    return evaluate


def _operations(evaluate: Callable[[], Any]) -> int:
    with flash_attention():
        return operations_of(evaluate)[1]


def operations(name: str, phrases: int) -> dict[str, float]:
    """Count one guided evaluation with each mode, and the encoding of the phrases.

    Args:
        name: a key of ``MODELS``.
        phrases: how many.

    Returns:
        Multiples of the plain evaluation by mode, and ``encoding``: the phrases, over a plain image of 50 steps.
    """
    unet = empty_unet(name)
    evaluate = _evaluation(unet, int(unet.config.sample_size), "meta")
    plain = _operations(partial(evaluate, None))
    edits = _edits(phrases, int(unet.config.cross_attention_dim), "meta")
    found = {mode: _operations(partial(evaluate, edit)) / plain for mode, edit in edits.items()}
    encoding = sum(_operations(_encoder(size, phrases)) for size in ENCODERS[name])
    return {**found, "encoding": encoding / (STEPS * plain)}


def _encoder(size: tuple[int, int, int, int], texts: int) -> Callable[[], Any]:
    width, inner, layers, heads = size
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads
    )
    with torch.device("meta"):
        model = CLIPTextModel._from_config(config, attn_implementation="eager")
        ids = torch.zeros(texts, TOKENS, dtype=torch.long)
    return lambda: model(ids)


def time_ratios(name: str, side: int, phrases: int, pairs: int, device: str | None = None) -> dict[str, list[float]]:
    """Time whole guided evaluations, plain and controlled in turn.

    Args:
        name: a key of ``MODELS``; its layers have their real widths.
        side: height and width of the latent (cells).
        phrases: how many.
        pairs: measurements of each mode.
        device: of torch; None for CUDA where there is one.

    Returns:
        By mode the ratios controlled / plain, one a pair; ``plain again`` is the plain evaluation against itself.
    """
    device, dtype = device_and_dtype(device)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**MODELS[name]).to(device, dtype)
    evaluate = _evaluation(unet, side, device)
    edits = _edits(phrases, unet.config.cross_attention_dim, device)
    ways = {mode: partial(evaluate, edit) for mode, edit in edits.items()}
    return paired_ratios(partial(evaluate, None), ways, pairs)


def run(phrases: Sequence[int] = (2, 4), pairs: int = 20, side: int = 24, device: str | None = None) -> None:
    """Print the operations of all models, and times of the first one.

    Args:
        phrases: numbers of phrases; times are those of the first number.
        pairs: timed pairs; 0: operations alone.
        side: height and width of the latent of the times (cells).
        device: of the times; None for CUDA where there is one.
    """
    head = ("operations, one guided evaluation", "phrases", *WAYS, "encoding, of an image")
    print_table(head, _rows(phrases))
    if pairs:
        name = next(iter(MODELS))
        found = time_ratios(name, side, phrases[0], pairs, device)
        print_ratios(f"{name.split(',')[0]}, latent {side} x {side}", found)


def _rows(numbers: Sequence[int]) -> Iterator[tuple[object, ...]]:
    for name in MODELS:
        for phrases in numbers:
            found = operations(name, phrases)
            yield name, phrases, *(f"{found[way]:.4f}" for way in (*WAYS, "encoding"))

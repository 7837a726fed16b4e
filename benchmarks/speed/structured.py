"""What structured guidance costs over plain sampling: operations and paired times on real layer shapes.

Operations are counted on the ``meta`` device for one guided evaluation (two rows, one of them edited). The published
way computes attention once for each value; ours projects one averaged context. The phrases are encoded once a
image, in one batch; their share of an image of 50 steps stands in a column of its own. Times are those of whole
evaluations of the U-Net with random weights, plain and controlled in turn, so that a busy machine slows both.

Run ``python -m t2ictl.benchmarks.speed.structured``, with ``--pairs 0`` for the operations alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import AttentionCall, Edit, Heads, fused, split_heads
from t2ictl.attention.passes import ActivePass, DenoiserPass
from t2ictl.attention.processor import ControlledAttention
from t2ictl.benchmarks.speed.pairs import interval, paired_ratios
from t2ictl.benchmarks.speed.update import MODELS, _flash_attention
from t2ictl.families.unet import unet_layers
from t2ictl.processors.structured_guidance.edits import AveragedMaps, AveragedValues, Structure
from t2ictl.settings.windows import Step, Window

__all__ = ["main", "operations", "time_ratios"]

STEPS, TOKENS = 50, 77
# Text encoders by their published sizes: width, feed-forward width, layers, heads.
ENCODERS = {
    "SD 1.5, 512 x 512": ((768, 3072, 12, 12),),
    "SD 2.1, 768 x 768": ((1024, 4096, 23, 16),),
    "SDXL, 1024 x 1024": ((768, 3072, 12, 12), (1280, 5120, 32, 20)),
}


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


def _inputs(unet: UNet2DConditionModel, side: int, device: str) -> tuple[Tensor, dict[str, Any]]:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(2, *shape, device=device, dtype=unet.dtype)

    keywords: dict[str, Any] = {"encoder_hidden_states": zeros(TOKENS, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type:
        keywords["added_cond_kwargs"] = {"text_embeds": zeros(1280), "time_ids": zeros(6)}
    return zeros(4, side, side), keywords


def _evaluation(unet: UNet2DConditionModel, side: int, device: str) -> Callable[[Edit | None], Any]:
    """A guided evaluation, plain (None) or with an edit at every cross-attention."""
    sample, keywords = _inputs(unet, side, device)
    layers, active_pass = [layer for layer in unet_layers(unet) if layer.kind == "cross"], ActivePass()
    plain = dict(unet.attn_processors)
    ours = {
        **plain,
        **{
            f"{layer.module}.processor": ControlledAttention(layer, plain[f"{layer.module}.processor"], active_pass)
            for layer in layers
        },
    }
    now: dict[str, Any] = {
        "batch": BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=True),
        "latent_size": (side, side),
        "step": Step(index=0, total=STEPS, timestep=1.0),
    }

    def run(edit: Edit | None) -> Any:
        unet.set_attn_processor(dict(plain if edit is None else ours))
        active_pass.end()
        if edit is not None:
            active_pass.begin(DenoiserPass(edits={layer.address: [edit] for layer in layers}, **now))
        with torch.no_grad():
            return unet(sample, torch.ones((), device=device), **keywords)

    return run


def _flops(run: Callable[[], Any]) -> int:
    with _flash_attention(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def operations(name: str, phrases: int) -> dict[str, float]:
    """Count one guided evaluation with each mode, and the encoding of the phrases.

    Args:
        name: a key of ``MODELS``.
        phrases: how many.

    Returns:
        Multiples of the plain evaluation by mode, and ``encoding``: the phrases, over a plain image of 50 steps.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**MODELS[name]).half()
    side, width = int(unet.config.sample_size), int(unet.config.cross_attention_dim)
    run = _evaluation(unet, side, "meta")
    plain = _flops(partial(run, None))
    found = {mode: _flops(partial(run, edit)) / plain for mode, edit in _edits(phrases, width, "meta").items()}
    encoding = sum(_flops(_encoder(size, phrases)) for size in ENCODERS[name])
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


def time_ratios(name: str, side: int, phrases: int, pairs: int) -> dict[str, list[float]]:
    """Time whole guided evaluations, plain and controlled in turn.

    Args:
        name: a key of ``MODELS``; its layers have their real widths.
        side: height and width of the latent (cells).
        phrases: how many.
        pairs: measurements of each mode.

    Returns:
        By mode the ratios controlled / plain, one a pair; ``plain again`` is the plain evaluation against itself.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**MODELS[name]).to(device, torch.float16 if device == "cuda" else torch.float32)
    run = _evaluation(unet, side, device)

    edits = _edits(phrases, unet.config.cross_attention_dim, device)
    return paired_ratios(partial(run, None), {mode: partial(run, edit) for mode, edit in edits.items()}, pairs)


def main() -> int:
    """Print the tables.

    Returns:
        Exit status 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--phrases", type=int, nargs="+", default=[2, 4], help="how many phrases")
    parser.add_argument("--pairs", type=int, default=20, help="paired times; 0: operations only")
    parser.add_argument("--side", type=int, default=24, help="side of the latent for times (cells)")
    chosen = parser.parse_args()
    print("| operations, one guided evaluation | phrases | values | keys | published values | encoding, of an image |")
    print("|---|---|---|---|---|---|")
    for name in MODELS:
        for phrases in chosen.phrases:
            found = operations(name, phrases)
            ways = " | ".join(f"{found[mode]:.4f}" for mode in ("values", "keys", "published values"))
            print(f"| {name} | {phrases} | {ways} | {found['encoding']:.4f} |")
    if chosen.pairs:
        name = next(iter(MODELS))
        print(
            f"\n| time, {name.split(',')[0]}, latent {chosen.side} x {chosen.side} | x plain | 95 % interval | pairs |"
        )
        print("|---|---|---|---|")
        for mode, ratios in time_ratios(name, chosen.side, chosen.phrases[0], chosen.pairs).items():
            low, high = interval(ratios)
            print(f"| {mode} | {statistics.median(ratios):.3f} | [{low:.3f}, {high:.3f}] | {len(ratios)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What one latent update of a transformer costs: operations and bytes of the published way and of ours.

As for U-Nets (:mod:`t2ictl.benchmarks.speed.update`), on real layer shapes on the ``meta`` device, in bfloat16.
The published way runs all blocks, with an explicit softmax over all positions, text and image, in those whose maps are
heard; ours runs the denoiser's own kernels, reads the maps beside them and stops at the last. Weights are frozen in
both.

Letters: ``B`` batch row, ``H`` head, ``L`` position that asks, ``M`` position that is asked, ``C`` channels, ``Y``
``X`` latent rows and columns.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from t2ictl.attention.edits import AttentionCall, Edit, Heads
from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import PassKind, StopForward
from t2ictl.benchmarks.speed.models import first_pass, flash_attention, listen, operations_of, saved_bytes
from t2ictl.benchmarks.speed.transformers import TRANSFORMERS, empty_adapter, transformer_inputs
from t2ictl.families.transformers import TransformerAdapter
from t2ictl.maps.recorder import MapTap
from t2ictl.ports.base import Inputs
from t2ictl.session.checkpoints import Checkpointing, Recomputed

__all__ = ["HEAD", "TransformerUpdate", "Way", "measure_transformer", "transformer_rows"]

Way = Checkpointing | Literal["published"]
HEAD = (
    "model", "stop after (blocks)", "maps of (blocks)", "way", "forward (F)", "backward (F)", "sum (F)",
    "kept for backward (GiB, bfloat16)",
)  # fmt: skip
#: Name of a way in the table.
WAYS: dict[str, Way] = {
    "published": "published",
    "ours": "off",
    'ours, `checkpointing="feed_forward"`': "feed_forward",
    'ours, `checkpointing="block"`': "block",
}


@dataclass(frozen=True, kw_only=True)
class TransformerUpdate:
    """What one update takes.

    Args:
        plain: operations of F, one plain forward pass of one row.
        forward: operations over F.
        backward: the same, of the backward pass.
        saved: what is kept for it (GiB of bfloat16).
        blocks: that the pass runs, the last of them in part.
        heard: blocks whose maps are read.
    """

    plain: int
    forward: float
    backward: float
    saved: float
    blocks: int
    heard: int

    @property
    def work(self) -> float:
        """Both passes over F."""
        return self.forward + self.backward


class _ExplicitSoftmax(Edit):
    """Attention whose weights are a tensor of all positions, and the map that is a part of them."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Take the place of the fused kernel."""
        logits_BHLM = heads.q @ heads.k.mT * heads.factor(call.attention)
        if heads.mask is not None:
            logits_BHLM = logits_BHLM + heads.mask
        weights_BHLM = logits_BHLM.softmax(dim=-1)
        image, text = call.image or slice(None), call.text or slice(None)
        self.maps.append(weights_BHLM[:, :, image, text].mean(dim=1))
        return weights_BHLM @ heads.v


def _update(
    adapter: TransformerAdapter, heard: Sequence[Layer], latent_BCYX: Tensor, inputs: Inputs, *, published: bool
) -> Callable[[], Tensor]:
    """Set up one update: what runs to the mean map of some layers and returns a loss."""
    port = adapter.port
    active_pass, tap, softmax = listen(port.denoiser, heard, port.processor_class), MapTap(heard, slice(None)), None
    if published:
        softmax = _ExplicitSoftmax()
        acting: dict[str, Any] = {"edits": {layer.address: [softmax] for layer in heard}, "kind": PassKind.IMAGE}
    else:
        acting = {"taps": [tap], "stop_after": heard[-1].address, "kind": PassKind.MAPS}
    this = first_pass(latent_BCYX, guided=False, text_length=port.text_length(inputs), **acting)

    def forward() -> Tensor:
        """Run to the last map, and return a loss of it."""
        with contextlib.suppress(StopForward), active_pass.use(this):
            port.denoiser(**inputs)
        mean_map = tap.mean() if softmax is None else torch.stack(softmax.maps).mean(dim=0)
        return mean_map.square().sum()

    return forward


def measure_transformer(name: str, way: Way, *, one: bool = False) -> TransformerUpdate:
    """Count one update.

    Args:
        name: a key of :data:`t2ictl.benchmarks.speed.transformers.TRANSFORMERS`.
        way: the published one, or what ours computes again for the backward pass.
        one: read the map of the last of the family's blocks alone.

    Returns:
        Operations and bytes.
    """
    model = TRANSFORMERS[name]
    adapter = empty_adapter(model)
    port, heard = adapter.port, adapter.semantic_layers[-1 if one else 0 :]
    latent_BCYX, inputs = transformer_inputs(model, adapter)
    update = _update(adapter, heard, latent_BCYX, inputs, published=way == "published")
    kind: Checkpointing = "off" if way == "published" else way
    with flash_attention():
        with Recomputed(port, kind, [layer.module for layer in heard])():
            (loss, saved), forward = operations_of(lambda: saved_bytes(update, port.denoiser))
        _, backward = operations_of(lambda: torch.autograd.grad(loss, latent_BCYX))
    plain, names = _plain(name), [block for block, _ in port.blocks()]
    last = names.index(heard[-1].module.rpartition(".")[0])
    return TransformerUpdate(
        plain=plain,
        forward=forward / plain,
        backward=backward / plain,
        saved=saved / 2**30,
        blocks=len(names) if way == "published" else last + 1,
        heard=len(heard),
    )


@functools.cache
def _plain(name: str) -> int:
    """Operations of one forward pass of one row."""
    model = TRANSFORMERS[name]
    adapter = empty_adapter(model)
    _, inputs = transformer_inputs(model, adapter)
    with torch.no_grad(), flash_attention():
        return operations_of(lambda: adapter.denoiser(**inputs))[1]


def _title(name: str, plain: int) -> str:
    model = TRANSFORMERS[name]
    weights = sum(each.numel() for each in empty_adapter(model).denoiser.parameters())
    return f"{model.title} ({weights / 1e9:.2f} B, F = {plain / 1e12:.2f} TFLOP)"


def transformer_rows(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table.

    Args:
        names: keys of :data:`t2ictl.benchmarks.speed.transformers.TRANSFORMERS`.
    """
    for name in names:
        for one in (False, True):
            for title, way in WAYS.items():
                found = measure_transformer(name, way, one=one)
                work = (found.forward, found.backward, found.work)
                yield (
                    _title(name, found.plain), str(found.blocks), str(found.heard), title,
                    *(f"{each:.3f}" for each in work), f"{found.saved:.2f}",
                )  # fmt: skip

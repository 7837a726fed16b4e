"""The processor for transformers in passes that make an image and in those that only read maps; other back-ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import t2ictl
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.controls import AttentionEdit
from t2ictl.controls.base import Control
from t2ictl.controls.loss_control import LossControl
from t2ictl.errors import UnsupportedPipeline
from t2ictl.guidance.rules import StepSize
from t2ictl.settings.windows import Window
from tests.attention.kernel_cases import LAYERS, Identity, Where, edited, latents, pipe_of, plain, with_processor

STILL = {"step": StepSize(mode="normalized", scale=0.0), "window": Window()}
WORDS = ("circle", "square")


class Warmer(Edit):
    """Flatter attention, a little louder, of shifted states: every stage that counts in maps of later layers."""

    def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_BQC * 1.1, context_BKC

    def scores(self, call: AttentionCall, scores_BHQK: Tensor) -> Tensor:
        return 0.5 * scores_BHQK

    def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
        return 1.5 * out_BQC


def maps_of_both(where: Where, last: str, edits: Sequence[Control]) -> tuple[Tensor, Tensor]:
    """Maps ``maps_SNYX`` of a later layer: in passes of the session's own, and in those that made the image."""
    heard: list[Tensor] = []

    def loss(maps_BNYX: Tensor, mask_BN: Tensor) -> Tensor:
        heard.append(maps_BNYX.detach()[0])
        return maps_BNYX.amax((1, 2, 3))

    reading = LossControl(loss, concepts=WORDS, layers=(last,), normalize_over="none", smoothing="none", **STILL)
    pipe, recording = pipe_of(where.family), t2ictl.Recording(layers=(last,))
    with pytest.warns(t2ictl.errors.ControlIdle, match="length 0"):
        with t2ictl.controlled(pipe, [reading, *edits], record=recording) as session:
            latents(pipe)
    assert session.cost.extra_forwards == 2
    steps = [torch.stack([session.record.map(word, step=step) for word in WORDS]) for step in (0, 1)]
    return torch.stack(heard), torch.stack(steps)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("joint, text last", "transformer_blocks.3.joint"),
        ("joint, text first", "single_transformer_blocks.1.single"),
        ("joint, masked", "transformer_blocks.2.joint"),
        ("joint, before a reference", "single_transformer_blocks.0.single"),
        ("single", "single_transformer_blocks.1.single"),
        ("cross", "transformer_blocks.3.cross"),
        ("cross, of two texts", "blocks.2.cross"),
        ("self", "transformer_blocks.1.cross"),
        ("self, beside joint", "transformer_blocks.2.joint"),
    ],
)
def test_our_own_passes_read_what_the_pass_of_the_image_reads(name: str, last: str) -> None:
    """Also under edits, which count in them; and what a layer is after an edit is not what it was."""
    where = LAYERS[name]
    own, of_image = maps_of_both(where, last, [AttentionEdit(where.address, Warmer())])
    torch.testing.assert_close(own, of_image, rtol=0, atol=1e-6)
    without, _ = maps_of_both(where, last, [])
    assert (own - without).abs().max() > 1e-4


def test_a_pass_for_maps_ends_with_the_last_layer_that_is_read() -> None:
    pipe, ran = pipe_of("flux"), []
    blocks = dict(pipe.transformer.named_modules())
    names = [f"transformer_blocks.{number}.ff" for number in range(3)]
    hooks = [blocks[name].register_forward_hook(lambda *_, name=name: ran.append(name)) for name in names]  # type: ignore[misc]
    try:
        maps_of_both(LAYERS["joint, text first"], "transformer_blocks.1.joint", [])
    finally:
        for hook in hooks:
            hook.remove()
    # Of each step a short pass, which ends within the second block, and that of the image.
    assert ran == [names[0], *names] * 2


# -- back-ends without torch's kernel ---------------------------------------------------------------------------------


class Fast:
    """A processor for PixArt's layers with a kernel of its own, as a back-end that torch does not know."""

    _attention_backend: Any = "fast"

    def __init__(self) -> None:
        self.used: list[str] = []

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        mask = None if attention_mask is None else attention_mask[:, None]
        self.used.append(getattr(self._attention_backend, "value", self._attention_backend))
        if self._attention_backend == "fast":
            scores = q @ k.mT * attn.scale
            out = (scores if mask is None else scores + mask).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_a_layer_with_another_kernel_is_run_again_for_its_maps_alone() -> None:
    where = LAYERS["cross"]
    pipe, recording = pipe_of(where.family), t2ictl.Recording(layers=(where.address,))
    with t2ictl.controlled(pipe, record=recording) as stock:
        latents(pipe)
    with with_processor(where, fast := Fast()):
        alone = latents(pipe)
        assert fast.used == ["fast"] * 2
        fast.used.clear()
        with t2ictl.controlled(pipe, record=recording) as session:
            assert torch.equal(latents(pipe), alone)  # the image's own run is not touched
        assert fast.used == ["fast", "native"] * 2
    assert torch.equal(session.record.map("circle", step=0), stock.record.map("circle", step=0))
    assert fast._attention_backend == "fast" and vars(fast).keys() == {"used"}


def test_in_our_own_passes_it_runs_on_torchs_kernel() -> None:
    where = LAYERS["cross"]
    with with_processor(where, fast := Fast()):
        own, of_image = maps_of_both(where, where.address, [])
        torch.testing.assert_close(own, of_image, rtol=0, atol=1e-6)
    # A pass that ends in this layer; the layer in the pass of the image; once more for the record.
    assert fast.used == ["native", "fast", "native"] * 2
    assert vars(fast).keys() == {"used"}


def test_edits_at_a_kernel_that_is_not_torchs_are_refused() -> None:
    where = LAYERS["cross"]
    with with_processor(where, fast := Fast()):
        alone = latents(pipe_of(where.family))
        with pytest.raises(
            UnsupportedPipeline, match=r"Fast at .* cannot be edited.*set_attention_backend\('native'\)"
        ):
            edited(where, Identity.of("scores"))
        assert torch.equal(edited(where, Identity.of("output")), alone)
        fast._attention_backend = "native"  # as the message says
        found = edited(where, Identity.of("scores"))
    torch.testing.assert_close(found, plain(where.family), rtol=1e-5, atol=1e-5)


def test_a_back_end_of_diffusers_that_calls_torchs_kernel_is_read_as_it_is() -> None:
    pipe = pipe_of("flux")
    recording = t2ictl.Recording(layers=("*",), by="layer")
    with t2ictl.controlled(pipe, record=recording) as stock:
        latents(pipe)
    pipe.transformer.set_attention_backend("_native_math")
    try:
        alone = latents(pipe)
        with t2ictl.controlled(pipe, record=recording) as session:
            assert torch.equal(latents(pipe), alone)
        kept = {
            module.processor._attention_backend for module in pipe.transformer.modules() if hasattr(module, "processor")
        }
    finally:
        pipe.transformer.set_attention_backend("native")  # it is also that of all models that have none of their own
        pipe.transformer.reset_attention_backend()
    assert {each.value for each in kept} == {"_native_math"}
    for block, maps in session.record.maps.items():
        torch.testing.assert_close(maps, stock.record.maps[block], rtol=0, atol=1e-6)

"""The processor for transformers: edits act at their stages in layers of every kind, and what cannot act is refused."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.attention.kernel_processor import KernelAttention
from t2ictl.attention.passes import ActivePass
from t2ictl.controls import AttentionEdit
from t2ictl.errors import ControlConflict, UnsupportedPipeline
from tests import tiny_transformers as tiny
from tests.attention.kernel_cases import (
    LAYERS,
    PLACES,
    WITH_KERNEL,
    HandWritten,
    Identity,
    Where,
    WithAdapter,
    edited,
    hooked,
    latents,
    pipe_of,
    plain,
    rows_of,
    with_processor,
)

at_each = pytest.mark.parametrize("where", LAYERS.values(), ids=LAYERS)
at_each_kernel = pytest.mark.parametrize("where", WITH_KERNEL.values(), ids=WITH_KERNEL)
AT_KERNEL = ("project", "attend", "scores", "weights")


def differ(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() > 1e-3 * second.norm())


# -- edits that change nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["tokens", "output"])
@at_each
def test_identity_before_and_after_the_kernel_is_bit_equal(where: Where, stage: str) -> None:
    assert torch.equal(edited(where, Identity.of(stage)), plain(where.family))


@pytest.mark.parametrize("stage", ["values", *AT_KERNEL])
@at_each_kernel
def test_identity_at_the_kernel_is_the_same_arithmetic(where: Where, stage: str) -> None:
    found = edited(where, Identity.of(stage))
    torch.testing.assert_close(found, plain(where.family), rtol=1e-5, atol=1e-5)
    if stage in ("values", "project", "attend"):  # the fused kernel gets what it gets without an edit
        assert torch.equal(found, plain(where.family))


def test_an_edit_with_nothing_to_do_at_a_step_is_not_asked() -> None:
    class Later(Edit):
        def acts(self, step: Any) -> bool:
            return step.index > 0

        def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
            steps.append(call.step.index)
            return out_BQC * 2

    steps: list[int] = []
    assert differ(edited(LAYERS["single"], Later()), plain("flux"))
    assert steps == [1]


# -- edits that change something --------------------------------------------------------------------------------------


class Doubled(Edit):
    def scores(self, call: AttentionCall, scores_BHQK: Tensor) -> Tensor:
        return 2 * scores_BHQK


class DoubledQueries(Edit):
    def project(self, call: AttentionCall, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor) -> Any:
        return 2 * q_BHQD, k_BHKD, v_BHKD


@at_each_kernel
def test_doubled_scores_are_doubled_queries(where: Where) -> None:
    if where.family == "chroma":  # its mask adds one, and is no part of the products
        where = Where("flux_schnell", where.address, where.module)
    scores, queries = edited(where, Doubled()), edited(where, DoubledQueries())
    torch.testing.assert_close(scores, queries, rtol=1e-5, atol=1e-5)
    assert differ(scores, plain(where.family))


@at_each_kernel
def test_what_an_edit_knows_of_its_layer(where: Where) -> None:
    class Asked(Edit):
        def project(self, call: AttentionCall, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor) -> Any:
            seen.append((call, q_BHQD.shape, k_BHKD.shape))
            return q_BHQD, k_BHKD, v_BHKD

    seen: list[tuple[AttentionCall, Any, Any]] = []
    edited(where, Asked())
    text = {"sd3": 40, "hunyuan_dit": 333}.get(where.family, tiny.TEXT)
    for call, q, k in seen:
        assert call.layer.address == where.address and call.attention is where.attention
        assert call.size == tiny.TOKENS and len(call.batch) == q[0]
        if call.layer.kind in ("cross", "self"):
            assert call.image is call.text is None
            assert q[2] == PLACES and k[2] == (PLACES if call.layer.kind == "self" else text)
        else:
            reference = PLACES if where.family == "flux_kontext" else 0
            assert q[2] == k[2] == text + PLACES + reference
            first = 0 if call.layer.text == "last" else text
            assert call.image == slice(first, first + PLACES)
            assert call.text == (slice(PLACES, PLACES + text) if call.layer.text == "last" else slice(0, text))
    assert {call.step.index for call, *_ in seen} == {0, 1}


class Muted(Edit):
    def __init__(self) -> None:
        self.places: set[int] = set()

    def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
        self.places.add(out_BQC.shape[1])
        return out_BQC * 0


@at_each
def test_muting_the_image_is_a_hook_that_mutes_it(where: Where) -> None:
    """Text, and tokens of a reference image, are another part of the result, or of another one."""

    def mute(_: Any, args: Any, result: Any) -> Any:
        first = (result[0] if isinstance(result, tuple) else result).clone()
        first[:, where.image] = 0
        return (first, *result[1:]) if isinstance(result, tuple) else first

    found = edited(where, muted := Muted())
    assert torch.equal(found, hooked(where, after=mute))
    assert differ(found, plain(where.family))
    assert muted.places == {PLACES}


class Turned(Edit):
    def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_BQC * 0.5, rows_of(context_BKC)


@at_each
def test_edited_states_are_states_that_a_hook_puts_there(where: Where) -> None:
    def change(_: Any, args: Any, kwargs: Any) -> Any:
        named = {**dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)), **kwargs}
        named["hidden_states"] = named["hidden_states"] * 0.5
        if named.get("encoder_hidden_states") is not None:
            named["encoder_hidden_states"] = rows_of(named["encoder_hidden_states"])
        return (), named

    found = edited(where, Turned())
    assert torch.equal(found, hooked(where, before=change))
    assert differ(found, plain(where.family))


class OtherValues(Edit):
    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        return rows_of(context_BKC)


@pytest.mark.parametrize("name", ["cross", "cross, of two texts", "self", "self, beside joint"])
def test_values_come_of_other_states_and_keys_do_not(name: str) -> None:
    where = LAYERS[name]

    def change(_: Any, args: Any, kwargs: Any) -> Any:
        return (rows_of(args[0]),), kwargs

    found = edited(where, OtherValues())
    torch.testing.assert_close(found, hooked(where, before=change, part="to_v"), rtol=1e-5, atol=1e-5)
    assert differ(found, plain(where.family))


def test_weights_of_joint_attention_are_those_of_all_keys() -> None:
    """Without its text, a place attends to the image alone; the shares are not made to sum to 1 again."""

    class WithoutText(Edit):
        def weights(self, call: AttentionCall, weights_BHQK: Tensor) -> Tensor:
            torch.testing.assert_close(weights_BHQK.sum(-1), torch.ones(weights_BHQK.shape[:-1]))
            changed = weights_BHQK.clone()
            changed[:, :, call.image, call.text] = 0
            return changed

    class TextWithoutValues(Edit):
        def project(self, call: AttentionCall, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor) -> Any:
            changed = v_BHKD.clone()
            changed[:, :, call.text] = 0
            return q_BHQD, k_BHKD, changed

    where = Where("sd3", "transformer_blocks.3.joint", "transformer_blocks.3.attn")  # whose text goes no further
    found = edited(where, WithoutText())
    torch.testing.assert_close(found, edited(where, TextWithoutValues()), rtol=1e-5, atol=1e-5)
    assert differ(found, plain("sd3"))


def test_edits_act_one_after_the_other() -> None:
    class Twice(Edit):
        def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
            return 2 * out_BQC

    class Plus(Edit):
        def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
            return out_BQC + 1

    where = LAYERS["joint, text last"]

    def both(_: Any, args: Any, result: Any) -> Any:
        return 2 * result[0] + 1, result[1]

    assert torch.equal(edited(where, Twice(), Plus()), hooked(where, after=both))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("joint", "single"))])
def test_values_of_joint_layers_cannot_come_of_other_text(name: str) -> None:
    where = LAYERS[name]
    with pytest.raises(UnsupportedPipeline, match=f"At {where.address} values of text cannot come of other text"):
        edited(where, OtherValues())
    assert torch.equal(latents(pipe_of(where.family)), plain(where.family))


@pytest.mark.parametrize("stage", ["values", *AT_KERNEL])
def test_a_layer_without_a_softmax_is_not_edited_at_its_kernel(stage: str) -> None:
    with pytest.raises(UnsupportedPipeline, match="SanaLinearAttnProcessor2_0 at transformer_blocks.1.linear cannot"):
        edited(LAYERS["linear"], Identity.of(stage))


@pytest.mark.parametrize("name", ["cross", "self"])
@pytest.mark.parametrize("stage", ["values", *AT_KERNEL])
def test_a_processor_without_a_kernel_cannot_be_edited_there(stage: str, name: str) -> None:
    where = LAYERS[name]
    with with_processor(where, HandWritten()):
        with pytest.raises(UnsupportedPipeline, match=rf"HandWritten at {where.address} cannot be edited"):
            edited(where, Identity.of(stage))
        own = latents(pipe_of(where.family))
        torch.testing.assert_close(own, plain(where.family), rtol=1e-4, atol=1e-4)  # it is the same attention
        for before_or_after in ("tokens", "output"):
            assert torch.equal(edited(where, Identity.of(before_or_after)), own)


def test_a_processor_without_a_kernel_cannot_be_read() -> None:
    where = LAYERS["cross"]
    pipe, recording = pipe_of(where.family), t2ictl.Recording(layers=(where.address,))
    with with_processor(where, HandWritten()):
        match = r"HandWritten at transformer_blocks\.1\.cross cannot be read"
        with pytest.raises(UnsupportedPipeline, match=match), t2ictl.controlled(pipe, record=recording):
            latents(pipe)
    assert torch.equal(latents(pipe), plain(where.family))


def test_only_one_edit_owns_the_softmax() -> None:
    for first, second in (("attend", "scores"), ("attend", "weights"), ("attend", "attend")):
        with pytest.raises(ControlConflict, match=r"At transformer_blocks\.1\.joint several edits want the softmax"):
            edited(LAYERS["joint, text last"], Identity.of(first), Identity.of(second))
    found = edited(LAYERS["joint, text last"], Identity.of("scores"), Identity.of("weights"))
    torch.testing.assert_close(found, plain("sd3"), rtol=1e-5, atol=1e-5)


# -- processors of others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["cross", "joint, text last", "self"])
def test_beside_an_adapter_the_layers_own_call_is_the_one_that_is_edited(name: str, is_first: bool) -> None:
    class Doubling:
        """The stock processor with doubled queries."""

        def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
            with ExitStack() as hooks:
                for projection in (attn.to_q, getattr(attn, "add_q_proj", None)):
                    if projection is not None:
                        hooks.enter_context(projection.register_forward_hook(lambda *given: 2 * given[-1]))
                return own(attn, *args, **kwargs)

    where = LAYERS[name]
    own = where.attention.processor
    with with_processor(where, WithAdapter(own, 4, is_first=is_first)):
        beside = latents(pipe_of(where.family))
        assert differ(beside, plain(where.family))
        assert torch.equal(edited(where, Identity.of("project")), beside)
        found = edited(where, DoubledQueries())
    with with_processor(where, WithAdapter(Doubling(), 4, is_first=is_first)):
        expected = latents(pipe_of(where.family))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert differ(found, beside)


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["cross", "joint, text last"])
def test_beside_an_adapter_the_layers_own_call_is_the_one_that_is_read(name: str, is_first: bool) -> None:
    where = LAYERS[name]
    pipe, recording = pipe_of(where.family), t2ictl.Recording(layers=(where.address,))

    def first_map() -> Tensor:
        with t2ictl.controlled(pipe, record=recording) as session:
            latents(pipe)
        return session.record.map("circle", step=0)

    expected = first_map()  # before the adapter's own contribution has reached a latent
    with with_processor(where, WithAdapter(where.attention.processor, 4, is_first=is_first)):
        assert torch.equal(first_map(), expected)


def test_maps_are_those_of_the_layer_before_edits_of_its_states() -> None:
    for where in (LAYERS["joint, text first"], LAYERS["single"], LAYERS["cross"]):
        pipe, found = pipe_of(where.family), []
        for controls in ([], [AttentionEdit(where.address, Turned())]):
            recording = t2ictl.Recording(layers=(where.address,))
            with t2ictl.controlled(pipe, controls, record=recording) as session:
                made = latents(pipe)
            found.append(session.record)
        assert torch.equal(found[0].map("circle", step=0), found[1].map("circle", step=0))
        assert not torch.equal(found[0].map("circle", step=1), found[1].map("circle", step=1))
        assert torch.equal(made, edited(where, Turned()))  # and listening leaves the edited image as it is


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart_alpha"])
def test_a_processor_that_names_few_of_its_arguments(family: str) -> None:
    """Layers pass some by position and others by name; one of somebody's own gets them as they came."""

    class Own:
        def __init__(self, previous: Any) -> None:
            self.previous, self.got = previous, []  # type: ignore[var-annotated]

        def __call__(self, layer: Any, states: Tensor, *args: Any, **more: Any) -> Any:
            self.got.append((len(args), sorted(more)))
            return self.previous(layer, states, *args, **more)

    where = next(each for each in LAYERS.values() if each.family == family)
    with with_processor(where, own := Own(where.attention.processor)):
        assert torch.equal(latents(pipe_of(family)), plain(family))
        alone = own.got.copy()
        own.got.clear()
        for stage in ("tokens", "project", "output"):
            own.got.clear()
            assert torch.equal(edited(where, Identity.of(stage)), plain(family))
            assert own.got == alone
        recording = t2ictl.Recording(layers=(where.address,))
        with t2ictl.controlled(pipe_of(family), record=recording) as session:
            assert torch.equal(latents(pipe_of(family)), plain(family))
    assert session.record.steps == 2


def test_a_layer_sees_the_signature_of_the_processor_that_was_there() -> None:
    class Masked:
        def __call__(self, attn: Any, hidden_states: Tensor, ip_adapter_masks: Any = None, **more: Any) -> Tensor:
            """Take masks."""
            return hidden_states if ip_adapter_masks is None else hidden_states * ip_adapter_masks

    where, masked = LAYERS["cross"], Masked()
    layer = t2ictl.families.find_adapter(pipe_of(where.family)).layers[3]
    ours = KernelAttention(layer, masked, ActivePass())
    assert inspect.signature(ours.__call__) == inspect.signature(masked.__call__)
    with with_processor(where, ours):
        states = torch.ones(1, 2, 32)
        assert torch.equal(where.attention(states, ip_adapter_masks=3.0), 3 * states)


def test_one_of_ours_that_was_kept_is_not_put_behind_another() -> None:
    own = HandWritten()
    layer = t2ictl.families.find_adapter(pipe_of("flux")).layers[0]
    kept = KernelAttention(layer, KernelAttention(layer, own, ActivePass()), ActivePass())
    assert KernelAttention(layer, kept, ActivePass()).previous is own

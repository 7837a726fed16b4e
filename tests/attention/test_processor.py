"""The one attention processor: equal to the stock ones, silent when idle, and honest about its maps."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.attention.passes import ActivePass, PassKind, StopForward
from t2ictl.attention.processor import ControlledAttention, Inputs, lone_key_attention
from t2ictl.errors import ShapeMismatch, UnsupportedPipeline
from tests.attention.layer_cases import (
    CONTEXT,
    LANES,
    OPTIONS,
    ROWS,
    SIZE,
    STEP,
    TOKENS,
    Listener,
    Spy,
    address_of,
    given,
    installed,
    layer,
    masks,
)

STOCK = [AttnProcessor, AttnProcessor2_0]


class Tokens(Edit):
    def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_BQC.clone(), context_BKC.clone()


class Project(Edit):
    def project(
        self, call: AttentionCall, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return q_BHQD.clone(), k_BHKD.clone(), v_BHKD.clone()


class Scores(Edit):
    def scores(self, call: AttentionCall, scores_BHQK: Tensor) -> Tensor:
        return scores_BHQK.clone()


class Weights(Edit):
    def weights(self, call: AttentionCall, weights_BHQK: Tensor) -> Tensor:
        return weights_BHQK.clone()


class Output(Edit):
    def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
        return out_BQC.clone()


EDITS = [Tokens, Project, Scores, Weights, Output]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("stock", STOCK)
def test_identity_edit_equals_the_stock_processor(edit: type[Edit], options: dict[str, Any], stock: Any) -> None:
    attn = layer(**options)
    hidden, context = given("cross" if "cross_attention_dim" in options else "self")
    expected = stock()(attn, hidden, encoder_hidden_states=context)
    ours = installed(attn, stock(), edits=[edit()])(attn, hidden, encoder_hidden_states=context)
    # The explicit stock processor drops to float32 where the layer asks for upcasting.
    tight = 1e-5 if options.get("upcast_attention") and stock is AttnProcessor else 1e-12
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=tight)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("stock", STOCK)
def test_masks_act_as_in_the_stock_processor(edit: type[Edit], name: str, stock: Any) -> None:
    attn, (hidden, context), mask = layer(cross_attention_dim=CONTEXT), given("cross"), masks()[name]
    expected = stock()(attn, hidden, encoder_hidden_states=context, attention_mask=mask)
    ours = installed(attn, stock(), edits=[edit()])(attn, hidden, encoder_hidden_states=context, attention_mask=mask)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    if mask is not None:
        assert (expected - stock()(attn, hidden, encoder_hidden_states=context)).abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_normalized_queries_and_keys(norm: str) -> None:
    """The fused stock processor normalizes them; the explicit one forgets to."""
    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT, qk_norm=norm), given("cross")
    expected = AttnProcessor2_0()(attn, hidden, encoder_hidden_states=context)
    for edit in EDITS:
        ours = installed(attn, AttnProcessor2_0(), edits=[edit()])(attn, hidden, encoder_hidden_states=context)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("edit", EDITS)
def test_fused_kernel_unless_scores_or_weights_are_seen(edit: type[Edit], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fused = 0, F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT), given("cross")
    installed(attn, AttnProcessor2_0(), edits=[edit()])(attn, hidden, encoder_hidden_states=context)
    assert calls == (0 if edit in (Scores, Weights) else 1)
    assert edit().stages == (edit.__name__.lower(),)


@pytest.mark.parametrize("state", ["no pass", "a pass without work here", "a tap here"])
def test_without_edit_the_previous_processor_gets_the_very_same_arguments(state: str) -> None:
    attn, (hidden, context), mask = layer(cross_attention_dim=CONTEXT), given("cross"), masks()["keys"]
    spy, tap = Spy(), Listener()
    ours = installed(attn, spy, taps=[tap] if state == "a tap here" else [])
    if state == "no pass":
        ours.active_pass.end()
    result = ours(attn, hidden, encoder_hidden_states=context, attention_mask=mask, temb=hidden, extra="kept")
    ((args, kwargs),) = spy.got
    assert args[0] is attn and args[1] is hidden
    assert kwargs["encoder_hidden_states"] is context and kwargs["attention_mask"] is mask
    assert kwargs["temb"] is hidden and kwargs["extra"] == "kept"
    assert torch.equal(result, AttnProcessor2_0()(attn, hidden, encoder_hidden_states=context, attention_mask=mask))
    assert len(tap.heard) == (state == "a tap here")


def test_signature_is_that_of_the_processor_that_was_there() -> None:
    class Adapter:
        def __call__(self, attn: Any, hidden_states: Tensor, ip_adapter_masks: Any = None) -> Tensor:
            return hidden_states

    ours = ControlledAttention(address_of(), Adapter(), ActivePass())
    assert "ip_adapter_masks" in inspect.signature(ours.__call__).parameters


def test_edits_run_by_stage_and_then_in_order_and_know_where_they_are() -> None:
    log: list[tuple[str, str]] = []
    calls: list[AttentionCall] = []

    class Logged(Edit):
        def __init__(self, name: str) -> None:
            self.name = name

        def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
            log.append((self.name, "tokens"))
            calls.append(call)
            return hidden_BQC, context_BKC

        def weights(self, call: AttentionCall, weights_BHQK: Tensor) -> Tensor:
            log.append((self.name, "weights"))
            return weights_BHQK

    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT), given("cross")
    installed(attn, AttnProcessor(), edits=[Logged("a"), Logged("b")])(attn, hidden, encoder_hidden_states=context)
    assert log == [("a", "tokens"), ("b", "tokens"), ("a", "weights"), ("b", "weights")]
    assert calls[0].batch is LANES and calls[0].step is STEP and calls[0].size == SIZE
    assert calls[0].layer.address == "up.0.0.0.cross" and calls[0].attention is attn
    assert [row.role for row in calls[0].batch.rows] == ["uncond", "uncond", "cond", "cond"]


def test_an_edit_that_acts_changes_the_result() -> None:
    class Bias(Edit):
        def scores(self, call: AttentionCall, scores_BHQK: Tensor) -> Tensor:
            bias_K = torch.zeros(TOKENS, dtype=scores_BHQK.dtype)
            bias_K[1:] = -1e4
            return scores_BHQK + bias_K

    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT), given("cross")
    assert context is not None
    ours = installed(attn, AttnProcessor2_0(), edits=[Bias()])(attn, hidden, encoder_hidden_states=context)
    only_first = attn.to_out[0](attn.to_v(context[:, :1])).expand_as(ours)
    torch.testing.assert_close(ours, only_first, rtol=0, atol=1e-12)


def slow_mass(attn: Attention, hidden: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """Attention weights summed over heads: one softmax at a time, in Python numbers."""
    q, k = attn.to_q(hidden), attn.to_k(context)
    width = q.shape[-1] // attn.heads
    mass = torch.zeros(len(hidden), hidden.shape[1], context.shape[1], dtype=torch.float64)
    for row in range(len(hidden)):
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            for place in range(hidden.shape[1]):
                logits = []
                for key in range(context.shape[1]):
                    dot = sum(float(a) * float(b) for a, b in zip(q[row, place, part], k[row, key, part], strict=True))
                    extra = 0.0 if mask is None else float(mask[row, 0, key])
                    logits.append(dot / math.sqrt(width) + extra)
                top = max(logits)
                total = sum(math.exp(each - top) for each in logits)
                for key, each in enumerate(logits):
                    mass[row, place, key] += math.exp(each - top) / total
    return mass


@pytest.mark.parametrize("kind", ["cross", "self"])
@pytest.mark.parametrize("masked", [False, True])
def test_tap_hears_the_softmax_summed_over_heads(kind: str, masked: bool) -> None:
    attn = layer(**({"cross_attention_dim": CONTEXT} if kind == "cross" else {}))
    hidden, context = given(kind)
    if masked and kind == "self":
        masked_keys = torch.zeros(ROWS, 1, hidden.shape[1], dtype=torch.float64)
        masked_keys[..., 3] = -1e4
    mask = None if not masked else (masks()["keys"] if kind == "cross" else masked_keys)
    tap = Listener(rows=slice(2, 4))
    with torch.no_grad():
        installed(attn, AttnProcessor(), taps=[tap])(attn, hidden, encoder_hidden_states=context, attention_mask=mask)
        ((call, mass),) = tap.heard
        expected = slow_mass(attn, hidden, hidden if context is None else context, mask)[2:4]
    torch.testing.assert_close(mass, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(mass.sum(-1), torch.full_like(mass[..., 0], attn.heads), rtol=0, atol=1e-12)
    assert call.size == SIZE


@pytest.mark.parametrize("options", [{"norm_num_groups": 4}, {"cross_attention_norm": "layer_norm"}])
def test_map_mass_sees_what_the_layer_projects(options: dict[str, Any]) -> None:
    cross = "cross_attention_norm" in options
    attn = layer(**options, **({"cross_attention_dim": CONTEXT} if cross else {}))
    hidden, context = given("cross" if cross else "self")
    seen: list[Tensor] = []

    class MapHook(Edit):
        def weights(self, call: AttentionCall, weights_BHQK: Tensor) -> Tensor:
            seen.append(weights_BHQK)
            return weights_BHQK

    tap = Listener()
    installed(attn, AttnProcessor(), taps=[tap], edits=[MapHook()])(attn, hidden, encoder_hidden_states=context)
    torch.testing.assert_close(tap.heard[0][1], seen[0].sum(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("upcast", [False, True])
def test_half_precision_maps_are_float32_and_upcasting_saves_overflow(upcast: bool) -> None:
    attn = layer(dtype=torch.float16, cross_attention_dim=CONTEXT, upcast_attention=upcast)
    hidden, context = given("cross", torch.float16)
    hidden = hidden * 300  # q k reaches past 65504
    tap = Listener()
    with torch.no_grad():
        attn.to_k.weight.mul_(300)
        installed(attn, AttnProcessor(), taps=[tap])(attn, hidden, encoder_hidden_states=context)
    mass = tap.heard[0][1]
    assert mass.dtype == torch.float32
    assert bool(torch.isfinite(mass).all()) == upcast


def test_double_precision_is_not_lost_by_upcasting() -> None:
    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT, upcast_attention=True), given("cross")
    assert context is not None
    tap = Listener()
    with torch.no_grad():
        installed(attn, AttnProcessor(), taps=[tap])(attn, hidden, encoder_hidden_states=context)
        torch.testing.assert_close(tap.heard[0][1], slow_mass(attn, hidden, context, None), rtol=0, atol=1e-12)


def test_the_pass_ends_after_the_taps_of_its_last_layer() -> None:
    attn, (hidden, context), spy, tap = layer(cross_attention_dim=CONTEXT), given("cross"), Spy(), Listener()
    ours = installed(attn, spy, taps=[tap], stop_after="up.0.0.0.cross")
    with pytest.raises(StopForward):
        ours(attn, hidden, encoder_hidden_states=context)
    assert len(tap.heard) == 1 and not spy.got


def test_a_processor_with_weights_of_its_own_is_passed_to_but_not_replaced() -> None:
    class Foreign:
        def __call__(self, attn: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            return hidden_states * 2

    attn, (hidden, context), tap = layer(cross_attention_dim=CONTEXT), given("cross"), Listener()
    assert context is not None
    tapped = installed(attn, Foreign(), taps=[tap])
    assert torch.equal(tapped(attn, hidden, encoder_hidden_states=context), hidden * 2)
    pair = tapped(attn, hidden, encoder_hidden_states=(context, [context]))  # as an IP-Adapter hands it over
    assert torch.equal(pair, hidden * 2) and torch.equal(tap.heard[0][1], tap.heard[1][1])
    with pytest.raises(UnsupportedPipeline, match=r"up\.0\.0\.0\.cross is Foreign"):
        installed(attn, Foreign(), edits=[Output()])(attn, hidden, encoder_hidden_states=context)


def test_another_number_of_positions_is_refused() -> None:
    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT), given("cross")
    with pytest.raises(ShapeMismatch, match="3 x 5 positions"):
        installed(attn, AttnProcessor(), edits=[Output()])(attn, hidden[:, :-1], encoder_hidden_states=context)


def test_more_keys_under_a_mask_are_refused_and_without_one_work() -> None:
    class Twice(Edit):
        def project(
            self, call: AttentionCall, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            return q_BHQD, torch.cat([k_BHKD, k_BHKD], 2), torch.cat([v_BHKD, v_BHKD], 2)

    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT), given("cross")
    ours = installed(attn, AttnProcessor2_0(), edits=[Twice()])
    expected = AttnProcessor2_0()(attn, hidden, encoder_hidden_states=context)
    torch.testing.assert_close(ours(attn, hidden, encoder_hidden_states=context), expected, rtol=0, atol=1e-12)
    with pytest.raises(ShapeMismatch, match="7 entries for 14 keys"):
        ours(attn, hidden, encoder_hidden_states=context, attention_mask=masks()["keys"])


LAYERS: dict[str, dict[str, Any]] = {
    "sd": {},
    "sdxl": {"out_bias": False, "heads": 4, "dim_head": 3},
    "upcast": {"upcast_attention": True, "upcast_softmax": True},
    "residual": {"residual_connection": True},
    "rescale": {"rescale_output_factor": 2.5},
    "residual, rescale, group norm": {
        "residual_connection": True,
        "rescale_output_factor": 2.0,
        "norm_num_groups": 3,
    },
    "norm_cross": {"cross_attention_norm": "layer_norm"},
    "biases, norm of queries and keys": {"bias": True, "qk_norm": "layer_norm"},
}


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
@pytest.mark.parametrize("name", LAYERS)
def test_one_key_alone_equals_the_whole_arithmetic(name: str, processor: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings: dict[str, Any] = {"query_dim": 12, "cross_attention_dim": 7, "heads": 2, "dim_head": 6}
        layer = Attention(**settings | LAYERS[name], processor=processor()).double().eval()
        hidden_BQC, context_BKC = torch.randn(3, 20, 12).double(), torch.randn(3, 1, 7).double()
        weight_BQC = torch.randn(3, 20, 12).double()
    found = []
    for run_layer in (
        lambda hidden, context: layer(hidden, encoder_hidden_states=context),
        lambda hidden, context: lone_key_attention(Inputs(layer, hidden, context, None, {})),
    ):
        leaf_BKC = context_BKC.clone().requires_grad_(True)
        out_BQC = run_layer(hidden_BQC, leaf_BKC)
        (gradient_BKC,) = torch.autograd.grad((out_BQC * weight_BQC).sum(), leaf_BKC)
        found.append((out_BQC.detach(), gradient_BKC))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
    assert found[0][1].norm() > 0.01


@pytest.mark.parametrize("how", ["edit", "pass for maps"])
@pytest.mark.parametrize("kind", ["cross", "self"])
def test_dropout_is_that_of_the_layer(how: str, kind: str) -> None:
    attn = layer(dropout=0.5, **({"cross_attention_dim": CONTEXT} if kind == "cross" else {})).train()
    hidden, context = given(kind)
    acting: dict[str, Any] = {"edits": [Output()]} if how == "edit" else {"taps": [Listener()], "kind": PassKind.MAPS}
    found = []
    for processor in (AttnProcessor2_0(), installed(attn, AttnProcessor2_0(), **acting)):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(4)
            found.append(processor(attn, hidden, encoder_hidden_states=context))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
    assert not torch.allclose(found[0], AttnProcessor2_0()(attn.eval(), hidden, encoder_hidden_states=context))


@pytest.mark.parametrize("kind", list(PassKind))
def test_our_own_passes_go_through_a_processor_of_others(kind: PassKind) -> None:
    class Foreign:
        def __call__(self, attn: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            return hidden_states * 2

    attn, (hidden, context), tap = layer(cross_attention_dim=CONTEXT), given("cross"), Listener()
    assert context is not None
    ours = installed(attn, Foreign(), taps=[tap], kind=kind)
    assert torch.equal(ours(attn, hidden, encoder_hidden_states=context[:, :1]), hidden * 2)
    assert len(tap.heard) == (0 if kind is PassKind.OTHER_TEXT else 1)


def test_one_of_ours_that_was_kept_is_not_put_behind_another() -> None:
    spy = Spy()
    kept = ControlledAttention(address_of(), spy, ActivePass())
    kept.previous = ControlledAttention(address_of(), spy, ActivePass())
    assert ControlledAttention(address_of(), kept, ActivePass()).previous is spy

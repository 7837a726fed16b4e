"""Edits by stage: what each may change, against attention written out by hand, and what the layer is handed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from t2ictl.attention.edits import AttentionCall, Edit, Heads, fused, project_keys, split_heads
from t2ictl.attention.processor import Inputs
from t2ictl.errors import ControlConflict
from t2ictl.settings.windows import Step
from tests.attention.layer_cases import CONTEXT, OPTIONS, Spy, given, installed, layer, masks

CROSS = {name: each for name, each in OPTIONS.items() if "cross_attention_dim" in each}


def by_hand(attn: Attention, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of one row and head after the other, keys of one context and values of another."""
    bias = torch.zeros(len(hidden), attn.heads, hidden.shape[1], keys.shape[1], dtype=hidden.dtype)
    if mask is not None:
        bias = bias + (mask[:, None] if len(mask) == len(hidden) else mask.unflatten(0, (len(hidden), -1)))
    made = torch.zeros(len(hidden), hidden.shape[1], attn.to_v.out_features, dtype=hidden.dtype)
    width = attn.to_v.out_features // attn.heads
    for row in range(len(hidden)):
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            pairs = ((attn.to_q, hidden), (attn.to_k, keys), (attn.to_v, values))
            q, k, v = (project(each[row])[:, part] for project, each in pairs)
            made[row, :, part] = (q @ k.T * attn.scale + bias[row, head]).softmax(dim=-1) @ v
    out: Tensor = attn.to_out[0](made)
    return out


def recorder(log: list[Any], name: str, stages: tuple[str, ...]) -> Edit:
    """An edit that overrides some stages, and notes that it was called."""

    def stage(kind: str) -> Any:
        def method(self: Edit, *args: Any) -> Any:
            log.append((name, kind))
            return getattr(Edit, kind)(self, *args)

        return method

    return type("Recorded", (Edit,), {kind: stage(kind) for kind in stages})()


def test_stages_are_named_in_the_order_in_which_they_run() -> None:
    log: list[tuple[str, str]] = []
    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT), given("cross")
    explicit = ("tokens", "values", "project", "scores", "weights", "output")
    first, second = recorder(log, "a", explicit), recorder(log, "b", explicit[::-1])
    assert first.stages == second.stages == explicit
    installed(attn, AttnProcessor2_0(), edits=[first, second])(attn, hidden, encoder_hidden_states=context)
    assert log == [(name, stage) for stage in explicit for name in ("a", "b")]
    log.clear()
    fused_ones = ("tokens", "values", "project", "attend", "output")
    edits = [recorder(log, "a", fused_ones), recorder(log, "b", ("values", "output"))]
    installed(attn, AttnProcessor2_0(), edits=edits)(attn, hidden, encoder_hidden_states=context)
    assert [stage for _, stage in log] == ["tokens", "values", "values", "project", "attend", "output", "output"]
    assert (
        Edit.STAGES == ("tokens", "values", "project", "attend", "scores", "weights", "output") and Edit().stages == ()
    )


@pytest.mark.parametrize("stage", Edit.STAGES)
@pytest.mark.parametrize("options", CROSS.values(), ids=CROSS)
def test_a_stage_that_changes_nothing_leaves_the_stock_result(stage: str, options: dict[str, Any]) -> None:
    log: list[tuple[str, str]] = []
    attn, (hidden, context) = layer(**options), given("cross")
    expected = AttnProcessor2_0()(attn, hidden, encoder_hidden_states=context)
    edits = [recorder(log, "a", (stage,))]
    found = installed(attn, AttnProcessor2_0(), edits=edits)(attn, hidden, encoder_hidden_states=context)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert log == [("a", stage)]


class Other(Edit):
    """Values of another context, times a factor."""

    def __init__(self, factor: float) -> None:
        self.stride = factor
        self.got: list[Tensor] = []

    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        self.got.append(context_BKC)
        return context_BKC.flip(1) * self.stride


@pytest.mark.parametrize("name", ["none", "keys"])
def test_values_come_from_their_own_context_and_keys_from_that_of_the_tokens(name: str) -> None:
    class Shift(Edit):
        def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
            return hidden_BQC * 2, context_BKC + 1

    attn, (hidden, context), mask = layer(cross_attention_dim=CONTEXT), given("cross"), masks()[name]
    assert context is not None
    edits = [Other(2.0), Shift(), Other(3.0)]
    found = installed(attn, AttnProcessor2_0(), edits=edits)(
        attn, hidden, encoder_hidden_states=context, attention_mask=mask
    )
    expected = by_hand(attn, hidden * 2, context + 1, (context + 1) * 6, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(edits[2].got[0], (context + 1).flip(1) * 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", masks())
def test_attend_stands_for_attention_proper_and_is_given_all_of_it(name: str) -> None:
    got: list[Heads] = []

    class Two(Edit):
        """The mean of two maps, the second of reversed keys."""

        def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
            got.append(heads)
            other = Heads(
                q=heads.q,
                k=project_keys(call.attention, heads.context.flip(1)),
                v=heads.v,
                mask=heads.mask,
                context=heads.context,
            )
            return (fused(call.attention, heads) + fused(call.attention, other)) / 2

    attn, (hidden, context), mask = layer(cross_attention_dim=CONTEXT), given("cross"), masks()[name]
    assert context is not None
    ours = installed(attn, AttnProcessor2_0(), edits=[Two(), Other(1.0)])
    found = ours(attn, hidden, encoder_hidden_states=context, attention_mask=mask)
    expected = sum(by_hand(attn, hidden, keys, context.flip(1), mask) for keys in (context, context.flip(1))) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert got[0].context is context
    torch.testing.assert_close(got[0].v, split_heads(attn, attn.to_v(context.flip(1))), rtol=0, atol=0)
    torch.testing.assert_close(got[0].k, split_heads(attn, attn.to_k(context)), rtol=0, atol=0)


def test_keys_are_split_by_head_and_normalized_as_the_layer_does() -> None:
    attn, (_, context) = layer(cross_attention_dim=CONTEXT, qk_norm="layer_norm"), given("cross")
    assert context is not None
    keys, width = project_keys(attn, context), attn.to_k.out_features // attn.heads
    for head in range(attn.heads):
        own = attn.norm_k(attn.to_k(context)[..., head * width : (head + 1) * width])
        torch.testing.assert_close(keys[:, head], own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stages", [("attend",), ("attend", "weights"), ("scores",), ("weights",)], ids=str)
@pytest.mark.parametrize("turn", [False, True])
def test_one_alone_may_have_the_softmax(stages: tuple[str, ...], turn: bool) -> None:
    log: list[tuple[str, str]] = []
    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT), given("cross")
    edits = [recorder(log, "a", ("attend",)), recorder(log, "b", stages)]
    with pytest.raises(ControlConflict, match=r"up\.0\.0\.0\.cross several edits want the softmax: Recorded"):
        installed(attn, AttnProcessor2_0(), edits=edits[::-1] if turn else edits)(
            attn, hidden, encoder_hidden_states=context
        )
    log.clear()
    beside = [recorder(log, "a", ("scores", "values")), recorder(log, "b", ("scores", "weights"))]
    installed(attn, AttnProcessor2_0(), edits=beside)(attn, hidden, encoder_hidden_states=context)
    assert [stage for _, stage in log] == ["values", "scores", "scores", "weights"]


def test_where_no_edit_acts_the_previous_processor_does_and_one_that_acts_runs_alone() -> None:
    class Idle(Other):
        def acts(self, step: Step) -> bool:
            return step.index != 2  # the step of these tests

    attn, (hidden, context), spy = layer(cross_attention_dim=CONTEXT), given("cross"), Spy()
    assert context is not None
    idle = Idle(5.0)
    found = installed(attn, spy, edits=[idle])(attn, hidden, encoder_hidden_states=context)
    assert torch.equal(found, AttnProcessor2_0()(attn, hidden, encoder_hidden_states=context))
    assert len(spy.got) == 1 and idle.got == []
    found = installed(attn, spy, edits=[idle, Other(2.0)])(attn, hidden, encoder_hidden_states=context)
    torch.testing.assert_close(found, by_hand(attn, hidden, context, context.flip(1) * 2), rtol=0, atol=1e-12)
    assert len(spy.got) == 1 and idle.got == []


def test_all_rows_are_the_very_tensor_and_some_rows_those() -> None:
    attn, (hidden, context) = layer(cross_attention_dim=CONTEXT), given("cross")
    assert context is not None
    for handed in (context, (context, [context])):  # an IP-Adapter hands over two
        inputs = Inputs(attn, hidden, handed, None, {})
        assert inputs.states()[1] is context
        some_hidden, some = inputs.states([1, 3])
        assert torch.equal(some, context[[1, 3]]) and torch.equal(some_hidden, hidden[[1, 3]])
    alone, normed = layer(), layer(cross_attention_dim=CONTEXT, cross_attention_norm="layer_norm")
    got_hidden, got = Inputs(alone, hidden, None, None, {}).states()
    assert torch.equal(got_hidden, hidden) and torch.equal(got, hidden)
    torch.testing.assert_close(Inputs(normed, hidden, context, None, {}).states()[1], normed.norm_cross(context))


def test_edits_are_handed_the_very_context_of_the_call() -> None:
    attn, (hidden, context), edit = layer(cross_attention_dim=CONTEXT), given("cross"), Other(1.0)
    ours = installed(attn, AttnProcessor2_0(), edits=[edit])
    for _ in range(2):
        ours(attn, hidden, encoder_hidden_states=context)
    assert edit.got[0] is context and edit.got[1] is context

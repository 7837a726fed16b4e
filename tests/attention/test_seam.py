"""The seam at the attention kernel: one call is handed over, everything else passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2ictl.attention.seam import KernelCall, KernelSeam

WIDTH, SCALE = 4, 0.3


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = drawn(2, 3, 5, WIDTH, seed=0), drawn(2, 3, 7, WIDTH, seed=1), drawn(2, 3, 7, WIDTH, seed=2)
MASK = drawn(2, 1, 5, 7, seed=3)
MAY_READ = MASK < 0.6


def depth() -> int:
    """How many torch function modes are entered."""
    return int(torch._C._len_torch_function_stack())


def every(call: KernelCall) -> bool:
    return True


def nothing(call: KernelCall) -> None:
    return None


class Seen:
    """Keeps calls, and returns one result for all of them."""

    def __init__(self, result: Tensor | None = None) -> None:
        self.calls: list[KernelCall] = []
        self.result = result

    def __call__(self, call: KernelCall) -> Tensor | None:
        self.calls.append(call)
        return self.result


# -- one call ---------------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], set[str]]] = {
    "by position": (
        (Q, K, V, MASK, 0.0, False),
        {"scale": SCALE, "enable_gqa": False},
        {"dropout_p", "is_causal", "enable_gqa"},
    ),
    "by name": (
        (),
        {"query": Q, "key": K, "value": V, "attn_mask": MASK, "dropout_p": 0.0, "scale": SCALE},
        {"dropout_p"},
    ),
    "both": ((Q, K), {"value": V, "attn_mask": MASK, "is_causal": False, "scale": SCALE}, {"is_causal"}),
}


@pytest.mark.parametrize(("args", "kwargs", "others"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_are_read_however_they_came(args: Any, kwargs: Any, others: set[str]) -> None:
    call = KernelCall.bind(args, kwargs)
    assert call.q is Q and call.k is K and call.v is V and call.mask is MASK
    assert call.scale == call.factor == SCALE
    assert set(call.others) == others
    assert torch.equal(call.run(), F.scaled_dot_product_attention(*args, **kwargs))


def test_what_was_left_out_is_what_the_kernel_takes_for_it() -> None:
    call = KernelCall.bind((Q, K, V), {})
    assert call.mask is None and call.scale is None and call.factor == pytest.approx(1 / math.sqrt(WIDTH))
    assert call.others == {} and torch.equal(call.run(), F.scaled_dot_product_attention(Q, K, V))


def test_binding_writes_into_no_arguments() -> None:
    kwargs = {"query": Q, "key": K, "value": V, "scale": SCALE}
    KernelCall.bind((), kwargs)
    assert list(kwargs) == ["query", "key", "value", "scale"]


def test_grouped_queries_and_a_causal_mask_are_run_as_they_were_asked_for() -> None:
    few = {"query": drawn(1, 4, 6, WIDTH, seed=4), "key": K[:1, :2], "value": V[:1, :2], "enable_gqa": True}
    assert torch.equal(KernelCall.bind((), few).run(), F.scaled_dot_product_attention(**few))
    causal = {"query": Q, "key": K, "value": V, "is_causal": True}
    assert torch.equal(KernelCall.bind((), causal).run(), F.scaled_dot_product_attention(**causal))


def test_other_heads_leave_the_rest() -> None:
    call = KernelCall.bind((Q, K, V, MASK), {"scale": SCALE}).with_heads(2 * Q, K + 1, -V)
    assert torch.equal(call.run(), F.scaled_dot_product_attention(2 * Q, K + 1, -V, attn_mask=MASK, scale=SCALE))


@pytest.mark.parametrize("mask", [None, MASK, MAY_READ], ids=["none", "additive", "boolean"])
def test_a_bias_is_the_mask_as_logits(mask: Tensor | None) -> None:
    bias = KernelCall.bind((Q, K, V, mask), {}).bias
    assert (bias is mask) == (mask is not MAY_READ)
    scores_BHLM = Q @ K.mT / math.sqrt(WIDTH) + (0 if bias is None else bias)
    expected = F.scaled_dot_product_attention(Q, K, V, attn_mask=mask)
    torch.testing.assert_close(scores_BHLM.softmax(-1) @ V, expected, rtol=0, atol=1e-6)


# -- the mode ---------------------------------------------------------------------------------------------------------


def test_no_result_is_the_kernel_bit_for_bit() -> None:
    plain = F.scaled_dot_product_attention(Q, K, V, attn_mask=MASK)
    seen = Seen()
    with KernelSeam(every, seen) as seam:
        found = F.scaled_dot_product_attention(query=Q, key=K, value=V, attn_mask=MASK)
    assert torch.equal(found, plain)
    assert seam.has_seen and len(seen.calls) == 1 and seen.calls[0].q is Q and seen.calls[0].mask is MASK


def test_a_result_takes_the_place_of_the_kernels() -> None:
    instead = torch.full((2, 3, 5, WIDTH), 7.0)
    with KernelSeam(every, Seen(instead)):
        assert F.scaled_dot_product_attention(Q, K, V) is instead


def test_only_the_first_call_that_fits_is_handed_over() -> None:
    seen, offered = Seen(V[:, :, :5] * 0), []

    def fits(call: KernelCall) -> bool:
        offered.append(call)
        return call.k.shape[2] == 7

    plain = F.scaled_dot_product_attention(Q, K[:, :, :3], V[:, :, :3])
    with KernelSeam(fits, seen) as seam:
        first = F.scaled_dot_product_attention(Q, K[:, :, :3], V[:, :, :3])
        assert not seam.has_seen
        second = F.scaled_dot_product_attention(Q, K, V)
        third = F.scaled_dot_product_attention(Q, K, V)
    assert torch.equal(first, plain)
    assert not second.any()
    assert torch.equal(third, F.scaled_dot_product_attention(Q, K, V))
    assert len(seen.calls) == 1 and len(offered) == 2  # nobody is asked about calls after that


def test_all_other_functions_pass() -> None:
    seen = Seen()
    with KernelSeam(every, seen) as seam:
        found = torch.softmax(Q @ K.mT, dim=-1) @ V
        linear = F.linear(Q, K[0, 0])
    assert torch.equal(found, torch.softmax(Q @ K.mT, dim=-1) @ V) and torch.equal(linear, F.linear(Q, K[0, 0]))
    assert not seam.has_seen and seen.calls == []


def test_outside_of_its_block_nothing_is_handed_over() -> None:
    seen = Seen(Q)
    with KernelSeam(every, seen):
        pass
    F.scaled_dot_product_attention(Q, K, V)
    assert seen.calls == []


def test_the_kernel_may_be_called_while_a_call_is_handled() -> None:
    def twice(call: KernelCall) -> Tensor:
        return 2 * call.run()

    plain = F.scaled_dot_product_attention(Q, K, V, attn_mask=MASK)
    with KernelSeam(every, twice):
        assert torch.equal(F.scaled_dot_product_attention(Q, K, V, attn_mask=MASK), 2 * plain)


@pytest.mark.parametrize("where", ["fits", "on", "kernel", "block"])
def test_an_exception_leaves_no_mode_behind(where: str) -> None:
    class Ended(Exception):
        pass

    def ends(call: KernelCall) -> Any:
        raise Ended

    def mine() -> None:
        with KernelSeam(ends if where == "fits" else every, ends if where == "on" else nothing):
            if where == "block":
                raise Ended
            F.scaled_dot_product_attention(Q, K[..., :3] if where == "kernel" else K, V)

    before, plain = depth(), F.scaled_dot_product_attention(Q, K, V)
    with pytest.raises(RuntimeError if where == "kernel" else Ended):
        mine()
    assert depth() == before
    seen = Seen()
    with KernelSeam(every, seen):
        assert torch.equal(F.scaled_dot_product_attention(Q, K, V), plain)
    assert len(seen.calls) == 1 and depth() == before


def test_of_nested_seams_the_inner_one_is_first() -> None:
    outer, inner = Seen(Q + 1), Seen()
    with KernelSeam(every, outer):
        with KernelSeam(every, inner) as within:
            found = F.scaled_dot_product_attention(Q, K, V)  # the inner one has no result of its own
            assert depth() == 2
        after = F.scaled_dot_product_attention(Q, K, V)
    assert len(inner.calls) == len(outer.calls) == 1 and within.has_seen
    assert torch.equal(found, Q + 1)
    assert torch.equal(after, F.scaled_dot_product_attention(Q, K, V))  # the outer one has had its call


def test_a_result_of_the_inner_seam_is_the_outer_ones_next_call() -> None:
    outer = Seen()
    with KernelSeam(every, outer):
        with KernelSeam(every, Seen(V)):
            F.scaled_dot_product_attention(Q, K, V)
            assert outer.calls == []
            F.scaled_dot_product_attention(2 * Q, K, V)
    assert len(outer.calls) == 1 and torch.equal(outer.calls[0].q, 2 * Q)


def test_a_seam_within_the_handling_of_a_call() -> None:
    inner = Seen()

    def handle(call: KernelCall) -> Tensor:
        with KernelSeam(every, inner):
            return call.run()

    with KernelSeam(every, handle):
        found = F.scaled_dot_product_attention(Q, K, V)
    assert torch.equal(found, F.scaled_dot_product_attention(Q, K, V)) and len(inner.calls) == 1


def test_gradients_pass() -> None:
    q = Q.clone().requires_grad_(True)
    (plain,) = torch.autograd.grad(F.scaled_dot_product_attention(q, K, V).square().sum(), [q])
    with KernelSeam(every, Seen()):
        (found,) = torch.autograd.grad(F.scaled_dot_product_attention(q, K, V).square().sum(), [q])
    assert torch.equal(found, plain)

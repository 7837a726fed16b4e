"""Attention with its maps from one softmax: values and gradients of the plain arithmetic, and little is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.attention.softmax import attention_and_map, scores, softmax, summed_attention


def given(dtype: torch.dtype = torch.float64, keys: int = 5) -> Any:
    source = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 7, 4), (2, 3, keys, 4), (2, 3, keys, 4))
    q, k, v = (torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def ours(leaves: Any, mask: Tensor | None = None, *, upcast: bool = False) -> tuple[Tensor, Tensor]:
    q, k, v = leaves
    return attention_and_map(q, k, v, mask, 0.5, upcast=upcast)


def reference(leaves: Any, mask: Tensor | None = None, *, upcast: bool = False) -> tuple[Tensor, Tensor]:
    """The same by autograd, which keeps everything."""
    q, k, v = leaves
    weights = softmax(scores(q, k, mask, 0.5, upcast=upcast))
    return weights.to(v.dtype) @ v, weights.sum(dim=1)


def loss(out: Tensor, mass: Tensor) -> Tensor:
    return out.double().square().sum() + (mass.double() * torch.arange(mass.numel()).view_as(mass)).sin().sum()


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_masked", [False, True])
def test_values_and_gradients_are_those_of_autograd(upcast: bool, dtype: torch.dtype, is_masked: bool) -> None:
    mask = torch.tensor([0.0, 0, 0, -10000, 0], dtype=dtype).view(1, 1, 1, 5) if is_masked else None
    mine, theirs = ([each.clone().requires_grad_() for each in given(dtype)] for _ in range(2))
    own, plain = ours(mine, mask, upcast=upcast), reference(theirs, mask, upcast=upcast)
    for one, other in zip(own, plain, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    found, expected = (torch.autograd.grad(loss(*each), leaves) for each, leaves in ((own, mine), (plain, theirs)))
    tight = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    for gradient, known in zip(found, expected, strict=True):
        assert gradient.dtype == dtype and known.abs().max() > 0.1
        torch.testing.assert_close(gradient, known, rtol=tight, atol=tight)


def test_gradcheck_of_both_results() -> None:
    leaves: Any = tuple(each.requires_grad_() for each in given())
    assert torch.autograd.gradcheck(lambda *each: ours(each), leaves)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_that_nobody_wants_are_not_made(wanted: tuple[int, ...]) -> None:
    leaves: Any = [each.requires_grad_(place in wanted) for place, each in enumerate(given())]
    loss(*ours(leaves)).backward()
    assert [leaf.grad is not None for leaf in leaves] == [place in wanted for place in range(3)]


def test_a_map_alone_has_its_gradient_too() -> None:
    leaves: Any = [each.requires_grad_() for each in given()]
    ours(leaves)[1].square().sum().backward()
    again = [each.requires_grad_() for each in given()]
    summed_attention(again[0], again[1], None, 0.5, upcast=False).square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, again[0].grad, rtol=1e-12, atol=1e-14)
    assert leaves[2].grad is not None and not leaves[2].grad.any() and again[2].grad is None


def test_only_queries_keys_and_values_are_kept() -> None:
    leaves: Any = [each.requires_grad_() for each in given(keys=50)]
    kept: list[Any] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ours(leaves)
    assert sorted(kept) == sorted(tuple(leaf.shape) for leaf in leaves)


def test_a_second_derivative_is_refused() -> None:
    leaves: Any = [each.requires_grad_() for each in given()]
    (gradient,) = torch.autograd.grad(loss(*ours(leaves)), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()

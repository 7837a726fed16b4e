"""Gradients of joint maps: those of autograd on the explicit softmax; and what is never made or kept for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.attention.blockwise import BUDGET
from t2ictl.attention.joint_maps import (
    all_key_attention,
    output_space_map,
    self_attention_map,
    text_attention,
    text_mass,
    text_to_image_attention,
)
from tests.allocations import Largest
from tests.attention.joint_cases import BUDGETS, HEADS, LENGTH, MASKS, WORDS, drawn, explicit, keys, mask_of, queries

SCATTERED = torch.tensor([9, 0, 4, 0])  # one key twice
PLACES = torch.tensor([6, 0, 3, 0])

# Each reading of the same queries and keys, and the explicit softmax of it.
READINGS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "text": (text_attention, explicit),
    "all": (
        lambda q, k, mask, **kwargs: all_key_attention(q, k, WORDS, mask, **kwargs),
        lambda q, k, mask: explicit(q, k, mask, WORDS),
    ),
    "all, positions": (
        lambda q, k, mask, **kwargs: all_key_attention(q, k, SCATTERED, mask, **kwargs),
        lambda q, k, mask: explicit(q, k, mask, SCATTERED),
    ),
    "image": (text_to_image_attention, lambda q, k, mask: explicit(q, k, mask).transpose(1, 2)),
    "self": (
        lambda q, k, mask, **kwargs: self_attention_map(q, k, mask, places=PLACES, **kwargs),
        lambda q, k, mask: explicit(q, k, mask)[:, PLACES],
    ),
}


def loss(map_BQK: Tensor) -> Tensor:
    """A loss whose gradient differs from place to place."""
    factor = drawn(*map_BQK.shape, seed=8, dtype=map_BQK.dtype)
    return (factor * map_BQK).sum() + map_BQK.square().sum()


def gradients(reading: Callable[..., Tensor], leaves: list[Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    return torch.autograd.grad(loss(reading(*own, *args, **kwargs)), own)


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_values_and_gradients_are_those_of_the_explicit_softmax(
    name: str, kind: str, dtype: torch.dtype, within: float
) -> None:
    ours, plain = READINGS[name]
    leaves = [drawn(2, HEADS, 7, 16, seed=1, dtype=dtype), drawn(2, HEADS, LENGTH, 16, seed=2, dtype=dtype)]
    mask = mask_of(kind, LENGTH)
    mask = mask.to(dtype) if mask is not None and mask.dtype == torch.float64 else mask
    torch.testing.assert_close(ours(*leaves, mask), plain(*leaves, mask), rtol=within, atol=within)
    found, expected = gradients(ours, leaves, mask), gradients(plain, leaves, mask)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype and other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=within, atol=within)


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("shared", [1, 2, HEADS])
def test_blocks_and_shared_keys_have_the_same_gradients(name: str, budget: int, shared: int) -> None:
    ours, plain = READINGS[name]
    leaves, mask = [queries(), keys(heads=shared)], mask_of("additive", LENGTH)
    repeated = [leaves[0], leaves[1].repeat_interleave(HEADS // shared, dim=1)]
    of_q, of_repeated = gradients(plain, repeated, mask)
    of_k = of_repeated.unflatten(1, (shared, -1)).sum(dim=2)
    for one, other in zip(gradients(ours, leaves, mask, budget=budget), (of_q, of_k), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("kind", ["none", "one query reads nothing", "additive"])
def test_gradcheck(name: str, kind: str) -> None:
    leaves = [queries()[:1].requires_grad_(), keys(heads=2)[:1].requires_grad_()]
    mask = mask_of(kind, LENGTH)
    own = None if mask is None else mask[:1]
    assert torch.autograd.gradcheck(lambda q, k: READINGS[name][0](q, k, own, budget=BUDGETS[1]), leaves)


def test_gradcheck_of_the_output_space() -> None:
    leaves = [(queries() / 3).requires_grad_(), (keys() / 3).requires_grad_()]
    assert torch.autograd.gradcheck(output_space_map, leaves)


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_are_those_of_float32_rounded(name: str, dtype: torch.dtype) -> None:
    leaves = [queries(dtype), keys(dtype)]
    found = gradients(READINGS[name][0], leaves, None)
    exact = gradients(READINGS[name][0], [leaf.float() for leaf in leaves], None)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("wanted", [0, 1])
def test_a_gradient_that_nobody_wants_is_not_made(name: str, wanted: int) -> None:
    leaves = [leaf.requires_grad_(place == wanted) for place, leaf in enumerate((queries(), keys()))]
    loss(READINGS[name][0](*leaves, None)).backward()
    assert [leaf.grad is not None for leaf in leaves] == [place == wanted for place in range(2)]


def test_autocast_does_not_round_gradients() -> None:
    leaves = [queries(torch.float32), keys(torch.float32)]
    for ours, _ in READINGS.values():
        plain = gradients(ours, leaves, None)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = gradients(ours, leaves, None)
        for one, other in zip(rounded, plain, strict=True):
            assert torch.equal(one, other)


def kept(reading: Callable[..., Tensor], *leaves: Tensor) -> list[tuple[int, ...]]:
    """Shapes of what one reading keeps for the backward pass."""
    shapes: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        reading(*leaves)
    return sorted(shapes)


def test_little_is_kept() -> None:
    """Of heads that share keys also the keys are kept only once."""
    q, k, mask = queries().requires_grad_(), keys(heads=2).requires_grad_(), mask_of("additive", LENGTH)
    q_shape, k_shape, m_shape = tuple(q.shape), tuple(k.shape), tuple(mask.shape)  # type: ignore[union-attr]
    assert kept(text_attention, q, k) == sorted([q_shape, k_shape])
    assert kept(lambda q, k: text_attention(q, k, mask), q, k) == sorted([q_shape, k_shape, m_shape])
    assert kept(lambda q, k: all_key_attention(q, k, WORDS), q, k) == sorted([q_shape, k_shape, (*q_shape[:3], 1)])


def test_the_mass_has_no_gradient() -> None:
    assert not text_mass(queries().requires_grad_(), keys().requires_grad_(), WORDS).requires_grad


@pytest.mark.parametrize("name", READINGS)
def test_a_second_derivative_is_refused(name: str) -> None:
    q, k = queries().requires_grad_(), keys().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(READINGS[name][0](q, k, None)), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


HEADS_HERE, IMAGE_HERE, TEXT_HERE, WIDTH_HERE = 4, 96, 32, 8
LENGTH_HERE = IMAGE_HERE + TEXT_HERE


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("kind", ["none", "boolean", "additive"])
def test_no_tensor_of_all_positions_by_all_positions(name: str, kind: str) -> None:
    """In both directions nothing is larger than a block or than queries, keys, mask and map themselves."""
    q = drawn(1, HEADS_HERE, IMAGE_HERE, WIDTH_HERE).requires_grad_()
    k = drawn(1, HEADS_HERE, LENGTH_HERE, WIDTH_HERE, seed=1).requires_grad_()
    mask = {"none": None, "boolean": drawn(1, 1, IMAGE_HERE, LENGTH_HERE) < 1, "additive": drawn(LENGTH_HERE)}[kind]
    block = 40 * LENGTH_HERE  # 40 of the 96 queries of one head
    with Largest() as largest:
        made = READINGS[name][0](q, k, mask, budget=block * 8)
        made.sum().backward()
    allowed = max(block, q.numel(), k.numel(), made.numel(), 0 if mask is None else mask.numel())
    assert largest.elements <= allowed < LENGTH_HERE**2 < HEADS_HERE * IMAGE_HERE * LENGTH_HERE
    assert q.grad is not None and k.grad is not None


@pytest.mark.parametrize("queries_of_a_block", [1, 2, 3])
def test_a_block_is_as_large_as_its_budget(queries_of_a_block: int) -> None:
    q, k = drawn(1, 2, 5, 1).requires_grad_(), drawn(1, 2, 50, 1, seed=1).requires_grad_()
    with Largest() as largest:
        all_key_attention(q, k, slice(0, 1), budget=8 * 50 * queries_of_a_block + 8).sum().backward()
    assert largest.elements == max(50 * queries_of_a_block, k.numel())
    with Largest() as largest:
        text_mass(q[:, :1], k[:, :1].detach(), slice(0, 1), budget=1)
    assert largest.elements == 50  # one query, though the budget is less


def test_nor_with_the_budget_that_is_the_default() -> None:
    image, text, width = 2600, 472, 4
    length = image + text
    q, k = drawn(1, 2, image, width, dtype=torch.float32), drawn(1, 2, length, width, dtype=torch.float32)
    q.requires_grad_(), k.requires_grad_()
    with Largest() as largest:
        all_key_attention(q, k, slice(0, text)).sum().backward()
        text_mass(q, k, slice(0, text))
    assert largest.elements <= BUDGET // 4 < length**2


def test_self_attention_takes_one_head_at_a_time() -> None:
    q = drawn(1, HEADS_HERE, IMAGE_HERE, WIDTH_HERE).requires_grad_()
    with Largest() as largest:
        self_attention_map(q, q).sum().backward()
    assert largest.elements == IMAGE_HERE**2  # the map itself, and the block of a head

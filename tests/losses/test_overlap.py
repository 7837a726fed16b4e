"""The segregation loss against a loop over its equation, and the facts that its users rely on."""

from __future__ import annotations

import pytest
import torch

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.losses.overlap import overlap_loss, soft_overlap


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_overlap(first: list[list[float]], second: list[list[float]]) -> float:
    shared = total = 0.0
    for row_a, row_b in zip(first, second, strict=True):
        for a, b in zip(row_a, row_b, strict=True):
            shared += a if a < b else b
            total += a + b
    return shared / total if total > 0 else 0.0


def slow_loss(maps: list[list[list[float]]]) -> float:
    """A-STAR, equation 2: the sum over m > n."""
    return sum(slow_overlap(maps[m], maps[n]) for m in range(len(maps)) for n in range(m))


@pytest.mark.parametrize("concepts", [0, 1, 2, 3, 5])
def test_equals_the_slow_reference(concepts: int) -> None:
    maps_BNYX = random_maps(3, concepts, 4, 6)
    expected = [slow_loss(row) for row in maps_BNYX.tolist()]
    torch.testing.assert_close(overlap_loss(maps_BNYX), torch.tensor(expected, dtype=torch.float64))


def test_mean_is_the_sum_over_the_number_of_pairs() -> None:
    maps_BNYX = random_maps(2, 4, 5, 5)
    torch.testing.assert_close(overlap_loss(maps_BNYX, reduction="mean") * 6, overlap_loss(maps_BNYX))


def test_value_by_hand() -> None:
    maps_BNYX = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]], [[3.0, 1.0], [0.0, 4.0]]]])
    assert overlap_loss(maps_BNYX).tolist() == pytest.approx([2.0 / 12.0])


def test_bounds_of_a_pair() -> None:
    maps_BNYX = random_maps(64, 2, 4, 4, dtype=torch.float32)
    loss_B = overlap_loss(maps_BNYX)
    assert (loss_B > 0).all() and (loss_B < 0.5).all()
    equal, disjoint = torch.ones(1, 2, 3, 3), torch.eye(2).reshape(1, 2, 1, 2)
    assert overlap_loss(equal).item() == 0.5
    assert overlap_loss(disjoint).item() == 0.0


def test_symmetric_in_the_concepts() -> None:
    maps_BNYX = random_maps(2, 4, 5, 3)
    torch.testing.assert_close(overlap_loss(maps_BNYX), overlap_loss(maps_BNYX[:, [2, 0, 3, 1]]))
    first, second = maps_BNYX[:, 0], maps_BNYX[:, 1]
    assert torch.equal(soft_overlap(first, second), soft_overlap(second, first))


def test_invariant_to_a_common_scale_and_not_to_a_single_one() -> None:
    maps_BNYX = random_maps(2, 3, 4, 4)
    torch.testing.assert_close(overlap_loss(maps_BNYX * 1e-3), overlap_loss(maps_BNYX))
    single = maps_BNYX * torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64).reshape(1, 3, 1, 1)
    assert (overlap_loss(single) < overlap_loss(maps_BNYX) - 0.1).all()


def test_near_uniform_maps_are_near_the_top() -> None:
    maps_BNYX = 1.0 + 0.1 * random_maps(1, 2, 16, 16)
    assert 0.48 < overlap_loss(maps_BNYX).item() < 0.5


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ragged_rows_equal_single_rows(reduction: str) -> None:
    maps_BNYX = random_maps(4, 4, 3, 5)
    counts = (0, 1, 2, 4)
    mask_BN = torch.arange(4) < torch.tensor(counts)[:, None]
    loss_B = overlap_loss(maps_BNYX, mask_BN, reduction)  # type: ignore[arg-type]
    for row, count in enumerate(counts):
        single = overlap_loss(maps_BNYX[row : row + 1, :count], reduction=reduction)  # type: ignore[arg-type]
        torch.testing.assert_close(loss_B[row : row + 1], single, rtol=1e-14, atol=0)


@pytest.mark.parametrize("padding", [0.0, 1.0, float("nan"), float("inf")])
def test_padding_adds_nothing_and_gets_no_gradient(padding: float) -> None:
    maps_BNYX = random_maps(2, 3, 4, 4)
    maps_BNYX[:, 1] = padding
    maps_BNYX[0, 0, 0, 0] = 0.0  # ties with the zero that stands for the padding
    maps_BNYX.requires_grad_()
    mask_BN = torch.tensor([[True, False, True]] * 2)
    loss_B = overlap_loss(maps_BNYX, mask_BN)
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert torch.equal(gradient[:, 1], torch.zeros(2, 4, 4, dtype=torch.float64))
    assert gradient.isfinite().all()
    kept = maps_BNYX.detach()[:, [0, 2]].requires_grad_()
    torch.testing.assert_close(loss_B, overlap_loss(kept))
    (expected,) = torch.autograd.grad(overlap_loss(kept).sum(), kept)
    torch.testing.assert_close(gradient[:, [0, 2]], expected)


def test_a_pair_of_empty_maps_is_zero_without_nan() -> None:
    maps_BNYX = torch.zeros(1, 2, 2, 2, requires_grad=True)
    loss_B = overlap_loss(maps_BNYX)
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert loss_B.tolist() == [0.0] and not gradient.any()


def test_rows_are_independent() -> None:
    maps_BNYX = random_maps(3, 3, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(overlap_loss(maps_BNYX)[1], maps_BNYX)
    assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


def test_gradient_descent_segregates() -> None:
    maps_BNYX = random_maps(1, 3, 4, 4)
    before = overlap_loss(maps_BNYX).item()
    for _ in range(20):
        maps_BNYX.requires_grad_()
        (gradient,) = torch.autograd.grad(overlap_loss(maps_BNYX).sum(), maps_BNYX)
        maps_BNYX = (maps_BNYX.detach() - 0.5 * gradient).clamp(min=0)
    assert overlap_loss(maps_BNYX).item() < 0.5 * before


def test_gradcheck() -> None:
    maps_BNYX = (random_maps(2, 3, 3, 2) + 0.1).requires_grad_()
    mask_BN = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda maps: overlap_loss(maps, mask_BN), (maps_BNYX,))
    assert torch.autograd.gradcheck(lambda maps: overlap_loss(maps, mask_BN, "mean"), (maps_BNYX,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype: torch.dtype) -> None:
    half = random_maps(2, 3, 16, 16, dtype=dtype).requires_grad_()
    loss_B = overlap_loss(half)
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, overlap_loss(half.detach().float()))
    (gradient,) = torch.autograd.grad(loss_B.sum(), half)
    assert gradient.dtype == dtype and gradient.any()
    assert overlap_loss(half.detach().double()).dtype == torch.float64


def test_shape_errors_name_the_argument_and_both_shapes() -> None:
    with pytest.raises(ShapeMismatch, match=r"maps_BNYX.*\(2, 3, 4\).*\(B, N, Y, X\)"):
        overlap_loss(torch.zeros(2, 3, 4))
    with pytest.raises(ShapeMismatch, match=r"maps_BNYX.*\(1, 2, 0, 4\)"):
        overlap_loss(torch.zeros(1, 2, 0, 4))
    with pytest.raises(ShapeMismatch, match=r"mask_BN.*\(2,\).*\(1, 2\)"):
        overlap_loss(torch.zeros(1, 2, 4, 4), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ShapeMismatch, match=r"second.*\(2, 3\).*\(3, 3\)"):
        soft_overlap(torch.zeros(3, 3), torch.zeros(2, 3))
    with pytest.raises(BadSetting, match="float32"):
        overlap_loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2))
    with pytest.raises(BadSetting, match="'max'"):
        overlap_loss(torch.zeros(1, 2, 4, 4), reduction="max")  # type: ignore[arg-type]


def test_never_reads_a_value_on_the_host() -> None:
    """Tensors without values: anything that waits for a value, like item() or a branch on one, raises."""
    maps_BNYX = torch.rand(2, 3, 4, 4, device="meta")
    mask_BN = torch.ones(2, 3, dtype=torch.bool, device="meta")
    assert overlap_loss(maps_BNYX, mask_BN).shape == (2,)

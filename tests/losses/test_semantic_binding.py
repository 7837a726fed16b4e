"""The semantic binding loss against a loop over its equation, and the facts that its users rely on."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.losses.semantic_binding import semantic_binding_loss

Scale = Literal["mean", "sum"]
SCALES = pytest.mark.parametrize("scale", ["mean", "sum"])
ROWS_G = torch.tensor([2, 0, 2, 3, 2])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_loss(predicted: torch.Tensor, target: torch.Tensor, rows_G: list[int], rows: int, scale: Scale) -> list[float]:
    """Token merging: for each image the sum over its groups k of the squared distance of two noise predictions."""
    loss = [0.0] * rows
    for row, flat_a, flat_b in zip(rows_G, predicted.flatten(1).tolist(), target.flatten(1).tolist(), strict=True):
        squares = 0.0
        for a, b in zip(flat_a, flat_b, strict=True):
            squares += (a - b) ** 2
        loss[row] += squares / len(flat_a) if scale == "mean" else squares
    return loss


@SCALES
@pytest.mark.parametrize("groups", [0, 1, 3, 5])
def test_equals_the_slow_reference(groups: int, scale: Scale) -> None:
    predicted, target, rows_G = noise(groups, 4, 3, 5), noise(groups, 4, 3, 5, seed=1), ROWS_G[:groups]
    expected = torch.tensor(slow_loss(predicted, target, rows_G.tolist(), 4, scale), dtype=torch.float64)
    torch.testing.assert_close(semantic_binding_loss(predicted, target, rows_G, 4, scale), expected)


def test_value_by_hand() -> None:
    predicted = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[0.0, 0.0]], [[0.0, 2.0]]]])
    target = torch.tensor([[[[1.0, 0.0]], [[3.0, 1.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    together, apart = torch.tensor([0, 0]), torch.tensor([1, 0])
    assert semantic_binding_loss(predicted, target, together, 1, "sum").tolist() == [17.0]
    assert semantic_binding_loss(predicted, target, together, 1).tolist() == [4.25]
    assert semantic_binding_loss(predicted, target, apart, 3).tolist() == [1.0, 3.25, 0.0]


def test_official_factor() -> None:
    """10000 times the mean is 0.153 times the sum on the latents of SDXL, as the docstring says."""
    predicted, target, rows_G = noise(1, 4, 128, 128), noise(1, 4, 128, 128, seed=1), torch.tensor([0])
    mean = semantic_binding_loss(predicted, target, rows_G, 1)
    total = semantic_binding_loss(predicted, target, rows_G, 1, "sum")
    assert (1e4 * mean / total).item() == pytest.approx(0.153, abs=5e-4)


def test_the_mean_does_not_depend_on_the_resolution() -> None:
    predicted, target, rows_G = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1), torch.tensor([0, 1])
    wide, wide_target = (values.repeat_interleave(4, -1).repeat_interleave(2, -2) for values in (predicted, target))
    mean = semantic_binding_loss(predicted, target, rows_G, 2)
    torch.testing.assert_close(semantic_binding_loss(wide, wide_target, rows_G, 2), mean)
    total = semantic_binding_loss(predicted, target, rows_G, 2, "sum")
    torch.testing.assert_close(semantic_binding_loss(wide, wide_target, rows_G, 2, "sum"), 8 * total)


@SCALES
def test_bounds(scale: Scale) -> None:
    predicted, target = noise(5, 4, 3, 3), noise(5, 4, 3, 3, seed=1)
    assert (semantic_binding_loss(predicted, target, ROWS_G, 4, scale)[[0, 2, 3]] > 0).all()
    assert semantic_binding_loss(target, target, ROWS_G, 4, scale).tolist() == [0.0] * 4


@SCALES
def test_symmetry(scale: Scale) -> None:
    predicted, target = noise(5, 4, 3, 3), noise(5, 4, 3, 3, seed=1)
    loss_B = semantic_binding_loss(predicted, target, ROWS_G, 4, scale)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(loss_B, semantic_binding_loss(target, predicted, ROWS_G, 4, scale))
    torch.testing.assert_close(
        loss_B, semantic_binding_loss(predicted[order], target[order], ROWS_G[order], 4, scale), rtol=1e-14, atol=0
    )


@SCALES
def test_ragged_images_equal_single_images(scale: Scale) -> None:
    predicted, target = noise(5, 4, 3, 3), noise(5, 4, 3, 3, seed=1)
    loss_B = semantic_binding_loss(predicted, target, ROWS_G, 4, scale)
    assert loss_B[1].item() == 0.0
    for row in range(4):
        own = ROWS_G == row
        alone = torch.zeros(int(own.sum()), dtype=torch.int64)
        single = semantic_binding_loss(predicted[own], target[own], alone, 1, scale)
        torch.testing.assert_close(loss_B[row : row + 1], single, rtol=1e-14, atol=0)


def test_no_groups_and_no_images() -> None:
    empty, none = torch.zeros(0, 4, 3, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss_B = semantic_binding_loss(empty, empty, none, 3)
    assert loss_B.tolist() == [0.0] * 3 and loss_B.requires_grad
    assert semantic_binding_loss(empty, empty, none, 0).shape == (0,)


def test_images_are_independent() -> None:
    predicted, target = noise(5, 4, 3, 3).requires_grad_(), noise(5, 4, 3, 3, seed=1)
    (gradient,) = torch.autograd.grad(semantic_binding_loss(predicted, target, ROWS_G, 4)[2], predicted)
    assert gradient.flatten(1).any(1).tolist() == [True, False, True, False, True]
    broken = predicted.detach().clone()
    broken[1, 0, 0, 0] = float("nan")
    assert semantic_binding_loss(broken, target, ROWS_G, 4).isnan().tolist() == [True, False, False, False]


def test_the_target_gets_no_gradient() -> None:
    predicted, target = noise(2, 4, 3, 3).requires_grad_(), noise(2, 4, 3, 3, seed=1).requires_grad_()
    loss_B = semantic_binding_loss(predicted, target, torch.tensor([0, 0]), 1, "sum")
    loss_B.sum().backward()
    assert target.grad is None
    torch.testing.assert_close(predicted.grad, 2 * (predicted - target).detach())


@SCALES
def test_gradcheck(scale: Scale) -> None:
    predicted, target = noise(3, 2, 2, 3).requires_grad_(), noise(3, 2, 2, 3, seed=1)
    rows_G = torch.tensor([1, 0, 1])
    assert torch.autograd.gradcheck(lambda own: semantic_binding_loss(own, target, rows_G, 3, scale), (predicted,))


@SCALES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype: torch.dtype, scale: Scale) -> None:
    half, target = noise(5, 4, 8, 8, dtype=dtype).requires_grad_(), noise(5, 4, 8, 8, seed=1, dtype=dtype)
    loss_B = semantic_binding_loss(half, target, ROWS_G, 4, scale)
    assert loss_B.dtype == torch.float32
    assert torch.equal(loss_B, semantic_binding_loss(half.detach().float(), target.float(), ROWS_G, 4, scale))
    (gradient,) = torch.autograd.grad(loss_B.sum(), half)
    assert gradient.dtype == dtype and gradient.any()
    assert semantic_binding_loss(half, target.double(), ROWS_G, 4, scale).dtype == torch.float64


def test_large_half_precision_predictions_do_not_overflow() -> None:
    predicted, target = torch.full((1, 4, 8, 8), 3e4).half(), torch.full((1, 4, 8, 8), -3e4).half()
    assert semantic_binding_loss(predicted, target, torch.tensor([0]), 1).item() == pytest.approx(3.6e9, rel=1e-3)


def test_shape_errors_name_the_argument_and_both_shapes() -> None:
    predicted, rows_G = torch.zeros(2, 4, 3, 3), torch.tensor([0, 1])
    with pytest.raises(ShapeMismatch, match=r"predicted_GCYX.*\(4, 3, 3\).*\(G, C, Y, X\)"):
        semantic_binding_loss(predicted[0], predicted[0], rows_G, 2)
    with pytest.raises(ShapeMismatch, match=r"predicted_GCYX.*\(2, 4, 0, 3\)"):
        semantic_binding_loss(predicted[:, :, :0], predicted[:, :, :0], rows_G, 2)
    with pytest.raises(ShapeMismatch, match=r"target_GCYX.*\(1, 4, 3, 3\).*\(2, 4, 3, 3\)"):
        semantic_binding_loss(predicted, predicted[:1], rows_G, 2)
    with pytest.raises(ShapeMismatch, match=r"rows_G.*\(1,\).*\(2,\)"):
        semantic_binding_loss(predicted, predicted, rows_G[:1], 2)


def test_setting_errors() -> None:
    predicted, rows_G = torch.zeros(2, 4, 3, 3), torch.tensor([0, 1])
    with pytest.raises(BadSetting, match="float32"):
        semantic_binding_loss(predicted, predicted, rows_G.float(), 2)
    with pytest.raises(BadSetting, match=r"\[1\] of 1"):
        semantic_binding_loss(predicted, predicted, rows_G, 1)
    with pytest.raises(BadSetting, match=r"\[-1\] of 2"):
        semantic_binding_loss(predicted, predicted, rows_G - 1, 2)
    with pytest.raises(BadSetting, match="rows.*-1"):
        semantic_binding_loss(predicted, predicted, rows_G, -1)
    with pytest.raises(BadSetting, match="'max'"):
        semantic_binding_loss(predicted, predicted, rows_G, 2, scale="max")  # type: ignore[arg-type]


def test_never_reads_a_value_of_the_device() -> None:
    """Tensors without values: anything that waits for a value, like item() or a branch on one, raises."""
    predicted, rows_G = torch.rand(2, 4, 3, 3, device="meta"), torch.tensor([0, 2])
    assert semantic_binding_loss(predicted, predicted, rows_G, 3).shape == (3,)
    assert semantic_binding_loss(predicted, predicted, rows_G.to("meta"), 3).shape == (3,)

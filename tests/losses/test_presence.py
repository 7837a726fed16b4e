"""The presence loss against a loop over its equation, and the facts that its users rely on."""

from __future__ import annotations

import pytest
import torch

from t2ictl.errors import ShapeMismatch
from t2ictl.losses.presence import presence_loss


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_loss(maps: list[list[list[float]]]) -> float:
    """Attend-and-Excite: the largest of 1 - max(A_s) over the subjects s."""
    worst = 0.0
    for number, map_YX in enumerate(maps):
        strongest = map_YX[0][0]
        for row in map_YX:
            for cell in row:
                strongest = cell if cell > strongest else strongest
        worst = 1.0 - strongest if number == 0 else max(worst, 1.0 - strongest)
    return worst


@pytest.mark.parametrize("concepts", [0, 1, 2, 5])
def test_equals_the_slow_reference(concepts: int) -> None:
    maps_BNYX = random_maps(3, concepts, 4, 6)
    expected = [slow_loss(row) for row in maps_BNYX.tolist()]
    torch.testing.assert_close(presence_loss(maps_BNYX), torch.tensor(expected, dtype=torch.float64))


def test_value_by_hand() -> None:
    maps_BNYX = torch.tensor([[[[0.0, 0.5], [0.25, 0.0]], [[0.125, 0.0], [0.0, 0.0]]]])
    assert presence_loss(maps_BNYX).tolist() == [0.875]


def test_bounds() -> None:
    loss_B = presence_loss(random_maps(64, 3, 4, 4))
    assert (loss_B >= 0).all() and (loss_B <= 1).all()
    assert presence_loss(torch.zeros(1, 2, 3, 3)).item() == 1.0
    assert presence_loss(torch.ones(1, 2, 3, 3)).item() == 0.0


def test_the_order_of_the_concepts_does_not_matter() -> None:
    maps_BNYX = random_maps(2, 4, 3, 3)
    assert torch.equal(presence_loss(maps_BNYX), presence_loss(maps_BNYX[:, [3, 1, 0, 2]]))


def test_ragged_rows_equal_single_rows() -> None:
    maps_BNYX = random_maps(4, 4, 3, 5)
    maps_BNYX[:, 3] *= 0.1
    counts = (0, 1, 2, 4)
    mask_BN = torch.arange(4) < torch.tensor(counts)[:, None]
    loss_B = presence_loss(maps_BNYX, mask_BN)
    for row, count in enumerate(counts):
        assert torch.equal(loss_B[row : row + 1], presence_loss(maps_BNYX[row : row + 1, :count]))


@pytest.mark.parametrize("padding", [0.0, 1.0, float("nan"), float("inf")])
def test_padding_is_ignored_and_gets_no_gradient(padding: float) -> None:
    maps_BNYX = random_maps(2, 3, 4, 4)
    maps_BNYX[:, 1] = padding
    maps_BNYX.requires_grad_()
    mask_BN = torch.tensor([[True, False, True], [False, False, False]])
    loss_B = presence_loss(maps_BNYX, mask_BN)
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert loss_B[1].item() == 0.0
    assert torch.equal(loss_B[:1], presence_loss(maps_BNYX[:1, [0, 2]]))
    assert gradient.isfinite().all() and not gradient[:, 1].any() and not gradient[1].any() and gradient[0].any()


def test_the_gradient_is_at_the_peak_of_the_most_neglected_concept() -> None:
    maps_BNYX = torch.tensor([[[[0.1, 0.9]], [[0.3, 0.2]]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(presence_loss(maps_BNYX).sum(), maps_BNYX)
    assert gradient.tolist() == [[[[0.0, 0.0]], [[-1.0, 0.0]]]]


def test_ties_share_the_gradient() -> None:
    maps_BNYX = torch.full((1, 2, 1, 2), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(presence_loss(maps_BNYX).sum(), maps_BNYX)
    assert gradient.flatten().tolist() == [-0.25] * 4


def test_gradcheck() -> None:
    maps_BNYX = random_maps(2, 3, 3, 2).requires_grad_()
    mask_BN = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda maps: presence_loss(maps, mask_BN), (maps_BNYX,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype: torch.dtype) -> None:
    half = random_maps(2, 3, 16, 16, dtype=dtype).requires_grad_()
    loss_B = presence_loss(half)
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, presence_loss(half.detach().float()))
    (gradient,) = torch.autograd.grad(loss_B.sum(), half)
    assert gradient.dtype == dtype and gradient.any()


def test_errors() -> None:
    with pytest.raises(ShapeMismatch, match=r"maps_BNYX.*\(3, 4\)"):
        presence_loss(torch.zeros(3, 4))
    with pytest.raises(ShapeMismatch, match=r"mask_BN.*\(2, 1\).*\(1, 2\)"):
        presence_loss(torch.zeros(1, 2, 4, 4), torch.ones(2, 1, dtype=torch.bool))


def test_never_reads_a_value_on_the_host() -> None:
    """Tensors without values: anything that waits for a value, like item() or a branch on one, raises."""
    maps_BNYX = torch.rand(2, 3, 4, 4, device="meta")
    mask_BN = torch.ones(2, 3, dtype=torch.bool, device="meta")
    assert presence_loss(maps_BNYX, mask_BN).shape == (2,)

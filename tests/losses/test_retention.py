"""The retention loss against a loop over its equation, and the facts that its users rely on."""

from __future__ import annotations

import pytest
import torch

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.losses.retention import retention_loss


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_masks(*shape: int, seed: int = 1) -> torch.Tensor:
    masks = random_maps(*shape, seed=seed) > 0.6
    masks[..., 0, 0] = True
    return masks


def slow_loss(maps: list[list[list[float]]], masks: list[list[list[bool]]]) -> float:
    """A-STAR, equation 3: the sum over the concepts, with nothing for a concept that has no mask."""
    loss = 0.0
    for map_YX, mask_YX in zip(maps, masks, strict=True):
        if not any(cell for row in mask_YX for cell in row):
            continue
        shared = total = 0.0
        for row_a, row_b in zip(map_YX, mask_YX, strict=True):
            for a, b in zip(row_a, row_b, strict=True):
                shared += min(a, float(b))
                total += a + float(b)
        loss += 1.0 - shared / total
    return loss


@pytest.mark.parametrize("concepts", [0, 1, 2, 5])
def test_equals_the_slow_reference(concepts: int) -> None:
    maps_BNYX, masks_BNYX = random_maps(3, concepts, 4, 6), random_masks(3, concepts, 4, 6)
    masks_BNYX[1:2, :1] = False
    expected = [slow_loss(*row) for row in zip(maps_BNYX.tolist(), masks_BNYX.tolist(), strict=True)]
    torch.testing.assert_close(retention_loss(maps_BNYX, masks_BNYX), torch.tensor(expected, dtype=torch.float64))


def test_value_by_hand() -> None:
    maps_BNYX = torch.tensor([[[[0.5, 0.25], [0.0, 0.25]]]])
    masks_BNYX = torch.tensor([[[[1, 0], [0, 1]]]])
    # shared: 0.5 + 0.25; total: 1 + 2
    assert retention_loss(maps_BNYX, masks_BNYX).tolist() == pytest.approx([0.75])


def test_bounds_of_a_concept() -> None:
    loss_B = retention_loss(random_maps(64, 1, 4, 4), random_masks(64, 1, 4, 4))
    assert (loss_B > 0.5).all() and (loss_B < 1).all()
    masks_BNYX = random_masks(1, 1, 4, 4)
    assert retention_loss(masks_BNYX.float(), masks_BNYX).item() == 0.5
    assert retention_loss((~masks_BNYX).float(), masks_BNYX).item() == 1.0


def test_depends_on_the_scale_of_the_maps() -> None:
    """With raw probabilities it is close to 1 everywhere and asks for more attention; the mask has no such scale."""
    masks_BNYX = torch.zeros(1, 1, 8, 8)
    masks_BNYX[..., 2:5, 2:5] = 1.0
    losses = [retention_loss(masks_BNYX * scale, masks_BNYX).item() for scale in (0.01, 0.1, 1.0)]
    assert losses == pytest.approx([1 - 0.01 / 1.01, 1 - 0.1 / 1.1, 0.5])


def test_the_order_of_the_concepts_does_not_matter() -> None:
    maps_BNYX, masks_BNYX = random_maps(2, 3, 4, 4), random_masks(2, 3, 4, 4)
    order = [2, 0, 1]
    torch.testing.assert_close(
        retention_loss(maps_BNYX, masks_BNYX), retention_loss(maps_BNYX[:, order], masks_BNYX[:, order])
    )


def test_a_concept_without_a_mask_adds_nothing() -> None:
    maps_BNYX = random_maps(2, 2, 4, 4).requires_grad_()
    masks_BNYX = random_masks(2, 2, 4, 4)
    masks_BNYX[0] = False
    masks_BNYX[1, 0] = False
    loss_B = retention_loss(maps_BNYX, masks_BNYX)
    assert loss_B[0].item() == 0.0
    torch.testing.assert_close(loss_B[1:], retention_loss(maps_BNYX[1:, 1:], masks_BNYX[1:, 1:]))
    torch.testing.assert_close(loss_B, retention_loss(maps_BNYX, masks_BNYX, reduction="mean"))
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert not gradient[0].any() and not gradient[1, 0].any() and gradient[1, 1].any()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ragged_rows_equal_single_rows(reduction: str) -> None:
    maps_BNYX, masks_BNYX = random_maps(4, 4, 3, 5), random_masks(4, 4, 3, 5)
    counts = (0, 1, 2, 4)
    mask_BN = torch.arange(4) < torch.tensor(counts)[:, None]
    loss_B = retention_loss(maps_BNYX, masks_BNYX, mask_BN, reduction)  # type: ignore[arg-type]
    for row, count in enumerate(counts):
        single = retention_loss(
            maps_BNYX[row : row + 1, :count],
            masks_BNYX[row : row + 1, :count],
            reduction=reduction,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(loss_B[row : row + 1], single, rtol=1e-14, atol=0)


@pytest.mark.parametrize("padding", [0.0, 1.0, float("nan")])
def test_padding_adds_nothing_and_gets_no_gradient(padding: float) -> None:
    maps_BNYX, masks_BNYX = random_maps(2, 3, 4, 4), random_masks(2, 3, 4, 4).double()
    maps_BNYX[:, 1] = padding
    masks_BNYX[0, 1] = padding
    maps_BNYX.requires_grad_()
    mask_BN = torch.tensor([[True, False, True]] * 2)
    loss_B = retention_loss(maps_BNYX, masks_BNYX, mask_BN)
    torch.testing.assert_close(loss_B, retention_loss(maps_BNYX[:, [0, 2]], masks_BNYX[:, [0, 2]]))
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert not gradient[:, 1].any() and gradient.isfinite().all() and gradient[:, 0].any()


def test_masks_are_targets() -> None:
    maps_BNYX = random_maps(1, 2, 3, 3).requires_grad_()
    masks_BNYX = random_maps(1, 2, 3, 3, seed=3).requires_grad_()
    retention_loss(maps_BNYX, masks_BNYX).sum().backward()
    assert maps_BNYX.grad is not None and masks_BNYX.grad is None


def test_the_gradient_raises_attention_inside_and_lowers_it_outside() -> None:
    maps_BNYX = random_maps(1, 1, 5, 5).mul(0.9).add(0.01).requires_grad_()
    masks_BNYX = random_masks(1, 1, 5, 5)
    (gradient,) = torch.autograd.grad(retention_loss(maps_BNYX, masks_BNYX).sum(), maps_BNYX)
    assert (gradient[masks_BNYX] < 0).all() and (gradient[~masks_BNYX] > 0).all()


def test_gradcheck() -> None:
    maps_BNYX = random_maps(2, 3, 3, 2).mul(0.8).add(0.1).requires_grad_()
    masks_BNYX = random_masks(2, 3, 3, 2)
    mask_BN = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda maps: retention_loss(maps, masks_BNYX, mask_BN), (maps_BNYX,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype: torch.dtype) -> None:
    half = random_maps(2, 3, 16, 16, dtype=dtype).requires_grad_()
    masks_BNYX = random_masks(2, 3, 16, 16)
    loss_B = retention_loss(half, masks_BNYX.to(dtype))
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, retention_loss(half.detach().float(), masks_BNYX))
    (gradient,) = torch.autograd.grad(loss_B.sum(), half)
    assert gradient.dtype == dtype and gradient.any()


def test_errors() -> None:
    maps_BNYX = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ShapeMismatch, match=r"maps_BNYX.*\(4, 4\)"):
        retention_loss(torch.zeros(4, 4), torch.zeros(4, 4))
    with pytest.raises(ShapeMismatch, match=r"masks_BNYX.*\(1, 2, 8, 8\).*\(1, 2, 4, 4\)"):
        retention_loss(maps_BNYX, torch.zeros(1, 2, 8, 8))
    with pytest.raises(ShapeMismatch, match=r"mask_BN.*\(1, 3\).*\(1, 2\)"):
        retention_loss(maps_BNYX, maps_BNYX, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(BadSetting, match="'none'"):
        retention_loss(maps_BNYX, maps_BNYX, reduction="none")  # type: ignore[arg-type]


def test_never_reads_a_value_on_the_host() -> None:
    """Tensors without values: anything that waits for a value, like item() or a branch on one, raises."""
    maps_BNYX = torch.rand(2, 3, 4, 4, device="meta")
    mask_BN = torch.ones(2, 3, dtype=torch.bool, device="meta")
    assert retention_loss(maps_BNYX, mask_BN[:, :, None, None].expand(-1, -1, 4, 4), mask_BN).shape == (2,)

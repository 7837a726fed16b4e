"""The entropy loss against a loop over its equation, and the facts that its users rely on."""

from __future__ import annotations

import math

import pytest
import torch

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.losses.entropy import entropy_loss, mean_entropy_share

BOTH = pytest.mark.parametrize("stretch", [False, True])


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_loss(maps: list[list[list[float]]], stretch: bool) -> float:
    """Token merging: the sum over concepts k and places i of -p log p, p being the map over its sum."""
    loss = 0.0
    for map_YX in maps:
        cells = [cell for row in map_YX for cell in row]
        if stretch:
            low, high = min(cells), max(cells)
            cells = [(cell - low) / (high - low) for cell in cells]
        total = sum(cells)
        for cell in cells:
            p = cell / total
            if p > 0.0:
                loss -= p * math.log(p + 1e-5 if stretch else p)
    return loss


@BOTH
@pytest.mark.parametrize("concepts", [0, 1, 2, 5])
def test_equals_the_slow_reference(concepts: int, stretch: bool) -> None:
    maps_BNYX = random_maps(3, concepts, 4, 6)
    maps_BNYX[..., 1, 2] = 0.0
    expected = torch.tensor([slow_loss(row, stretch) for row in maps_BNYX.tolist()], dtype=torch.float64)
    torch.testing.assert_close(entropy_loss(maps_BNYX, stretch=stretch), expected)
    share = expected / (max(concepts, 1) * math.log(24))
    torch.testing.assert_close(mean_entropy_share(maps_BNYX, stretch=stretch), share)


def test_values_by_hand() -> None:
    uniform, half = torch.full((1, 1, 4, 8), 0.3), torch.zeros(1, 1, 4, 8)
    half[..., :2, :] = 0.01
    assert entropy_loss(uniform).item() == pytest.approx(math.log(32), rel=1e-6)
    assert entropy_loss(half).item() == pytest.approx(math.log(16), rel=1e-6)
    assert entropy_loss(torch.cat([uniform, half], 1)).item() == pytest.approx(math.log(512), rel=1e-6)
    assert mean_entropy_share(torch.cat([uniform, half], 1)).item() == pytest.approx(0.9, rel=1e-6)
    quarters = torch.tensor([[[[3.0, 1.0]]]])
    assert entropy_loss(quarters).item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-6)


def test_one_cell_has_no_entropy() -> None:
    delta = torch.zeros(1, 1, 4, 4)
    delta[..., 2, 1] = 0.7
    assert entropy_loss(delta).item() == 0.0
    assert entropy_loss(delta, stretch=True).item() == pytest.approx(-1e-5, rel=0.1)
    single = torch.ones(2, 3, 1, 1, requires_grad=True)
    assert entropy_loss(single).tolist() == [0.0, 0.0] and mean_entropy_share(single).tolist() == [0.0, 0.0]


def test_the_official_thresholds_as_shares() -> None:
    """The code of the paper stops at 24, 23, 22, 21, 20.5, 20, 19.5 of twice the entropy of two maps of 32 x 32."""
    largest = 2 * entropy_loss(torch.ones(1, 2, 32, 32)).item()
    assert largest == pytest.approx(27.73, abs=0.005)
    shares = [round(threshold / largest, 3) for threshold in (24, 23, 22, 21, 20.5, 20, 19.5)]
    documented = mean_entropy_share.__doc__ or ""
    assert shares == [0.866, 0.83, 0.793, 0.757, 0.739, 0.721, 0.703]
    assert all(str(share) in documented for share in shares)


@BOTH
@pytest.mark.parametrize("sharpness", [1, 4, 32])
def test_bounds(stretch: bool, sharpness: int) -> None:
    maps_BNYX = random_maps(64, 3, 4, 5, dtype=torch.float32) ** sharpness
    loss_B, share_B = entropy_loss(maps_BNYX, stretch=stretch), mean_entropy_share(maps_BNYX, stretch=stretch)
    assert (loss_B >= -3e-5).all() and (loss_B <= 3 * math.log(20)).all()
    assert (share_B >= -1e-5).all() and (share_B <= 1.0).all()


@BOTH
def test_order_of_concepts_and_places_and_scale_do_not_matter(stretch: bool) -> None:
    maps_BNYX = random_maps(2, 4, 5, 3)
    loss_B = entropy_loss(maps_BNYX, stretch=stretch)
    for same in (maps_BNYX[:, [2, 0, 3, 1]], maps_BNYX.mT, maps_BNYX.flip(2), maps_BNYX * 1e-6, maps_BNYX * 1e6):
        torch.testing.assert_close(entropy_loss(same, stretch=stretch), loss_B)


def test_only_a_stretched_map_forgets_its_floor() -> None:
    maps_BNYX = random_maps(2, 2, 4, 4)
    raised = maps_BNYX + 1.0
    torch.testing.assert_close(entropy_loss(raised, stretch=True), entropy_loss(maps_BNYX, stretch=True))
    assert (entropy_loss(raised) > entropy_loss(maps_BNYX) + 0.1).all()


@BOTH
def test_ragged_rows_equal_single_rows(stretch: bool) -> None:
    maps_BNYX = random_maps(4, 4, 3, 5)
    counts = (0, 1, 2, 4)
    mask_BN = torch.arange(4) < torch.tensor(counts)[:, None]
    for function in (entropy_loss, mean_entropy_share):
        value_B = function(maps_BNYX, mask_BN, stretch)
        assert value_B[0].item() == 0.0
        for row, count in enumerate(counts):
            single = function(maps_BNYX[row : row + 1, :count], stretch=stretch)
            torch.testing.assert_close(value_B[row : row + 1], single, rtol=1e-14, atol=0)


@BOTH
@pytest.mark.parametrize("padding", [0.0, 1.0, -1.0, float("nan"), float("inf")])
def test_padding_adds_nothing_and_gets_no_gradient(padding: float, stretch: bool) -> None:
    maps_BNYX = random_maps(2, 3, 4, 4)
    maps_BNYX[:, 1] = padding
    maps_BNYX.requires_grad_()
    mask_BN = torch.tensor([[True, False, True], [False, False, False]])
    loss_B = entropy_loss(maps_BNYX, mask_BN, stretch)
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert loss_B[1].item() == 0.0
    torch.testing.assert_close(loss_B[:1], entropy_loss(maps_BNYX[:1, [0, 2]], stretch=stretch))
    assert gradient.isfinite().all() and not gradient[:, 1].any() and not gradient[1].any() and gradient[0].any()


@BOTH
@pytest.mark.parametrize("level", [0.0, 1e-38, 0.1])
def test_a_map_without_a_place_counts_as_uniform(level: float, stretch: bool) -> None:
    maps_BNYX = torch.full((1, 1, 4, 4), level, requires_grad=True)
    loss_B = entropy_loss(maps_BNYX, stretch=stretch)
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    expected = math.log(16) if not stretch else -math.log(1 / 16 + 1e-5)
    assert loss_B.item() == pytest.approx(expected, rel=1e-6)
    assert gradient.abs().max().item() < 1e-5


def test_rounding_of_a_constant_map_is_not_stretched() -> None:
    maps_BNYX = (0.3 + 1e-7 * random_maps(1, 1, 8, 8, dtype=torch.float32)).requires_grad_()
    assert maps_BNYX.unique().numel() > 1
    loss_B = entropy_loss(maps_BNYX, stretch=True)
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert loss_B.item() == pytest.approx(-math.log(1 / 64 + 1e-5), rel=1e-6) and not gradient.any()


@BOTH
@pytest.mark.parametrize("scale", [1e-29, 1e-6, 1.0, 1e6])
def test_gradients_are_finite_with_cells_of_zero(scale: float, stretch: bool) -> None:
    maps_BNYX = random_maps(2, 3, 4, 4, dtype=torch.float32) * scale
    maps_BNYX[..., 1:, :] = 0.0
    maps_BNYX[:, 1, 0, 1:] = 0.0  # a single cell is left
    maps_BNYX.requires_grad_()
    loss_B = entropy_loss(maps_BNYX, stretch=stretch)
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert loss_B.isfinite().all() and gradient.isfinite().all() and gradient.any()
    if not stretch:  # there, cells that are the lowest together lower the floor together
        assert (gradient[:, 1, 1:] > 0).all()  # mass at an empty place spreads the map


def test_negative_cells_count_as_zero() -> None:
    maps_BNYX = torch.tensor([[[[0.5, -0.1], [0.5, 0.25]]]], requires_grad=True)
    loss_B = entropy_loss(maps_BNYX)
    (gradient,) = torch.autograd.grad(loss_B.sum(), maps_BNYX)
    assert torch.equal(loss_B, entropy_loss(maps_BNYX.detach().clamp(min=0)))
    assert gradient[0, 0, 0, 1].item() == 0.0 and gradient.isfinite().all()


def test_a_map_that_is_not_finite_shows() -> None:
    maps_BNYX = random_maps(2, 2, 3, 3)
    maps_BNYX[0, 1, 0, 0] = float("nan")
    assert entropy_loss(maps_BNYX).isnan().tolist() == [True, False]


@BOTH
def test_rows_are_independent(stretch: bool) -> None:
    maps_BNYX = random_maps(3, 3, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(entropy_loss(maps_BNYX, stretch=stretch)[1], maps_BNYX)
    assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


@BOTH
def test_gradient_descent_gathers(stretch: bool) -> None:
    logits_BNYX = random_maps(1, 2, 4, 4)
    before = mean_entropy_share(logits_BNYX.flatten(2).softmax(-1).unflatten(2, (4, 4)), stretch=stretch).item()
    for _ in range(40):
        logits_BNYX.requires_grad_()
        loss_B = entropy_loss(logits_BNYX.flatten(2).softmax(-1).unflatten(2, (4, 4)), stretch=stretch)
        (gradient,) = torch.autograd.grad(loss_B.sum(), logits_BNYX)
        logits_BNYX = logits_BNYX.detach() - gradient
    after = mean_entropy_share(logits_BNYX.flatten(2).softmax(-1).unflatten(2, (4, 4)), stretch=stretch).item()
    assert after < 0.7 * before


@BOTH
def test_gradcheck(stretch: bool) -> None:
    maps_BNYX = (random_maps(2, 3, 3, 2) + 0.1).requires_grad_()
    mask_BN = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda maps: entropy_loss(maps, mask_BN, stretch), (maps_BNYX,))
    assert torch.autograd.gradcheck(lambda maps: mean_entropy_share(maps, mask_BN, stretch), (maps_BNYX,))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype: torch.dtype, stretch: bool) -> None:
    half = random_maps(2, 3, 16, 16, dtype=dtype).requires_grad_()
    loss_B = entropy_loss(half, stretch=stretch)
    assert loss_B.dtype == torch.float32 and mean_entropy_share(half, stretch=stretch).dtype == torch.float32
    torch.testing.assert_close(loss_B, entropy_loss(half.detach().float(), stretch=stretch))
    (gradient,) = torch.autograd.grad(loss_B.sum(), half)
    assert gradient.dtype == dtype and gradient.any() and gradient.isfinite().all()
    assert entropy_loss(half.detach().double(), stretch=stretch).dtype == torch.float64


def test_errors() -> None:
    for function in (entropy_loss, mean_entropy_share):
        with pytest.raises(ShapeMismatch, match=r"maps_BNYX.*\(3, 4\)"):
            function(torch.zeros(3, 4))
        with pytest.raises(ShapeMismatch, match=r"maps_BNYX.*\(1, 2, 0, 4\)"):
            function(torch.zeros(1, 2, 0, 4))
        with pytest.raises(ShapeMismatch, match=r"mask_BN.*\(2, 1\).*\(1, 2\)"):
            function(torch.zeros(1, 2, 4, 4), torch.ones(2, 1, dtype=torch.bool))
        with pytest.raises(BadSetting, match="float32"):
            function(torch.zeros(1, 2, 4, 4), torch.ones(1, 2))


@BOTH
def test_never_reads_a_value_on_the_host(stretch: bool) -> None:
    """Tensors without values: anything that waits for a value, like item() or a branch on one, raises."""
    maps_BNYX = torch.rand(2, 3, 4, 4, device="meta")
    mask_BN = torch.ones(2, 3, dtype=torch.bool, device="meta")
    assert entropy_loss(maps_BNYX, mask_BN, stretch).shape == (2,)
    assert mean_entropy_share(maps_BNYX, mask_BN, stretch).shape == (2,)

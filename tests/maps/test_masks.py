"""Masks from maps and boxes; Otsu against an exhaustive search."""

from __future__ import annotations

import pytest
import torch

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.maps.masks import BinarizeMethod
from t2ictl.maps.ops import binarize, box_mask, otsu_threshold, resize_mask


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bimodal(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A dark map with a bright rectangle, and the rectangle."""
    region = torch.zeros(*shape, dtype=torch.bool)
    region[..., 2:5, 1:4] = True
    return torch.where(region, 0.8, 0.1) + 0.1 * random_maps(*shape, seed=seed), region


def between_variance(values: list[float], threshold: float) -> float:
    """Otsu, equation 18, from its definition."""
    low, high = [v for v in values if v <= threshold], [v for v in values if v > threshold]
    if not low or not high:
        return 0.0
    difference = sum(high) / len(high) - sum(low) / len(low)
    return len(low) / len(values) * (len(high) / len(values)) * difference * difference


def slow_otsu(values: list[float]) -> float:
    return max(sorted(set(values)), key=lambda threshold: between_variance(values, threshold))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_otsu_equals_the_exhaustive_search(dtype: torch.dtype, scale: float) -> None:
    maps = torch.stack([random_maps(6, 7), random_maps(6, 7, seed=1).pow(4), bimodal(6, 7)[0]]).mul(scale).to(dtype)
    expected = torch.tensor([slow_otsu(one.flatten().tolist()) for one in maps], dtype=dtype)
    assert torch.equal(otsu_threshold(maps), expected)


def test_otsu_is_exact_where_neighboring_splits_differ_by_little() -> None:
    maps = random_maps(3, 48, 48, dtype=torch.float32)
    for one, threshold in zip(maps, otsu_threshold(maps), strict=True):
        values = one.flatten().double()
        candidates = values.sort().values[900:1400]  # the middle of even values, where the best split is
        variances = [
            (values <= t).sum() * (values > t).sum() * (values[values > t].mean() - values[values <= t].mean()) ** 2
            for t in candidates
        ]
        assert threshold.item() == candidates[torch.stack(variances).argmax()].item()


def test_otsu_with_many_equal_values() -> None:
    for seed in range(20):
        maps = random_maps(5, 5, seed=seed).mul(4).round().div(4)
        values = maps.flatten().tolist()
        found = between_variance(values, otsu_threshold(maps).item())
        assert found == pytest.approx(between_variance(values, slow_otsu(values)), rel=1e-9)


def test_otsu_takes_the_lowest_of_equally_good_splits() -> None:
    assert otsu_threshold(torch.tensor([[0.0, 0.5, 1.0]])).item() == 0.0
    for scale in (1.0, 2.0**-10, 3.0):  # splits of 1:3 and 3:1, equal on paper, apart by rounding
        assert otsu_threshold(torch.tensor([[0.75, 0.75, 1.0, 0.5]]) * scale).item() == 0.5 * scale


def test_otsu_of_flat_maps_and_of_one_cell() -> None:
    assert otsu_threshold(torch.full((2, 3, 3), 0.25)).tolist() == [0.25, 0.25]
    assert otsu_threshold(torch.zeros(2, 2)).item() == 0.0
    assert otsu_threshold(torch.full((1, 1), 3.0)).item() == 3.0


def test_otsu_finds_the_bright_region() -> None:
    maps, region = bimodal(3, 8, 8)
    assert torch.equal(binarize(maps), region)
    assert torch.equal(binarize(maps, "half_max"), region)


def test_a_batch_is_bitwise_its_single_maps() -> None:
    maps = random_maps(4, 3, 16, 16, dtype=torch.float32)
    for method in ("otsu", "half_max", "top20"):
        together = binarize(maps, method)
        assert together.dtype == torch.bool and together.shape == maps.shape
        assert torch.equal(together, binarize(maps, method))
        assert torch.equal(together[2, 1], binarize(maps[2, 1], method))
    assert torch.equal(otsu_threshold(maps)[2, 1], otsu_threshold(maps[2, 1]))


def test_half_max_by_hand() -> None:
    assert binarize(torch.tensor([[0.1, 0.4, 0.41, 0.8]]), "half_max").tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("cells", [1, 2, 5, 10, 256])
def test_top20_keeps_a_fifth_of_the_cells_and_the_largest(cells: int) -> None:
    maps = random_maps(3, 1, cells)
    mask = binarize(maps, "top20")
    assert mask.sum((-2, -1)).tolist() == [max(1, round(0.2 * cells))] * 3
    for one, kept in zip(maps, mask, strict=True):
        assert kept.all() or one[kept].min() > one[~kept].max()


def test_top20_breaks_ties_in_reading_order() -> None:
    maps = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    assert binarize(maps, "top20").nonzero().tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize("method", ["otsu", "half_max", "top20"])
@pytest.mark.parametrize("value", [0.0, 1e-8, 0.3])
def test_flat_maps_fall_back_to_a_fifth_of_the_cells(method: BinarizeMethod, value: float) -> None:
    maps = torch.full((2, 5, 5), value)
    assert binarize(maps, method).sum((-2, -1)).tolist() == [5, 5]
    rounding = maps * (1 + 1e-6 * random_maps(2, 5, 5, dtype=torch.float32))
    assert binarize(rounding, method).sum((-2, -1)).tolist() == [5, 5]


def test_every_mask_has_a_cell_and_no_gradient() -> None:
    maps = random_maps(2, 3, 4, 4).requires_grad_()
    for method in ("otsu", "half_max", "top20"):
        mask = binarize(maps, method)
        assert mask.any(-1).any(-1).all() and not mask.requires_grad
    assert not otsu_threshold(maps).requires_grad


def test_binarize_never_reads_a_value_on_the_host() -> None:
    """A tensor without values: anything that waits for a value raises."""
    maps = torch.rand(2, 3, 8, 8, device="meta")
    for method in ("otsu", "half_max", "top20"):
        assert binarize(maps, method).shape == maps.shape


def test_binarize_in_half_precision() -> None:
    half = bimodal(8, 8)[0].to(torch.bfloat16)
    assert torch.equal(binarize(half), binarize(half.double()))


def test_errors_of_binarize() -> None:
    with pytest.raises(BadSetting, match="'median'"):
        binarize(torch.zeros(2, 2), "median")  # type: ignore[arg-type]
    for function in (binarize, otsu_threshold):
        with pytest.raises(ShapeMismatch, match=r"\(4,\)"):
            function(torch.zeros(4))
        with pytest.raises(ShapeMismatch, match=r"\(2, 0, 4\)"):
            function(torch.zeros(2, 0, 4))


def test_box_mask_marks_the_cells_whose_center_is_inside() -> None:
    height, width = 5, 7
    for box in ((0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.5, 0.9), (0.3, 0.0, 0.8, 0.4), (0.5, 0.5, 1.0, 1.0)):
        expected = [
            [box[0] <= (x + 0.5) / width < box[2] and box[1] <= (y + 0.5) / height < box[3] for x in range(width)]
            for y in range(height)
        ]
        assert box_mask(box, height, width).tolist() == expected


def test_halves_of_a_box_share_no_cell_and_miss_none() -> None:
    for width in range(1, 9):
        left = box_mask((0.0, 0.0, 0.5, 1.0), 4, width) if width > 1 else torch.zeros(4, 1, dtype=torch.bool)
        right = box_mask((0.5, 0.0, 1.0, 1.0), 4, width)
        assert torch.equal(left ^ right, torch.ones(4, width, dtype=torch.bool))


def test_a_thin_box_is_not_lost() -> None:
    assert box_mask((0.6, 0.6, 0.61, 0.61), 4, 4).nonzero().tolist() == [[2, 2]]
    assert box_mask((0.99, 0.0, 1.0, 0.01), 4, 4).nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize(
    "box",
    [(0.5, 0.0, 0.5, 1.0), (0.6, 0.0, 0.5, 1.0), (0.0, 0.0, 1.1, 1.0), (-0.1, 0.0, 1.0, 1.0), (0, 0, float("nan"), 1)],
)
def test_bad_boxes(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(BadSetting, match="The box is"):
        box_mask(box, 4, 4)
    with pytest.raises(BadSetting, match="0 rows"):
        box_mask((0, 0, 1, 1), 0, 4)


def test_resize_mask_keeps_the_area() -> None:
    mask = box_mask((0.0, 0.25, 0.5, 1.0), 16, 16)
    for size in ((4, 4), (8, 2), (16, 16), (32, 32), (3, 5)):
        resized = resize_mask(mask, *size)
        assert resized.shape == size and resized.dtype == torch.float32
        assert resized.min() >= 0 and resized.max() <= 1
    for size in ((4, 4), (8, 2), (32, 32)):
        assert resize_mask(mask, *size).mean().item() == pytest.approx(mask.float().mean().item())
    assert torch.equal(resize_mask(mask, 16, 16), mask.float())
    many = random_maps(2, 3, 8, 8) > 0.5
    assert torch.equal(resize_mask(many, 3, 3)[1, 2], resize_mask(many[1, 2], 3, 3))
    assert resize_mask(many[:0], 2, 2).shape == (0, 3, 2, 2)


def test_errors_of_resize_mask() -> None:
    with pytest.raises(ShapeMismatch, match=r"mask.*\(4,\)"):
        resize_mask(torch.zeros(4), 2, 2)
    with pytest.raises(BadSetting, match="0 columns"):
        resize_mask(torch.zeros(4, 4), 2, 0)

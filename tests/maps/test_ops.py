"""Map arithmetic against loops over its formulas."""

from __future__ import annotations

import math

import pytest
import torch

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.losses import overlap_loss, presence_loss, retention_loss
from t2ictl.maps.ops import (
    binarize,
    center_of_mass,
    concept_maps,
    gaussian_kernel,
    pair_overlap,
    smooth,
    token_softmax,
)


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- token_softmax ---------------------------------------------------------------------------------------------------


def slow_softmax(cell: list[float], first: int, last: int, temperature: float) -> list[float]:
    kept = {t: math.exp(temperature * cell[t]) for t in range(first, last)}
    return [kept[t] / sum(kept.values()) if t in kept else 0.0 for t in range(len(cell))]


def test_token_softmax_equals_the_slow_reference() -> None:
    maps_BYXT = random_maps(3, 2, 4, 7)
    result = token_softmax(maps_BYXT, 1, torch.tensor([3, 6, 7]), temperature=10.0)
    for row, last in enumerate((3, 6, 7)):
        expected = [[slow_softmax(cell, 1, last, 10.0) for cell in line] for line in maps_BYXT[row].tolist()]
        torch.testing.assert_close(result[row], torch.tensor(expected, dtype=torch.float64))


def test_token_softmax_of_77_tokens_is_the_softmax_of_the_75_between() -> None:
    maps_BYXT = random_maps(2, 4, 4, 77, dtype=torch.float32).softmax(-1)
    result = token_softmax(maps_BYXT, 1, 76)
    torch.testing.assert_close(result[..., 1:76], (maps_BYXT[..., 1:76] * 100).softmax(-1), rtol=1e-6, atol=0)
    assert not result[..., 0].any() and not result[..., 76].any()
    assert torch.equal(result, token_softmax(maps_BYXT, 1, torch.tensor([76, 76])))


def test_token_softmax_changes_nothing_and_gives_no_gradient_outside() -> None:
    maps_BYXT = random_maps(2, 2, 2, 6)
    before = maps_BYXT.clone()
    maps_BYXT.requires_grad_()
    result = token_softmax(maps_BYXT, 1, torch.tensor([4, 1]))  # the second row keeps no token
    (gradient,) = torch.autograd.grad(result.square().sum(), maps_BYXT)
    assert torch.equal(maps_BYXT.detach(), before)
    assert not result[1].any() and not gradient[1].any()
    assert gradient[0, ..., 1:4].any() and not gradient[0, ..., 0].any() and not gradient[0, ..., 4:].any()


def test_token_softmax_in_half_precision_is_computed_in_float32() -> None:
    half = random_maps(1, 2, 2, 6, dtype=torch.float16)
    result = token_softmax(half, 1, 5)
    assert result.dtype == torch.float32
    assert torch.equal(result, token_softmax(half.float(), 1, 5))


def test_token_softmax_gradcheck() -> None:
    maps_BYXT = random_maps(2, 1, 2, 5).requires_grad_()
    last_B = torch.tensor([3, 4])
    assert torch.autograd.gradcheck(lambda maps: token_softmax(maps, 1, last_B, 3.0), (maps_BYXT,))


def test_token_softmax_errors() -> None:
    with pytest.raises(ShapeMismatch, match=r"maps_BYXT.*\(4, 4, 7\)"):
        token_softmax(torch.zeros(4, 4, 7), 1, 6)
    with pytest.raises(ShapeMismatch, match=r"last_B.*\(3,\).*\(2,\)"):
        token_softmax(torch.zeros(2, 4, 4, 7), 1, torch.tensor([1, 2, 3]))
    for first, last in ((1, 1), (-1, 3), (1, 8)):
        with pytest.raises(BadSetting, match=str(last)):
            token_softmax(torch.zeros(2, 4, 4, 7), first, last)


# --- smoothing -------------------------------------------------------------------------------------------------------


def test_kernel_numbers() -> None:
    excite = torch.tensor([0.2119, 0.5761, 0.2119])
    narrow = torch.tensor([0.1065, 0.7870, 0.1065])
    for name, line in (("attend_and_excite", excite), ("gaussian", narrow)):
        kernel = gaussian_kernel(name)  # type: ignore[arg-type]
        torch.testing.assert_close(kernel, torch.outer(line, line), rtol=0, atol=5e-5)
        assert kernel.sum().item() == pytest.approx(1.0)
        assert torch.equal(kernel, kernel.T)
    assert gaussian_kernel("gaussian", dtype=torch.float64).dtype == torch.float64
    with pytest.raises(BadSetting, match="'box'"):
        gaussian_kernel("box")  # type: ignore[arg-type]


def slow_smooth(map_YX: list[list[float]], kernel: list[list[float]]) -> list[list[float]]:
    def inside(position: int, cells: int) -> int:
        if cells == 1:
            return 0
        return -position if position < 0 else 2 * (cells - 1) - position if position >= cells else position

    height, width = len(map_YX), len(map_YX[0])
    return [
        [
            sum(
                kernel[dy + 1][dx + 1] * map_YX[inside(y + dy, height)][inside(x + dx, width)]
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (2, 2), (2, 5), (6, 4)])
def test_smooth_equals_the_slow_reference(size: tuple[int, int]) -> None:
    kernel = random_maps(3, 3, seed=5)  # without symmetry, so a transposed kernel would be seen
    maps = random_maps(2, 3, *size)
    expected = [[slow_smooth(one, kernel.tolist()) for one in row] for row in maps.tolist()]
    torch.testing.assert_close(smooth(maps, kernel), torch.tensor(expected, dtype=torch.float64))


def test_smooth_keeps_even_maps_and_takes_any_leading_dimensions() -> None:
    kernel = gaussian_kernel("attend_and_excite", dtype=torch.float64)
    even = torch.full((5, 7), 0.25, dtype=torch.float64)
    torch.testing.assert_close(smooth(even, kernel), even)
    maps = random_maps(2, 3, 4, 5, 6)
    assert torch.equal(smooth(maps, kernel)[1, 2, 3], smooth(maps[1, 2, 3], kernel))
    assert smooth(maps.half(), kernel).dtype == torch.float32


def test_smooth_gradcheck_and_errors() -> None:
    kernel = gaussian_kernel(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda maps: smooth(maps, kernel), (random_maps(2, 3, 4).requires_grad_(),))
    with pytest.raises(ShapeMismatch, match=r"maps.*\(4,\)"):
        smooth(torch.zeros(4), kernel)
    with pytest.raises(ShapeMismatch, match=r"kernel.*\(5, 5\).*\(3, 3\)"):
        smooth(torch.zeros(4, 4), torch.zeros(5, 5))


# --- concept_maps ----------------------------------------------------------------------------------------------------


def test_concept_maps_are_means_over_ragged_tokens() -> None:
    maps_BYXT = random_maps(2, 3, 4, 9)
    tokens = [[[2], [4, 5, 6], [5]], [[1, 8], [], []]]
    index_BNK = torch.full((2, 3, 3), 99)
    mask_BNK = torch.zeros(2, 3, 3, dtype=torch.bool)
    for row, concepts in enumerate(tokens):
        for concept, positions in enumerate(concepts):
            index_BNK[row, concept, : len(positions)] = torch.tensor(positions)
            mask_BNK[row, concept, : len(positions)] = True
    result = concept_maps(maps_BYXT, index_BNK, mask_BNK)
    assert result.shape == (2, 3, 3, 4)
    for row, concepts in enumerate(tokens):
        for concept, positions in enumerate(concepts):
            mean = sum((maps_BYXT[row, :, :, t] for t in positions), torch.zeros(3, 4)) / max(1, len(positions))
            torch.testing.assert_close(result[row, concept], mean.double())


def test_concept_maps_gradient_reaches_only_the_tokens_named() -> None:
    maps_BYXT = random_maps(1, 2, 2, 5).requires_grad_()
    index_BNK, mask_BNK = torch.tensor([[[1, 3], [3, 0]]]), torch.tensor([[[True, True], [True, False]]])
    (gradient,) = torch.autograd.grad(concept_maps(maps_BYXT, index_BNK, mask_BNK).sum(), maps_BYXT)
    assert gradient[0, 0, 0].tolist() == [0.0, 0.5, 0.0, 1.5, 0.0]


def test_concept_maps_of_unused_tokens_may_be_anything() -> None:
    maps_BYXT = random_maps(1, 2, 2, 4)
    maps_BYXT[..., 0] = float("nan")
    index_BNK, mask_BNK = torch.tensor([[[1, 0]]]), torch.tensor([[[True, False]]])
    assert torch.equal(concept_maps(maps_BYXT, index_BNK, mask_BNK)[0, 0], maps_BYXT[0, ..., 1])


def test_concept_maps_without_concepts_and_errors() -> None:
    maps_BYXT = random_maps(2, 3, 3, 4)
    nothing = torch.zeros(2, 0, 1, dtype=torch.long)
    assert concept_maps(maps_BYXT, nothing, nothing.bool()).shape == (2, 0, 3, 3)
    with pytest.raises(ShapeMismatch, match=r"index_BNK.*\(3, 1, 1\).*\(2, N, K\)"):
        concept_maps(maps_BYXT, torch.zeros(3, 1, 1, dtype=torch.long), torch.ones(3, 1, 1, dtype=torch.bool))
    with pytest.raises(ShapeMismatch, match=r"index_mask_BNK` \(2, 1, 2\)"):
        concept_maps(maps_BYXT, torch.zeros(2, 1, 1, dtype=torch.long), torch.ones(2, 1, 2, dtype=torch.bool))
    with pytest.raises(ShapeMismatch, match="maps_BYXT"):
        concept_maps(maps_BYXT[0], nothing, nothing.bool())


# --- what a map says -------------------------------------------------------------------------------------------------


def test_center_of_mass() -> None:
    maps = torch.zeros(3, 4, 2)
    maps[0, 3, 0] = 2.0
    maps[1] = 1.0
    torch.testing.assert_close(center_of_mass(maps), torch.tensor([[0.25, 0.875], [0.5, 0.5], [0.5, 0.5]]))


def test_pair_overlap_is_a_symmetric_table() -> None:
    maps = random_maps(2, 3, 4, 4)
    table = pair_overlap(maps)
    assert table.shape == (2, 3, 3)
    assert torch.equal(table, table.transpose(-1, -2))
    torch.testing.assert_close(table.diagonal(dim1=-2, dim2=-1), torch.full((2, 3), 0.5, dtype=torch.float64))
    cells = list(zip(maps[0, 0].flatten().tolist(), maps[0, 1].flatten().tolist(), strict=True))
    assert table[0, 0, 1].item() == pytest.approx(sum(map(min, cells)) / sum(map(sum, cells)))
    assert not pair_overlap(torch.zeros(2, 3, 3)).any()
    with pytest.raises(ShapeMismatch, match="N, Y, X"):
        pair_overlap(torch.zeros(3, 3))


def test_the_preparation_never_reads_a_value_on_the_host() -> None:
    """Tensors without values: anything that waits for a value, like item() or a branch on one, raises."""
    maps_BYXT = torch.rand(2, 8, 6, 12, device="meta")
    last_B = torch.zeros(2, dtype=torch.long, device="meta")
    index_BNK = torch.zeros(2, 3, 2, dtype=torch.long, device="meta")
    words = token_softmax(maps_BYXT, 1, last_B)
    maps_BNYX = concept_maps(words, index_BNK, index_BNK.bool())
    assert smooth(maps_BNYX, gaussian_kernel(device="meta")).shape == (2, 3, 8, 6)


def test_the_preparation_is_deterministic_and_row_by_row() -> None:
    maps_BYXT = random_maps(4, 8, 6, 12, dtype=torch.float32)
    last_B = torch.tensor([5, 11, 8, 6])
    index_BNK = torch.tensor([[[1, 2], [3, 0]]]).expand(4, -1, -1)
    mask_BNK = torch.tensor([[[True, True], [True, False]]]).expand(4, -1, -1)
    kernel = gaussian_kernel()

    def prepared(rows: slice) -> torch.Tensor:
        words = token_softmax(maps_BYXT[rows], 1, last_B[rows])
        return smooth(concept_maps(words, index_BNK[rows], mask_BNK[rows]), kernel)

    together = prepared(slice(None))
    assert torch.equal(together, prepared(slice(None)))
    for row in range(4):
        torch.testing.assert_close(together[row : row + 1], prepared(slice(row, row + 1)), rtol=1e-6, atol=1e-9)


@pytest.mark.gpu
def test_the_preparation_never_waits_for_the_gpu() -> None:
    maps_BYXT = random_maps(2, 16, 16, 77, dtype=torch.float32).cuda().requires_grad_()
    last_B = torch.tensor([5, 76], device="cuda")
    index_BNK = torch.tensor([[[1, 2], [3, 0]]], device="cuda").expand(2, -1, -1)
    mask_BNK = torch.tensor([[[True, True], [True, False]]], device="cuda").expand(2, -1, -1)
    kernel = gaussian_kernel(device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        maps_BNYX = smooth(concept_maps(token_softmax(maps_BYXT, 1, last_B), index_BNK, mask_BNK), kernel)
        masks_BNYX = binarize(maps_BNYX)
        loss_B = overlap_loss(maps_BNYX) + retention_loss(maps_BNYX, masks_BNYX) + presence_loss(maps_BNYX)
        torch.autograd.grad(loss_B.sum(), maps_BYXT)
    finally:
        torch.cuda.set_sync_debug_mode("default")

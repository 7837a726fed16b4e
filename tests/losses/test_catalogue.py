"""The catalogue of losses: each against a loop over its equation, by hand, and by what its users rely on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.losses.alignment import alignment_loss
from t2ictl.losses.boxes import box_losses, layout_energy
from t2ictl.losses.contrast import contrastive_loss
from t2ictl.losses.linguistic_binding import linguistic_binding_loss
from t2ictl.losses.predicates import correspondence_loss, existence_loss, stretched
from t2ictl.losses.self_attention import conflict_loss, gathered, self_cross_loss
from t2ictl.losses.variation import attendance_loss, binding_loss, total_variation
from tests.losses import slow

OWNERS = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 2, 3, 4]])
NOUNS = torch.tensor([[True, False, False, True, False, False], [True, True, False, True, False, False]])

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]


def divide(maps: Tensor, owner: Tensor, noun: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return attendance_loss(maps, mask), binding_loss(maps, owner, noun, mask)


def contrast(maps: Tensor, owner: Tensor, noun: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return (contrastive_loss(maps, owner, mask),)


def predicates(maps: Tensor, owner: Tensor, noun: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return existence_loss(maps, mask), *correspondence_loss(maps, owner, noun, mask)


GROUPED: dict[str, Loss] = {
    "linguistic": linguistic_binding_loss, "divide": divide, "contrast": contrast, "alignment": alignment_loss,
    "predicates": predicates,
}  # fmt: skip
every_loss = pytest.mark.parametrize("name", GROUPED)


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Not negative, below 1, and no two cells alike."""
    source = torch.Generator().manual_seed(seed)
    return (0.05 + 0.9 * torch.rand(*shape, generator=source, dtype=torch.float64)).to(dtype)


@every_loss
def test_equals_the_loop_over_its_equation(name: str) -> None:
    maps_BNYX = random_maps(2, 6, 3, 4)
    found = GROUPED[name](maps_BNYX, OWNERS, NOUNS, None)
    for row in range(2):
        expected = slow.GROUPED[name](maps_BNYX[row].tolist(), OWNERS[row].tolist(), NOUNS[row].tolist())
        assert [float(each[row]) for each in found] == pytest.approx(expected, rel=1e-9)


@every_loss
def test_gradcheck(name: str) -> None:
    maps_BNYX = random_maps(2, 6, 2, 3).requires_grad_()
    mask_BN = torch.tensor([[True] * 6, [True, True, True, True, False, True]])
    for part in range(len(GROUPED[name](maps_BNYX, OWNERS, NOUNS, mask_BN))):
        assert torch.autograd.gradcheck(
            lambda maps, part=part: GROUPED[name](maps, OWNERS, NOUNS, mask_BN)[part], maps_BNYX
        )


@every_loss
def test_ragged_rows_equal_single_rows_and_padding_gets_no_gradient(name: str) -> None:
    maps_BNYX = random_maps(2, 6, 3, 3)
    maps_BNYX[1, 4:] = float("nan")
    maps_BNYX.requires_grad_()
    mask_BN = torch.arange(6) < torch.tensor([[6], [4]])
    found = GROUPED[name](maps_BNYX, OWNERS, NOUNS, mask_BN)
    alone = GROUPED[name](maps_BNYX[1:, :4], OWNERS[1:, :4], NOUNS[1:, :4], None)
    for whole, single in zip(found, alone, strict=True):
        torch.testing.assert_close(whole[1:], single, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(torch.stack([each[1] for each in found]).sum(), maps_BNYX)
    assert not gradient[1, 4:].any() and gradient.isfinite().all()
    assert not gradient[0].any() and gradient[1].any()  # rows do not know each other


@every_loss
def test_order_of_words_does_not_matter(name: str) -> None:
    maps_BNYX, order = random_maps(2, 6, 3, 3), torch.tensor([4, 2, 5, 0, 3, 1])
    one = GROUPED[name](maps_BNYX, OWNERS, NOUNS, None)
    other = GROUPED[name](maps_BNYX[:, order], OWNERS[:, order], NOUNS[:, order], None)
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@every_loss
def test_a_row_without_words_is_zero(name: str) -> None:
    maps_BNYX = random_maps(2, 6, 3, 3).requires_grad_()
    mask_BN = torch.tensor([[True] * 6, [False] * 6])
    found = GROUPED[name](maps_BNYX, OWNERS, NOUNS, mask_BN)
    assert all(float(each[1].detach()) == 0 for each in found)
    (gradient,) = torch.autograd.grad(torch.stack(found).sum(), maps_BNYX)
    assert gradient.isfinite().all() and not gradient[1].any()


@every_loss
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_flat_and_empty_maps_are_finite(name: str, value: float) -> None:
    maps_BNYX = torch.full((2, 6, 3, 3), value, dtype=torch.float64, requires_grad=True)
    found = GROUPED[name](maps_BNYX, OWNERS, NOUNS, None)
    (gradient,) = torch.autograd.grad(torch.stack(found).sum(), maps_BNYX)
    assert all(each.isfinite().all() for each in found) and gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(name: str, dtype: torch.dtype) -> None:
    half = random_maps(2, 6, 4, 4, dtype=dtype).requires_grad_()
    found = GROUPED[name](half, OWNERS, NOUNS, None)
    exact = GROUPED[name](half.detach().float(), OWNERS, NOUNS, None)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)
    (gradient,) = torch.autograd.grad(torch.stack(found).sum(), half)
    assert gradient.dtype == dtype and gradient.any()


@every_loss
def test_never_reads_a_value_on_the_host(name: str) -> None:
    on: Any = {"device": "meta"}
    maps_BNYX, mask_BN = torch.rand(2, 6, 4, 4, **on), torch.ones(2, 6, dtype=torch.bool, **on)
    found = GROUPED[name](maps_BNYX, OWNERS.to("meta"), NOUNS.to("meta"), mask_BN)
    assert all(each.shape == (2,) for each in found)


@pytest.mark.parametrize("name", sorted(set(GROUPED) - {"contrast"}))
def test_errors_name_the_argument(name: str) -> None:
    loss, maps_BNYX = GROUPED[name], random_maps(2, 6, 3, 3)
    with pytest.raises(ShapeMismatch, match="maps_BNYX"):
        loss(maps_BNYX[0], OWNERS, NOUNS, None)
    with pytest.raises(ShapeMismatch, match=r"owner_BN.*\(2, 5\).*\(2, 6\)"):
        loss(maps_BNYX, OWNERS[:, :5], NOUNS, None)
    with pytest.raises(ShapeMismatch, match="noun_BN"):
        loss(maps_BNYX, OWNERS, NOUNS[:1], None)
    with pytest.raises(ShapeMismatch, match="mask_BN"):
        loss(maps_BNYX, OWNERS, NOUNS, torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(BadSetting, match="owner_BN"):
        loss(maps_BNYX, OWNERS.float(), NOUNS, None)
    with pytest.raises(BadSetting, match="noun_BN"):
        loss(maps_BNYX, OWNERS, NOUNS.long(), None)


def test_bounds() -> None:
    maps_BNYX, owner, noun = random_maps(50, 4, 5, 5), torch.tensor([[0, 0, 1, 1]] * 50), torch.tensor(
        [[True, False, True, False]] * 50
    )  # fmt: skip
    positive, negative = linguistic_binding_loss(maps_BNYX, owner, noun)
    assert (positive > 0).all() and (negative < 0).all()
    flattest, bound = divide(maps_BNYX, owner, noun, None)
    assert (flattest < 0).all() and (bound > 0).all() and (bound < 2 * math.log(2)).all()
    assert (contrastive_loss(maps_BNYX, owner) > 0).all()
    binding, intensity = alignment_loss(maps_BNYX, owner, noun)
    assert (binding > -2).all() and (binding < 2).all() and (intensity >= -2).all() and (intensity < 0).all()
    assert all((each > 0).all() for each in predicates(maps_BNYX, owner, noun, None))
    degrees = stretched(maps_BNYX)
    assert degrees.amin((-2, -1)).eq(0).all() and degrees.amax((-2, -1)).eq(1).all()


def test_values_by_hand() -> None:
    third, quarter = math.log(3), math.log(0.75)
    maps_BNYX = torch.tensor([[[[1.0, 3.0]], [[3.0, 1.0]], [[1.0, 3.0]]]])
    owner, noun = torch.tensor([[0, 0, 1]]), torch.tensor([[True, False, True]])
    # d = (3/4 - 1/4) ln 3; the outsider has the noun's own map.
    positive, negative = linguistic_binding_loss(maps_BNYX, owner, noun)
    assert (positive.item(), negative.item()) == pytest.approx((third / 2, -third / 4))
    assert (
        total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])).item() == 3
    )  # (0 + 2) / 2 down, (1 + 3) / 2 across
    assert attendance_loss(maps_BNYX).item() == -2.0
    apart_ = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert binding_loss(apart_, owner[:, :2], noun[:, :2]).item() == pytest.approx(math.log(2))
    one = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]])
    assert contrastive_loss(one, owner).item() == pytest.approx(math.log(1 + math.exp(-2)))
    cosines = torch.tensor([[[[0.3, 0.4]], [[0.4, 0.3]], [[0.0, 0.5]]]])
    assert [each.item() for each in alignment_loss(cosines, owner, noun)] == pytest.approx(
        [0.04 - 0.2 - (0.2 + 0.4) / 2, -0.9]  # the bare noun is kept from both other words
    )
    half = torch.full((1, 3, 1, 2), 0.5)
    assert existence_loss(half).item() == pytest.approx(3 * math.log(2))
    assert [each.item() for each in correspondence_loss(half, owner, noun)] == pytest.approx([-2 * quarter, -quarter])


def test_perfect_binding_is_the_least_loss() -> None:
    """Modifiers with their nouns' maps, objects apart: nothing is left to move for."""
    maps_BNYX = torch.zeros(1, 4, 2, 2)
    maps_BNYX[0, :2, 0, 0] = maps_BNYX[0, 2:, 1, 1] = 1.0
    owner, noun = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[True, False, True, False]])
    assert linguistic_binding_loss(maps_BNYX, owner, noun)[0].item() == pytest.approx(0, abs=1e-6)
    assert binding_loss(maps_BNYX, owner, noun).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(maps_BNYX, owner, noun)[0].item() == pytest.approx(-2.0)
    assert sum(each.item() for each in correspondence_loss(maps_BNYX, owner, noun)) == pytest.approx(0, abs=1e-4)
    swapped = maps_BNYX[:, [0, 3, 2, 1]]
    assert linguistic_binding_loss(swapped, owner, noun)[0].item() > 10
    assert contrastive_loss(swapped, owner).item() > contrastive_loss(maps_BNYX, owner).item() + 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_0_is_refused(temperature: float) -> None:
    with pytest.raises(BadSetting, match="temperature"):
        contrastive_loss(random_maps(2, 6, 3, 3), OWNERS, temperature=temperature)


def regions(*shape: int) -> Tensor:
    made = torch.zeros(*shape, dtype=torch.float64)
    made[:, 0, :2, 1:] = made[:, 1, 1:, :2] = 1
    return made


def boxed(maps: Tensor, boxes: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    return layout_energy(maps, boxes, mask), *box_losses(maps, boxes, mask, share=0.5)


def test_boxes_equal_the_loop_over_their_equations() -> None:
    maps_BNYX, boxes_BNYX = random_maps(2, 2, 4, 5), regions(2, 2, 4, 5)
    found = boxed(maps_BNYX, boxes_BNYX)
    for row in range(2):
        expected = slow.boxes(maps_BNYX[row].tolist(), boxes_BNYX[row].tolist())
        assert [float(each[row]) for each in found] == pytest.approx(expected, rel=1e-9)


def test_boxes_gradcheck_bounds_and_padding() -> None:
    maps_BNYX, boxes_BNYX = random_maps(2, 2, 3, 4).requires_grad_(), regions(2, 2, 3, 4)
    mask_BN = torch.tensor([[True, True], [True, False]])
    for part in range(4):
        assert torch.autograd.gradcheck(lambda maps, part=part: boxed(maps, boxes_BNYX, mask_BN)[part], maps_BNYX)
    energy, inner, outer, corner = boxed(maps_BNYX.detach(), boxes_BNYX)
    assert all((each > 0).all() for each in (energy, inner, outer, corner))
    assert (energy < 2).all() and (inner < 2).all() and (outer < 2).all() and (corner < 4).all()
    (gradient,) = torch.autograd.grad(torch.stack(boxed(maps_BNYX, boxes_BNYX, mask_BN)).sum(), maps_BNYX)
    assert not gradient[1, 1].any() and gradient[1, 0].any()


def test_boxes_by_hand_and_at_their_least() -> None:
    maps_BNYX = torch.tensor([[[[0.9, 0.1], [0.7, 0.3]]]])
    left = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    assert layout_energy(maps_BNYX, left).item() == pytest.approx((1 - 1.6 / 2.0) ** 2)
    assert [each.item() for each in box_losses(maps_BNYX, left, share=1.0)] == pytest.approx([0.2, 0.2, 0.4])
    assert [each.item() for each in boxed(left, left)] == pytest.approx([0, 0, 0, 0])
    assert layout_energy(torch.zeros(1, 1, 2, 2), left).item() == 1
    whole = torch.ones(1, 1, 2, 2)  # nothing is outside of it
    assert [each.item() for each in box_losses(maps_BNYX, whole)][1] == 0


def test_boxes_say_what_does_not_fit() -> None:
    maps_BNYX = random_maps(1, 2, 3, 3)
    for loss in (layout_energy, box_losses):
        with pytest.raises(ShapeMismatch, match="boxes_BNYX"):
            loss(maps_BNYX, torch.ones(1, 2, 3, 4))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(BadSetting, match="share"):
            box_losses(maps_BNYX, torch.ones_like(maps_BNYX), share=share)


def test_boxes_never_read_a_value_on_the_host() -> None:
    maps_BNYX: Any = torch.rand(2, 3, 4, 4, device="meta")
    assert all(each.shape == (2,) for each in boxed(maps_BNYX, maps_BNYX))


def attention(*shape: int, seed: int = 5) -> Tensor:
    """Self-attention of some images: every place looks with weights that sum to 1."""
    batch, height, width = shape
    return random_maps(batch, height, width, height * width, seed=seed).mul(4).softmax(-1)


def slow_gathered(self_YXP: Any, weights: Any) -> list[float]:
    total, found = 0.0, [0.0] * len(self_YXP[0][0])
    for y, row in enumerate(weights):
        for x, weight in enumerate(row):
            total += weight
            found = [old + weight * new for old, new in zip(found, self_YXP[y][x], strict=True)]
    return [each / total for each in found] if total else found


def test_gathered_self_attention_equals_the_loop() -> None:
    self_BYXP, weights = attention(2, 3, 4), random_maps(2, 3, 3, 4)
    weights[1, 2] = 0.0
    found = gathered(self_BYXP, weights)
    for row in range(2):
        for word in range(3):
            expected = slow_gathered(self_BYXP[row].tolist(), weights[row, word].tolist())
            assert found[row, word].flatten().tolist() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ShapeMismatch, match="self_BYXP"):
        gathered(self_BYXP[:, :, :, :-1], weights)


def test_self_cross_and_conflict_equal_the_loops() -> None:
    self_BYXP, maps_BNYX = attention(2, 3, 4), random_maps(2, 3, 3, 4)
    looks = gathered(self_BYXP, maps_BNYX)
    found, conflict = self_cross_loss(looks, maps_BNYX), conflict_loss(self_BYXP, maps_BNYX)
    for row in range(2):
        pairs, overlaps = [], []
        for i in range(3):
            for j in range(3):
                if i != j:
                    s, c = slow.share(looks[row, i].tolist()), slow.share(maps_BNYX[row, j].tolist())
                    pairs.append(sum(min(a, b) for a, b in zip(s, c, strict=True)))
                if i < j:
                    flat = [slow.cells(maps_BNYX[row, word].tolist()) for word in (i, j)]
                    a, b = (self_BYXP[row].flatten(0, 1)[each.index(max(each))].tolist() for each in flat)
                    overlaps.append(sum(map(min, a, b)) / (sum(a) + sum(b)))
        assert float(found[row]) == pytest.approx(slow.mean(pairs), rel=1e-9)
        assert float(conflict[row]) == pytest.approx(slow.mean(overlaps), rel=1e-9)


def test_self_attention_losses_gradcheck_bounds_and_padding() -> None:
    self_BYXP, maps_BNYX = attention(2, 2, 3).requires_grad_(), random_maps(2, 3, 2, 3).requires_grad_()
    mask_BN, weights = torch.tensor([[True, True, True], [True, False, True]]), random_maps(2, 3, 2, 3, seed=7)

    def crossed(own: Tensor, maps: Tensor) -> Tensor:
        return self_cross_loss(gathered(own, weights), maps, mask_BN)

    assert torch.autograd.gradcheck(crossed, (self_BYXP, maps_BNYX))
    assert torch.autograd.gradcheck(lambda own: conflict_loss(own, maps_BNYX, mask_BN), (self_BYXP,))
    for loss, high in ((crossed(self_BYXP, maps_BNYX), 1.0), (conflict_loss(self_BYXP, maps_BNYX, mask_BN), 0.5)):
        assert (loss > 0).all() and (loss < high).all()
    (gradient,) = torch.autograd.grad(crossed(self_BYXP, maps_BNYX).sum(), maps_BNYX)
    assert not gradient[1, 1].any() and gradient[1, 0].any()
    one = torch.tensor([[True, False, False]] * 2)
    assert not self_cross_loss(maps_BNYX, maps_BNYX, one).any() and not conflict_loss(self_BYXP, maps_BNYX, one).any()
    with pytest.raises(ShapeMismatch, match="self_BNYX"):
        self_cross_loss(maps_BNYX[:, :2], maps_BNYX)

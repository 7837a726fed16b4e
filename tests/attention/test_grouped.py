"""Attention in groups against a dense mask of logits, pair by pair; and what it never allocates."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from t2ictl.attention.grouped import AttentionGroup, Grouping, KeySource, grouped_attention
from t2ictl.errors import ShapeMismatch
from t2ictl.processors.isolation_reposition.groups import Reading, isolated_groups
from tests.allocations import Largest

HEADS, WIDTH, SCALE = 2, 8, 0.3


def states(rows: int, positions: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, HEADS, positions, WIDTH, generator=dice) for _ in range(3))
    return q, k, v


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: int,
    labels: Tensor,
    readings: dict[int, Reading],
    place: int,
    isolation: float,
) -> Tensor:
    """The formula with a logit for every pair, one query after the other."""
    out = torch.zeros(HEADS, q.shape[2], WIDTH)
    for p in range(q.shape[2]):
        mine = int(labels[p])
        keys, values, bias = [k[row]], [v[row]], []
        for other in labels.tolist():
            is_hidden = mine and other and mine != other
            lowered = math.log(1 - isolation) if isolation < 1 else -math.inf
            bias.append(lowered if is_hidden else 0.0)
        reading = readings.get(mine)
        if reading is not None and bool(reading.reads[p]):
            keys.append(k[reading.row[place]][:, reading.positions])
            values.append(v[reading.row[place]][:, reading.positions])
            bias += [reading.strength] * len(reading.positions)
        logits = SCALE * torch.einsum("hd,hkd->hk", q[row, :, p], torch.cat(keys, dim=1)) + torch.tensor(bias)
        out[:, p] = torch.einsum("hk,hkd->hd", logits.softmax(dim=-1), torch.cat(values, dim=1))
    return out


@pytest.mark.parametrize("subjects", [1, 2, 3, 4])
@pytest.mark.parametrize(("grid", "dropout"), [((5, 7), 0.0), ((6, 4), 0.5)])
@pytest.mark.parametrize(("isolation", "strength"), [(1.0, 0.0), (1.0, 1.3), (0.4, -0.7), (0.0, 0.0)])
def test_groups_equal_a_dense_mask(
    subjects: int, grid: tuple[int, int], dropout: float, isolation: float, strength: float
) -> None:
    dice = torch.Generator().manual_seed(subjects)
    count = grid[0] * grid[1]
    q, k, v = states(6, count, seed=subjects)
    labels = torch.randint(0, subjects + 1, (count,), generator=dice)
    readings = {
        number: Reading(
            row=(2 + number % 2, 4 + number % 2),
            positions=torch.randint(0, count, (5 + number,), generator=dice),
            strength=strength,
            reads=torch.rand(count, generator=dice) >= dropout,
        )
        for number in range(1, subjects + 1)
        if number != 3  # one without a reference
    }
    grouping = isolated_groups(labels, readings, isolation)
    assert grouping is not None
    found = grouped_attention(q, k, v, (0, 1), grouping, SCALE)
    for place in range(2):
        expected = dense(q, k, v, place, labels, readings, place, isolation)
        torch.testing.assert_close(found[place], expected, rtol=0, atol=1e-5)


def test_nothing_to_do_is_no_grouping() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    for isolation in (1.0, 0.4, 0.0):
        assert isolated_groups(torch.zeros(4, dtype=torch.long), {}, isolation) is None
    assert isolated_groups(labels) is None  # a lone subject hides from nobody
    assert isolated_groups(torch.tensor([1, 2]), isolation=0.0) is None
    empty = Reading(row=(1,), positions=torch.zeros(0, dtype=torch.long), strength=0.0, reads=labels > 0)
    assert isolated_groups(labels, {1: empty}) is None


def test_no_gradient_between_subjects() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 0])
    q, k, v = states(1, 6)
    grouping = isolated_groups(labels)
    assert grouping is not None
    for mine, other in itertools.permutations((1, 2)):
        k.requires_grad_(), v.requires_grad_()
        out = grouped_attention(q, k, v, (0,), grouping, SCALE)
        by_k, by_v = torch.autograd.grad(out[:, :, labels == mine].sum(), (k, v))
        for gradient in (by_k, by_v):
            assert gradient[:, :, labels == other].abs().max() == 0
            assert (gradient[:, :, labels != other].abs().sum(dim=(0, 1, 3)) > 0).all()


def test_a_repeated_position_weighs_like_its_count() -> None:
    q, k, v = states(2, 6)
    labels, reads = torch.tensor([0, 1, 1, 1, 0, 0]), torch.ones(6, dtype=torch.bool)
    for positions, strength, same in [([3, 3, 3], 0.0, ([3], math.log(3))), ([0, 5, 5], 0.4, ([5, 0, 5], 0.4))]:
        made = []
        for which, bias in ((positions, strength), same):
            reading = Reading(row=(1,), positions=torch.tensor(which), strength=bias, reads=reads)
            grouping = isolated_groups(labels, {1: reading})
            assert grouping is not None
            made.append(grouped_attention(q, k, v, (0,), grouping, SCALE))
        torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-5)


def test_no_tensor_of_positions_by_positions() -> None:
    count = 1024
    q, k, v = states(3, count)
    labels = torch.arange(count) // 256 % 3
    reading = Reading(row=(2,), positions=torch.arange(300), strength=0.5, reads=labels == 1)
    grouping = isolated_groups(labels, {1: reading})
    assert grouping is not None
    with Largest() as largest, torch.no_grad():
        grouped_attention(q, k, v, (0,), grouping, SCALE)
    assert largest.elements <= len(q) * HEADS * count * WIDTH < count * count


def test_work_is_that_of_the_pairs_that_are_read() -> None:
    """1 - sum of r_i r_j over pairs of subjects, and the references' share on top (r: share of the image)."""
    count, share = 1000, (200, 150)
    labels = torch.zeros(count, dtype=torch.long)
    labels[: share[0]], labels[share[0] : sum(share)] = 1, 2
    q, k, v = states(3, count)

    def work(grouping: Grouping | None) -> int:
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):  # the fused ones are not counted here
            if grouping is None:
                torch.nn.functional.scaled_dot_product_attention(q[:1], k[:1], v[:1], scale=SCALE)
            else:
                grouped_attention(q, k, v, (0,), grouping, SCALE)
        return int(counter.get_total_flops())

    plain, r = work(None), [each / count for each in share]
    everywhere = torch.ones(count, dtype=torch.bool)
    readings = {
        number: Reading(row=(number,), positions=torch.arange(size), strength=0.0, reads=everywhere)
        for number, size in enumerate(share, start=1)
    }
    assert work(isolated_groups(labels)) / plain == pytest.approx(1 - 2 * r[0] * r[1])
    assert work(isolated_groups(labels, readings)) / plain == pytest.approx(1 - 2 * r[0] * r[1] + r[0] ** 2 + r[1] ** 2)


def test_groups_that_leave_a_position_out_or_hold_it_twice_are_refused() -> None:
    for places in ([[0, 1], [1, 2]], [[0], [2]]):
        groups = tuple(AttentionGroup(queries=torch.tensor(each), sources=(KeySource(),)) for each in places)
        with pytest.raises(ShapeMismatch, match="every position once"):
            Grouping(groups)

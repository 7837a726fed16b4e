"""The arithmetic of merging rows: sums, the three ways in which members leave, new places, end tokens.

Every expected row is written out by hand, or by a loop over positions that shares nothing with the library.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.processors.token_merging.rows import RowMerging, TokenGroup, row_mask

# start, a, red, skate, board, and, cat, end, pad, pad: "red skateboard" becomes one row, its noun has two pieces.
SKATEBOARD = TokenGroup(noun=(3, 4), members=(2,), dropped=(2, 4))
LENGTH, END = 10, 7


def encoding(seed: int = 0, length: int = LENGTH) -> Tensor:
    return torch.randn(length, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merging(removal: Any, *groups: TokenGroup, length: int = LENGTH, end: int = END) -> RowMerging:
    return RowMerging(groups=groups, length=length, end=end, removal=removal)


@pytest.mark.parametrize(("noun", "member"), [(1.0, 1.0), (1.1, 1.2)])
def test_compacting_sums_the_noun_and_its_members_and_moves_up_what_follows(noun: float, member: float) -> None:
    r = encoding()
    one = noun * (r[3] + r[4]) + member * r[2]
    # As many rows are missing at the end as left: the last one is repeated.
    expected = torch.stack([r[0], r[1], one, r[5], r[6], r[7], r[8], r[9], r[9], r[9]])
    torch.testing.assert_close(merging("compact", SKATEBOARD).rows(r, noun, member, None), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("noun", "member"), [(1.0, 1.0), (1.1, 1.2)])
def test_zeroed_members_stay_as_rows_of_nothing(noun: float, member: float) -> None:
    r, nothing = encoding(), torch.zeros(3, dtype=torch.float64)
    one = noun * (r[3] + r[4]) + member * r[2]
    expected = torch.stack([r[0], r[1], nothing, one, nothing, r[5], r[6], r[7], r[8], r[9]])
    torch.testing.assert_close(merging("zero", SKATEBOARD).rows(r, noun, member, None), expected, rtol=0, atol=1e-15)


def test_masked_members_stay_as_they_are_and_count_nothing() -> None:
    r, made = encoding(), merging("mask", SKATEBOARD)
    expected = torch.stack([r[0], r[1], r[2], r[2] + r[3] + r[4], r[4], *r[5:]])
    torch.testing.assert_close(made.rows(r, 1.0, 1.0, None), expected, rtol=0, atol=1e-15)
    assert made.weight(1.0).tolist() == [1, 1, 0, 1, 0, 1, 1, 1, 1, 1]
    assert made.weight(0.0).tolist() == [1] * LENGTH
    assert made.weight(0.25).tolist() == [1, 1, 0.75, 1, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("removal", ["compact", "zero"])
def test_only_masked_rows_have_a_weight(removal: Any) -> None:
    assert merging(removal, SKATEBOARD).weight(1.0).tolist() == [1] * LENGTH


@pytest.mark.parametrize("removal", ["compact", "mask", "zero"])
def test_without_groups_every_row_stays(removal: Any) -> None:
    r, made = encoding(), merging(removal)
    assert torch.equal(made.rows(r, 1.1, 1.2, None), r)
    assert made.moved == tuple(range(LENGTH)) and made.composites == ()


def test_what_was_passed_in_is_not_changed() -> None:
    r, m = encoding(), encoding(1)
    for removal in ("compact", "mask", "zero"):
        merging(removal, SKATEBOARD).rows(r, 1.1, 1.2, (m, 6))
    assert torch.equal(r, encoding()) and torch.equal(m, encoding(1))


def test_half_precision_is_kept_and_other_dtypes_of_the_tail_follow() -> None:
    made = merging("compact", SKATEBOARD).rows(encoding().bfloat16(), 1.0, 1.0, (encoding(1), 6))
    assert made.dtype == torch.bfloat16 and made.shape == (LENGTH, 3)


# -- new places -------------------------------------------------------------------------------------------------------


def test_positions_after_compaction() -> None:
    made = merging("compact", SKATEBOARD)
    #       start a red skate board and cat end pad pad
    assert made.moved == (0, 1, 2, 2, 2, 3, 4, 5, 6, 7)
    assert made.composites == (2,) and made.kept == (0, 1, 3, 5, 6)


@pytest.mark.parametrize("removal", ["mask", "zero"])
def test_positions_where_rows_stay(removal: Any) -> None:
    made = merging(removal, SKATEBOARD)
    assert made.moved == (0, 1, 3, 3, 3, 5, 6, 7, 8, 9)  # the members answer with their composite
    assert made.composites == (3,)


def test_members_after_the_noun_and_words_between_go_with_it() -> None:
    # start, a, cat, with, a, hat, and, dog, in, red, end, pad
    groups = (
        TokenGroup(noun=(2,), members=(5,), dropped=(3, 4, 5)),
        TokenGroup(noun=(7,), members=(9,), dropped=(8, 9)),
    )
    made, r = merging("compact", *groups, length=12, end=10), encoding(length=12)
    assert made.moved == (0, 1, 2, 2, 2, 2, 3, 4, 4, 4, 5, 6)
    assert made.composites == (2, 4)
    # "with", "a" and "in" are in neither sum.
    expected = torch.stack([r[0], r[1], r[2] + r[5], r[6], r[7] + r[9], r[10], r[11], *[r[11]] * 5])
    torch.testing.assert_close(made.rows(r, 1.0, 1.0, None), expected, rtol=0, atol=1e-15)


# -- end tokens of the prompt without members -------------------------------------------------------------------------


def test_end_goes_to_end_and_padding_to_padding_where_the_ends_differ() -> None:
    """ "a skateboard and cat" ends at 6, since its noun still has two pieces; the compacted prompt ends at 5."""
    r, m = encoding(), encoding(1)
    made = merging("compact", SKATEBOARD).rows(r, 1.0, 1.0, (m, 6))
    expected = torch.stack([r[0], r[1], r[2] + r[3] + r[4], r[5], r[6], m[6], m[7], m[8], m[9], m[9]])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-15)


def test_end_goes_to_end_where_the_ends_agree() -> None:
    r, m = encoding(), encoding(1)  # start, a, red, cat, and, dog, end, ...: both end at 5 after "red" left
    group = TokenGroup(noun=(3,), members=(2,), dropped=(2,))
    made = merging("compact", group, end=6).rows(r, 1.0, 1.0, (m, 5))
    assert torch.equal(made[5:], m[5:])
    torch.testing.assert_close(made[2], r[2] + r[3], rtol=0, atol=1e-15)


@pytest.mark.parametrize("removal", ["mask", "zero"])
def test_rows_that_stay_do_not_shift_the_end_tokens(removal: Any) -> None:
    """The official code put row 7 of the merged prompt, a padding row, into the slot of the first end token."""
    m = encoding(1)
    made = merging(removal, SKATEBOARD).rows(encoding(), 1.0, 1.0, (m, 6))
    assert torch.equal(made[7:], m[[6, 7, 8]])
    assert not torch.equal(made[7], m[7])


# -- any groups -------------------------------------------------------------------------------------------------------


def any_groups(seed: int) -> tuple[tuple[TokenGroup, ...], int, int]:
    """Disjoint groups with nouns of one to three pieces at random places."""
    dice = random.Random(seed)
    length = dice.choice([16, 40, 77])
    end = dice.randint(2, length - 1)
    left, groups = list(range(1, end)), []
    for _ in range(dice.randint(0, 4)):
        size = dice.randint(1, 3)
        starts = [p for p in left if all(p + k in left for k in range(size))]
        others = dice.randint(1, 5)
        if not starts or len(left) < size + others:
            break
        first = dice.choice(starts)
        noun = tuple(range(first, first + size))
        more = dice.sample([p for p in left if p not in noun], others)
        members = tuple(sorted(more[: dice.randint(1, others)]))  # the rest are words between
        groups.append(TokenGroup(noun=noun, members=members, dropped=tuple(sorted((set(noun) | set(more)) - {first}))))
        left = [p for p in left if p not in noun and p not in more]
    return tuple(groups), length, end


@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in (0, 100, 200)], ids=str)
def test_compaction_keeps_every_other_row_in_order_wherever_the_groups_lie(seeds: range) -> None:
    counts = set()
    for seed in seeds:
        groups, length, end = any_groups(seed)
        counts.add(len(groups))
        made = merging("compact", *groups, length=length, end=end)
        gone = [p for group in groups for p in group.dropped]
        rows_KC = torch.arange(1.0, length + 1)[:, None]
        found = made.rows(rows_KC, 1.0, 0.0, None)[:, 0].tolist()
        expected = []
        for position in range(length):
            if position not in gone:
                noun = next((group.noun for group in groups if group.noun[0] == position), (position,))
                expected.append(float(sum(p + 1 for p in noun)))
        expected += [float(length)] * len(gone)
        assert found == expected, seed
        for position in range(length):
            group = next((each for each in groups if position in each.dropped), None)
            if group is None:
                assert found[made.moved[position]] == expected[sum(p not in gone for p in range(position))], seed
            else:
                assert made.moved[position] == made.moved[group.noun[0]], seed
        assert made.composites == tuple(sum(p not in gone for p in range(group.noun[0])) for group in groups)
    assert counts >= {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(20))
def test_all_ways_of_leaving_give_attention_the_same_rows(seed: int) -> None:
    groups, length, end = any_groups(seed)
    r = torch.randn(length, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    by = {way: merging(way, *groups, length=length, end=end) for way in ("compact", "mask", "zero")}
    rows = {way: each.rows(r, 1.1, 1.2, None) for way, each in by.items()}
    stay = [position for position in range(end) if by["mask"].weight(1.0)[position] == 1]
    assert torch.equal(rows["compact"][: len(stay)], rows["mask"][stay])
    assert torch.equal(rows["zero"][stay], rows["mask"][stay])
    gone = [position for position in range(end) if position not in stay]
    assert not rows["zero"][gone].any() and torch.equal(rows["mask"][gone], r[gone])


def test_rows_that_may_move_are_marked() -> None:
    assert row_mask([[1, 3], [], [0]], 4).tolist() == [
        [False, True, False, True],
        [False] * 4,
        [True, False, False, False],
    ]

"""Conditions of token flow: what they take from where, on real text encoders and denoisers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from t2ictl.errors import BadSetting
from t2ictl.processors.token_flow.conditions import EMPTY, Intervention, Patch, compose
from t2ictl.processors.token_flow.items import Item
from t2ictl.processors.token_flow.readings import EncodedVariant, Row, read_all, stacked
from tests.processors.token_flow.flow_cases import LENGTH, PROMPT, Case
from tests.tiny import sd, sd2, sdxl

families = pytest.mark.parametrize("build", [sd, sd2, sdxl])


def test_a_swap_that_takes_the_words_before_an_item_leaves_it_where_it_is() -> None:
    case = Case(sd(max_length=32), "a teddy bear and a bear", (Item(words="teddy bear", swap="cat"), "bear#2"))
    patch = case.make.swapped(case.items[1], case.items[0])
    assert patch is not None and patch.source.text == "a cat and a bear"
    assert patch.rows == case.items[1].rows and patch.source_rows == (5,)


@families
def test_all_kept_is_the_prompt_and_nothing_kept_the_empty_one(build: Any) -> None:
    case = Case(build())
    for condition, text in (
        (case.make.whole(), PROMPT),
        (case.make.keep("keep:all", range(LENGTH)), PROMPT),
        (case.make.nothing(), ""),
        (case.make.keep("keep:none", ()), ""),
    ):
        row, stock = case.row(condition), case.stock(text)
        assert torch.equal(row.states, stock.embeds[0]), condition.name
        if stock.pooled is not None and condition.name in ("full", "empty"):
            assert row.pooled is not None and torch.equal(row.pooled, stock.pooled[0])


@families
def test_kept_rows_are_the_prompts_and_all_others_the_empty_ones(build: Any) -> None:
    case = Case(build())
    row = case.row(case.make.keep("keep:circle", case.items[0].rows))
    full, empty = case.stock(PROMPT).embeds[0], case.stock("").embeds[0]
    assert case.items[0].rows == (3,)
    assert torch.equal(row.states[3], full[3])
    assert torch.equal(row.states[[0, 1, 2, *range(4, LENGTH)]], empty[[0, 1, 2, *range(4, LENGTH)]])


@families
def test_dropped_rows_equal_physical_removal(build: Any) -> None:
    case = Case(build())
    row = case.row(case.make.remove("drop:circle", (3,), "drop"))
    states_BKC, pooled_BC, weight_BK = stacked([row], torch.float32)
    assert weight_BK is not None and weight_BK[0].tolist() == [0.0 if place == 3 else 1.0 for place in range(LENGTH)]
    masked = case.noise(states_BKC, pooled_BC, weight_BK)
    gone = case.noise(states_BKC[:, [place for place in range(LENGTH) if place != 3]], pooled_BC)
    torch.testing.assert_close(masked, gone, rtol=0, atol=1e-5)
    assert (masked - case.noise(states_BKC, pooled_BC)).abs().max() > 1e-4  # and it is not the prompt


@families
def test_removal_operators_differ(build: Any) -> None:
    case = Case(build())
    padded = case.row(case.make.remove("drop:circle", (3,), "clean_pad"))
    hidden = case.row(case.make.remove("drop:circle", (3,), "encoder_mask"))
    full, empty = case.stock(PROMPT).embeds[0], case.stock("").embeds[0]
    for row in (padded, hidden):
        assert torch.equal(row.states[3], empty[3])
    assert torch.equal(padded.states[4:], full[4:]) and not torch.equal(hidden.states[4:], full[4:])


@families
def test_the_denoiser_does_not_know_the_order_of_text_rows(build: Any) -> None:
    case = Case(build())
    stock = case.stock(PROMPT)
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(1))
    one, other = case.noise(stock.embeds, stock.pooled), case.noise(stock.embeds[:, order], stock.pooled)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@families
def test_isolated_rows_have_not_read_the_other_item(build: Any) -> None:
    case, other = Case(build()), Case(build(), "a red circle and a blue heart", ("circle", "heart"))
    for index, rows in ((1, (7,)), (0, (3,))):
        own = read_all([each.make.isolated(each.items[index]) for each in (case, other)], case.encode, LENGTH)
        one, two = (own[each.make.isolated(each.items[index])] for each in (case, other))
        same = torch.equal(one.states[list(rows)], two.states[list(rows)])
        assert same is (index == 0)  # the second item is another word itself
    # The first item, end and padding of a prompt whose second item is another word are the same, bit for bit.
    ends = list(case.make.special)
    read = (read_all([c.make.isolated(c.items[0])], c.encode, LENGTH) for c in (case, other))
    rows_one, rows_two = (next(iter(each.values())).states for each in read)
    assert torch.equal(rows_one[[3, *ends]], rows_two[[3, *ends]])


def test_isolated_rows_read_their_own_phrase() -> None:
    case = Case(sd())
    assert case.items[1].own == ((6, 7),)  # blue square
    assert case.make.isolated(case.items[1]).hidden == ((1, 2, 3, 4, 5),)
    named = Case(sd(), items=("blue", "square"))  # an item of its own is no longer part of the other's phrase
    assert named.make.isolated(named.items[1]).hidden == ((1, 2, 3, 4, 5, 6),)


def test_masked_rows_equal_the_phrase_alone_at_its_places() -> None:
    case = Case(sd())
    masked = case.row(case.make.repair("repair:x", [(case.items[1], ())], how="masked")).states[7]
    alone = case.encode(["blue square"], [6]).embeds[0, 2]
    torch.testing.assert_close(masked, alone, rtol=0, atol=1e-5)


def test_alone_rows_are_those_of_the_phrase_alone() -> None:
    case = Case(sd())
    row = case.row(case.make.repair("repair:x", [(case.items[1], ())], how="alone")).states
    assert torch.equal(row[7], case.stock("blue square").embeds[0, 2])
    assert torch.equal(row[:7], case.stock(PROMPT).embeds[0, :7])


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_strength_is_a_straight_line_for_rows_and_pooled(strength: float) -> None:
    case = Case(sdxl())
    pair = [(case.items[1], (case.items[0],))]
    row = case.row(
        case.make.repair("repair:x", pair, how="pairwise", strength=strength, special="masked", pooled="masked")
    )
    full = case.stock(PROMPT)
    clean = read_all([case.make.without(case.items[0])], case.encode, LENGTH)[case.make.without(case.items[0])]
    wanted = full.embeds[0] + strength * (clean.states - full.embeds[0])
    changed = [7, *case.make.special]
    torch.testing.assert_close(row.states[changed], wanted[changed], rtol=0, atol=1e-6)
    assert torch.equal(row.states[[0, 1, 2, 3, 4, 5, 6]], full.embeds[0, :7])
    assert row.pooled is not None and clean.pooled is not None
    torch.testing.assert_close(
        row.pooled, full.pooled[0] + strength * (clean.pooled - full.pooled[0]), rtol=0, atol=1e-6
    )


def test_swapped_prompt_gives_its_rows_at_its_own_places() -> None:
    items = (Item(words="circle", swap="skateboard"), Item(words="square"))  # two tokens for one
    case = Case(sd(), items=items)
    cut = case.row(case.make.cut(case.items[1], case.items[0])).states
    swapped = case.stock("a red skateboard and a blue square").embeds[0]
    full = case.stock(PROMPT).embeds[0]
    assert torch.equal(cut[7], swapped[8]) and torch.equal(cut[:7], full[:7]) and torch.equal(cut[8:], full[8:])
    assert torch.equal(case.row(case.make.swap(case.items[0])).states, swapped)


def fake(*, length: int = 6, channels: int = 2) -> tuple[dict[EncodedVariant, Row], EncodedVariant, EncodedVariant]:
    base, source = EncodedVariant(text="base"), EncodedVariant(text="source")
    states = torch.arange(length * channels, dtype=torch.float32).view(length, channels)
    return {base: Row(states=states), source: Row(states=states + 100)}, base, source


def test_surplus_rows_go_into_the_padding_and_missing_ones_come_from_it() -> None:
    read, base, source = fake()
    longer = Intervention(
        name="x", kind="x", base=base, pooled=base, patches=(Patch(rows=(1,), source=source, source_rows=(1, 2, 3)),)
    )
    states = compose(longer, read, padding=(3, 4, 5)).states
    assert states[:, 0].tolist() == [0, 102, 4, 6, 104, 106]  # the last two of the padding are given up
    shorter = replace(longer, patches=(Patch(rows=(1, 2), source=source, source_rows=(1,)),))
    assert compose(shorter, read, padding=(4, 5)).states[:, 0].tolist() == [0, 102, 110, 6, 8, 10]
    with pytest.raises(BadSetting, match="2 tokens more than in the prompt, which has 1 padding rows left"):
        compose(longer, read, padding=(5,))


def test_compose_changes_no_reading() -> None:
    read, base, source = fake()
    before = read[base].states.clone()
    compose(
        Intervention(
            name="x", kind="x", base=base, pooled=base, patches=(Patch(rows=(1,), source=source, source_rows=(1,)),)
        ),
        read,
        (),
    )
    assert torch.equal(read[base].states, before)


def test_special_rows_and_pooled_states_follow_their_policies() -> None:
    case = Case(sdxl())
    pair, ends = [(case.items[1], (case.items[0],))], list(case.make.special)
    full, empty = case.stock(PROMPT), case.stock("")
    without = read_all([case.make.without(case.items[0])], case.encode, LENGTH)[case.make.without(case.items[0])]
    assert without.pooled is not None
    for policy, rows, pooled in (
        ("keep", full.embeds[0], full.pooled[0]),
        ("empty", empty.embeds[0], empty.pooled[0]),
        ("masked", without.states, without.pooled),
    ):
        row = case.row(case.make.repair("repair:x", pair, how="masked", special=policy, pooled=policy))
        assert torch.equal(row.states[ends], rows[ends]) and row.pooled is not None
        torch.testing.assert_close(row.pooled, pooled, rtol=0, atol=1e-6)


def test_empty_reading_hides_nothing() -> None:
    assert EMPTY.is_plain and EncodedVariant(text="x", hidden=((),)).is_plain


def test_ends_never_lose_an_item_that_is_cleaned_itself() -> None:
    case = Case(sd(), "a cat and a dog and a bear", ("cat", "dog", "bear"))
    cat, dog, bear = case.items
    ends = list(case.make.special)
    both = [(cat, (dog, bear)), (dog, (cat, bear))]
    row = case.row(case.make.repair("repair:x", both, how="pairwise", special="masked")).states
    reading = case.make.without(bear)
    wanted = read_all([reading], case.encode, LENGTH)[reading].states
    assert torch.equal(row[ends], wanted[ends])
    every = [*both, (bear, (cat, dog))]
    whole = case.row(case.make.repair("repair:x", every, how="pairwise", special="masked")).states
    assert torch.equal(whole[ends], case.stock(case.prompt.text).embeds[0, ends])

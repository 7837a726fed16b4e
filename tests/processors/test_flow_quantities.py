"""What judged images say: hand-made scores with known answers, and error rates by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from t2ictl.processors.token_flow.analysis.estimates import Scores, carrier_set, leak_cell, leak_cells, token_cell
from t2ictl.processors.token_flow.analysis.repair import repair_leak
from t2ictl.processors.token_flow.conditions import Intervention
from t2ictl.processors.token_flow.items import Item
from tests.processors.flow_cases import Case
from tests.tiny import sd

N = 20
POLYSEME = (Item(words="circle", swap="ring"), Item(words="square", senses={"circle": "heart"}))


def column(*shares: float) -> np.ndarray:
    """For each question so many ones first."""
    return np.stack([np.arange(N) < share * N for share in shares], axis=1).astype(float)


def scores(**more: np.ndarray) -> Scores:
    found = {name: column(0, 0, 0) for name in ("keep:circle", "iso:circle", "keep:square", "iso:square", "empty")}
    found |= {"full": column(1, 1, 0), "cut:square|circle": column(1, 1, 0), "swap:circle": column(0, 1, 0)}
    return Scores(("circle", "square", "heart"), found | {key.replace("__", ":"): value for key, value in more.items()})


def by_pair(made: Scores) -> dict[tuple[str, str, str], Any]:
    items = Case(sd(), items=POLYSEME).items
    return {(cell.target, cell.source, cell.form): cell for cell in leak_cells(made, items)}


def test_matrix_has_all_pairs_and_impossible_cells_are_no_tests() -> None:
    cells = by_pair(scores())
    assert set(cells) == {
        ("circle", "square", "presence"),
        ("square", "circle", "presence"),
        ("square", "circle", "sense"),
    }
    early = cells["circle", "square", "presence"]
    assert not early.is_possible and early.verdict == "impossible" and early.adjusted is None
    assert cells["square", "circle", "presence"].verdict == "not shown"


def test_presence_leak_is_the_difference_to_the_isolated_item() -> None:
    cell = by_pair(scores(**{"keep__square": column(0.6, 1, 0), "iso__square": column(0.1, 1, 0)}))[
        "square", "circle", "presence"
    ]
    assert cell.leak.value == pytest.approx(0.5) and cell.verdict == "leaks"
    assert (cell.before.value, cell.clean.value) == (pytest.approx(0.6), pytest.approx(0.1))


def test_sense_leak_through_rows_and_on_other_ways() -> None:
    through_rows = by_pair(scores(full=column(1, 1, 0.8)))["square", "circle", "sense"]
    assert through_rows.verdict == "leaks" and through_rows.leak.value == pytest.approx(0.8)
    elsewhere = by_pair(scores(full=column(1, 1, 0.8), **{"cut__square|circle": column(1, 1, 0.8)}))
    cell = elsewhere["square", "circle", "sense"]
    assert cell.verdict == "denoiser" and cell.leak.value == 0 and cell.total is not None
    assert cell.total.value == pytest.approx(0.8)


def test_a_negative_difference_is_no_leak() -> None:
    cell = by_pair(scores(**{"keep__square": column(0, 1, 0), "iso__square": column(0.9, 1, 0)}))[
        "square", "circle", "presence"
    ]
    assert cell.leak.value == pytest.approx(-0.9) and cell.verdict == "not shown"


@pytest.mark.parametrize(
    ("alone", "without", "verdict"),
    [(1.0, 0.0, "carrier"), (0.0, 1.0, "open"), (0.0, 0.0, "open"), (0.2, 0.5, "open")],
)
def test_verdicts_of_tokens_need_intervals(alone: float, without: float, verdict: str) -> None:
    item = Case(sd(), items=("red circle", "square")).items[0]
    made = Scores(
        ("red circle",),
        {"empty": column(0), "full": column(1), "keep": column(alone), "drop": column(without)},
    )
    cell = token_cell(made, item, 2, "red", "keep", {"clean_pad": "drop"})
    # With 20 seeds nothing can be called redundant or no carrier: 0 of 20 does not rule out a tenth.
    assert cell.verdict == verdict
    assert cell.necessity["clean_pad"].value == pytest.approx(1 - without)


def test_many_seeds_can_show_that_a_token_is_redundant() -> None:
    item = Case(sd(), items=("red circle", "square")).items[0]
    many = {"empty": 0.0, "full": 1.0, "keep": 0.0, "drop": 1.0, "gone": 0.0}
    made = Scores(("red circle",), {name: np.full((60, 1), value) for name, value in many.items()})
    assert token_cell(made, item, 2, "red", "keep", {"clean_pad": "drop"}).verdict == "redundant"
    assert token_cell(made, item, 2, "red", "keep", {"clean_pad": "gone"}).verdict == "no carrier"


@pytest.mark.parametrize(
    ("keep", "pairs", "whole", "found"),
    [
        ({2: 0.1, 3: 0.95}, {}, 1.0, (3,)),
        ({2: 0.1, 3: 0.2}, {(2, 3): 0.95}, 1.0, (2, 3)),
        ({2: 0.1, 3: 0.2, 4: 0.1}, {(2, 3): 0.5, (2, 4): 0.2, (3, 4): 0.3}, 1.0, (2, 3, 4)),
        ({2: 0.05, 3: 0.05}, {}, 0.05, ()),
    ],
)
def test_carrier_set_is_the_smallest_that_does_it(keep: Any, pairs: Any, whole: float, found: tuple[int, ...]) -> None:
    assert carrier_set(keep, pairs, whole) == found


class Tossing:
    """Scores of images that are not made: each condition has its rate of leak, and everything else is seen."""

    def __init__(self, rate: Any, seed: int, seeds: tuple[int, int] = (8, 12)) -> None:
        self._rate, self._generator, self._seeds = rate, np.random.default_rng(seed), seeds
        self._known: dict[tuple[str, bool], np.ndarray] = {}

    def __call__(self, conditions: Sequence[Intervention], is_confirmation: bool = False) -> Scores:
        """Toss once for each condition."""
        for each in conditions:
            key = each.name, is_confirmation
            if key not in self._known:
                leak = self._generator.random(self._seeds[is_confirmation]) < self._rate(each.name)
                self._known[key] = np.stack([np.ones_like(leak), np.ones_like(leak), leak], axis=1).astype(float)
        named = {each.name: self._known[each.name, is_confirmation] for each in conditions}
        return Scores(("circle", "square", "heart"), named)


def outcome_of(case: Case, score: Tossing) -> Any:
    circle, square = case.items
    first = score([case.make.whole(), case.make.cut(square, circle)])
    cell = leak_cell(
        square, circle, "sense", "heart", first.of("full", "heart"), first.of("cut:square|circle", "heart")
    )
    return repair_leak(case.make, case.items, cell, score)


def test_repairs_of_nothing_are_accepted_in_at_most_one_of_twenty_cases() -> None:
    case, runs = Case(sd(), items=POLYSEME), 400
    accepted = sum(outcome_of(case, Tossing(lambda name: 0.5, seed)).accepted for seed in range(runs))
    # The exact test of a coin that is the same before and after; 3 standard errors above its level.
    assert accepted / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_a_strong_leak_is_found_and_repaired() -> None:
    case, runs = Case(sd(), items=POLYSEME), 60
    found = [outcome_of(case, Tossing(lambda name: 0.9 if name == "full" else 0.1, seed)) for seed in range(runs)]
    assert sum(each.accepted for each in found) >= 0.9 * runs
    good = next(each for each in found if each.accepted)
    assert good.settings()["items"] == ("square",) and good.settings()["sources"] == ("circle",)
    assert good.before.value > good.after.value and good.before.count == 12


def test_a_repair_that_loses_items_is_refused() -> None:
    case = Case(sd(), items=POLYSEME)

    class Losing(Tossing):
        """The repair removes the leak and the square."""

        def __call__(self, conditions: Sequence[Intervention], is_confirmation: bool = False) -> Scores:
            made = super().__call__(conditions, is_confirmation)
            for name, values in made.by_condition.items():
                if name.startswith("repair"):
                    values[:, 1] = 0.0
            return made

    found = outcome_of(case, Losing(lambda name: 1.0 if name == "full" else 0.0, 1))
    assert not found.accepted and "costs 100%" in found.reason and found.settings() == {}


def test_what_the_rows_have_not_read_is_not_repaired() -> None:
    case = Case(sd(), items=(Item(words="circle", senses={"square": "heart"}), Item(words="square")))
    circle, square = case.items
    cell = leak_cell(circle, square, "sense", "heart", np.ones(8), np.zeros(8))
    found = repair_leak(case.make, case.items, cell, Tossing(lambda name: 0.5, 0))
    assert not found.accepted and found.reason.startswith("impossible") and found.chosen is None


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_presence_leak_is_seen_in_the_cleaned_rows_alone(strength: float) -> None:
    """What is judged after the repair is the item's own rows, cleaned, and nothing else of the prompt."""
    case, composed = Case(sd(), items=("circle", "square")), {}

    def score(conditions: Sequence[Intervention], is_confirmation: bool = False) -> Scores:
        composed.update({each.name: case.row(each).states for each in conditions})
        return Scores(("circle", "square"), {each.name: np.ones((8, 2)) for each in conditions})

    circle, square = case.items
    repair_leak(case.make, case.items, leak_cell(square, circle, "presence", "circle", np.ones(8), np.zeros(8)), score)
    name = f"kept repair:square|circle, masked, strength {strength:g}, ends keep"
    kept, clean = (case.row(each).states for each in (case.make.keep("k", square.rows), case.make.isolate(square)))
    torch.testing.assert_close(composed[name], kept + strength * (clean - kept), rtol=0, atol=1e-6)

"""Repairs of leaks: error rates by simulation, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from t2ictl.processors.token_flow.analysis.estimates import Scores, leak_cell
from t2ictl.processors.token_flow.analysis.repair import repair_leak
from t2ictl.processors.token_flow.conditions import Intervention
from t2ictl.processors.token_flow.items import Item
from tests.processors.token_flow.flow_cases import POLYSEME, Case
from tests.tiny import sd


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

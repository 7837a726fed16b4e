"""What judged images say: hand-made scores with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from t2ictl.processors.token_flow.analysis.estimates import Scores, carrier_set, leak_cells, token_cell
from tests.processors.token_flow.flow_cases import POLYSEME, Case
from tests.tiny import sd

N = 20


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

"""The published table of controls with nothing to do is what they do, and no cell of it is silent."""

from __future__ import annotations

import pytest

import t2ictl
from t2ictl.benchmarks.studies.idle import SITUATIONS, cells, table, tried
from tests.processors.composition_cases import page_table
from tests.tiny import sd

PAGE = "idle.md"
#: One control of each kind: a loss, a loss of binding, edits, text embeddings.
FAST = ("attention_segregation", "linguistic_binding", "structured_guidance", "token_flow")


def published() -> dict[tuple[str, str], str]:
    """What the page tells, by the names of control and situation."""
    head, _, *rows = (
        [cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in page_table(PAGE).splitlines()
    )
    names = (row[0].strip().strip("*").replace(" ", "_") for row in rows)
    return {
        (name, situation): verdict
        for name, row in zip(names, rows, strict=True)
        for situation, verdict in zip(head[1:], row[1:], strict=True)
    }


def test_the_page_has_every_control_and_situation_and_no_silent_cell() -> None:
    told = published()
    situations = [each.name for each in SITUATIONS]
    assert list(told) == [(name, situation) for name in t2ictl.list_controls() for situation in situations]
    assert set(told.values()) == {"warns", "acts", "refused", "–"}


@pytest.mark.parametrize("name", FAST)
def test_the_page_is_what_small_pipelines_do(name: str) -> None:
    cls, told = t2ictl.list_controls()[name], published()
    fast = [each for each in SITUATIONS if each.name in ("window without a step", "one object", "no attribute")]
    found = {each.name: tried(sd(), cls, each) for each in fast}
    assert found == {each.name: told[name, each.name] for each in fast}


@pytest.mark.slow
def test_the_whole_page_is_what_is_printed() -> None:
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    assert table(list(cells(pipe))) == page_table(PAGE), "print it anew: t2ictl bench study idle"


@pytest.mark.slow
def test_no_cell_is_silent_on_another_model() -> None:
    """Losses may be met there where they are not here, and the other way round; both are told."""
    pipe = sd()
    pipe.set_progress_bar_config(disable=True)
    assert {verdict for _, _, verdict in cells(pipe)} == {"warns", "acts", "refused", "–"}

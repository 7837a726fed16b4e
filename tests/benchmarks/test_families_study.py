"""The tables of docs/transformers.md are those that the command prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import t2ictl
from t2ictl.benchmarks.studies.families import acting_table, layers_table, main

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"


@pytest.mark.parametrize("table", [acting_table, layers_table])
def test_the_page_has_the_table(table: Any) -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "print it anew: t2ictl bench study families"


def test_it_prints_both(capsys: Any) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == f"{acting_table()}\n\n{layers_table()}\n"


def test_every_need_is_offered_by_some_family() -> None:
    offered = frozenset().union(*(each.offers for each in t2ictl.list_families().values()))
    for name, cls in t2ictl.list_controls().items():
        assert cls.needs, f"{name} needs nothing, so it would run where it cannot act"
        assert cls.needs <= offered, name

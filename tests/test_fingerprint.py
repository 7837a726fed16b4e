"""The table of fingerprints: it holds the cases that are run, each once, and a case is the same each time."""

from __future__ import annotations

import re

from tests.fingerprint import TABLE, cases, head, line

ROWS = TABLE.read_text(encoding="utf-8").splitlines()
CHEAP = (
    "sd | none | single | recorded",
    "sd | attention_segregation | single | not recorded",
    "sdxl | embeddings of token flow",
)


def test_the_committed_table_holds_the_cases_that_are_run_and_no_others() -> None:
    labels = [label for label, _ in cases()]
    assert [row[25:] for row in ROWS[1:]] == labels
    assert len(set(labels)) == len(labels) > 200


def test_every_row_is_a_hash_or_a_named_refusal() -> None:
    wrong = [row for row in ROWS[1:] if not re.match(r"([0-9a-f]{24}|refused: [A-Z][A-Za-z]+ *) \w", row)]
    assert wrong == []
    assert re.fullmatch(r"# \S+, \S+; torch \S+, diffusers \S+, transformers \S+", ROWS[0])
    assert re.fullmatch(r"# \S+, \S+; torch \S+, diffusers \S+, transformers \S+", head())


def test_a_case_has_the_same_hash_each_time_and_another_than_other_cases() -> None:
    chosen = {label: run for label, run in cases() if label in CHEAP}
    first, second = ([line(label, run) for label, run in chosen.items()] for _ in range(2))
    assert first == second
    assert len({row[:24] for row in first}) == len(CHEAP)

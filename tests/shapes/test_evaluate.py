from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t2ictl.benchmarks.shapes.evaluate import evaluate, words
from t2ictl.benchmarks.shapes.evaluate.shares import wilson
from t2ictl.shapes import expect, instrument_id, judge
from tests.shapes.scenes import image_of

PROMPT = "a red circle and a blue square"


def _judged(prompt: str, *drawn: tuple[str, ...]) -> list[Any]:
    return [(expect(prompt), judge(image_of(*phrases), prompt)) for phrases in drawn]


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(hits, total) == pytest.approx((low, high), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_summary_counts_outcomes_and_failures() -> None:
    drawn = [("a red circle", "a blue square"), ("a blue circle", "a red square"), ("a red circle",)]
    row = evaluate.summarize("pair", _judged(PROMPT, *drawn))
    assert (row["n"], row["prompts"]) == (3, 1)
    assert row["is_strict"]["share"] == pytest.approx(1 / 3, abs=1e-4)
    assert row["has_all"]["share"] == pytest.approx(2 / 3, abs=1e-4)
    assert "is_related" not in row
    assert row["failures"] == {"swap": 1, "missing": 1}
    assert row["semantic_share_of_failures"] == 1
    assert evaluate.show(row).endswith("| - | swap 1, missing 1 |")
    assert "of 2 failures" in evaluate.show_failures(row)
    assert "swap 50 %, missing 50 %" in evaluate.show_failures(row)


def test_summary_of_relations() -> None:
    row = evaluate.summarize(
        "relation", _judged("a red circle left of a blue square", ("a red circle", "a blue square"))
    )
    assert row["is_related"]["hits"] in (0, 1)


def test_every_word_has_its_accuracy() -> None:
    prompt = "a small red circle with a blue dot and a round green ring"
    judged = _judged(
        prompt,
        ("a small red circle with a blue dot", "a green ring"),
        ("a red circle with a blue bar", "a yellow ring"),
        ("a red square with a blue dot", "a green ring"),
    )
    counts = words.count_words(judged)
    assert {word: tuple(count) for (_, word), count in counts.items()} == {
        "circle": (2, 3),
        "small": (1, 3),
        "red": (2, 3),
        "dot": (1, 3),
        "ring": (3, 3),
        "green": (2, 3),
        "round": (3, 3),
    }
    table = words.words_table(judged)
    assert "| circle | shape | 3 | 66.7 [" in table
    assert "bolt" not in table
    bolts = words.count_words(_judged("a bolt and a ring", ("a red star", "a blue ring")))
    assert tuple(bolts["shape", "bolt"]) == (1, 1)
    beside = words.count_words(_judged("a red circle above a blue square", ("a red circle",)))
    assert tuple(beside["relation", "above"]) == (0, 1)


def test_trials_never_repeat_a_prompt_with_a_seed() -> None:
    trials = evaluate.trials("single", "tune", 30, 2)
    assert len({(item.prompt, seed) for item, seed in trials}) == 30
    assert len({seed for _, seed in trials}) == 30


def test_command_prints_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--prompts", "2", "--steps", "2", "--kinds", "pair", "--words", "--keep", str(tmp_path / "pictures")]
    assert evaluate.main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    output = capsys.readouterr().out
    assert output.startswith(instrument_id())
    assert "| pair | 2 | 2 |" in output
    assert "| word | kind | asked | right |" in output
    assert json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8"))["n"] == 2
    assert len(list((tmp_path / "pictures").iterdir())) == 2

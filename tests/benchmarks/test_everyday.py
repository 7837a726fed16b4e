"""The suite of our own prompts: what it asks for, and that it runs with no files."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2ictl.benchmarks.suites.base import find_suite
from t2ictl.benchmarks.suites.everyday import PROMPTS
from t2ictl.errors import BadSetting
from t2ictl.prompts.grammar import group
from tests.benchmarks.runs import bench


def test_prompts_are_different_and_as_many_as_said() -> None:
    every = [prompt for prompts in PROMPTS.values() for prompt in prompts]
    assert len(every) == len(set(every)) == 48 and {len(prompts) for prompts in PROMPTS.values()} == {12}


@pytest.mark.parametrize("kind", PROMPTS)
def test_parser_finds_the_objects(kind: str) -> None:
    least = 3 if kind == "three" else 2
    for prompt in PROMPTS[kind]:
        assert len(group(prompt)) >= least, prompt


def test_a_longer_suite_begins_with_the_shorter_one() -> None:
    suite = find_suite("everyday")
    assert suite.kinds() == tuple(PROMPTS)
    assert suite.items("parts", "tune", 5) == suite.items("parts", "report", 12)[:5]
    with pytest.raises(BadSetting, match="only 12 color prompts"):
        suite.items("color", "tune", 13)
    with pytest.raises(BadSetting, match="no category 'pair'"):
        suite.items("pair", "tune", 1)


def test_it_runs_without_files(tmp_path: Path) -> None:
    options = ("--suite", "everyday", "--kinds", "color,parts", "--prompts", "2", "--limit", "2")
    assert bench(tmp_path / "run", *options, arms="plain") == 0

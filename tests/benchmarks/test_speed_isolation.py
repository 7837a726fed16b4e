"""The work of isolation and reposition on real layer shapes: operations are counted, times are not asserted."""

from __future__ import annotations

import pytest

import t2ictl
from t2ictl import Scene, Subject
from t2ictl.benchmarks.speed.isolation import SHARES, generations, target_work
from t2ictl.cli.app import main


@pytest.mark.parametrize("name", ["SDXL, 1024 x 1024", "SD 1.5, 512 x 512"])
@pytest.mark.parametrize("subjects", list(SHARES))
def test_operations_are_those_of_the_formula_and_at_most_1_15_of_plain(name: str, subjects: int) -> None:
    """Within 2 % in every layer; the formula is worked once more from the shares that were asked for."""
    share, different = SHARES[subjects], subjects * (subjects - 1)
    apart = target_work(name, subjects, reads=False)
    reads = target_work(name, subjects, reads=True)
    half = target_work(name, subjects, reads=True, dropout=0.5)
    for work in (apart, reads, half):
        assert work.worst < 0.02 and work.counted == pytest.approx(work.formula, rel=0.02) and work.counted <= 1.15
    assert apart.counted == pytest.approx(1 - different * share**2, rel=0.02)
    assert reads.counted - apart.counted == pytest.approx(2 * (half.counted - apart.counted), rel=0.1)
    assert apart.counted < half.counted < reads.counted


def test_generations_of_the_formula_are_those_of_a_story() -> None:
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    cast = [Subject(name=name, prompt=f"a {name}") for name in ("circle", "star")]
    scenes = [Scene(prompt="a circle and a star", seed=seed) for seed in range(3)]
    wanted = generations(2, 3)
    assert wanted["resample"] == 5 and wanted["published code"] == 18
    told = t2ictl.story(pipe, cast, scenes, steps=2)
    assert sum(told.generations.values()) == wanted["resample"] == told.cost.forwards / (2 * 2)
    told = t2ictl.story(pipe, cast, scenes, steps=2, places="rehearsal", rehearsal=1.0)
    assert sum(told.generations.values()) == wanted["resample, rehearsed"] == told.cost.forwards / (2 * 2)


def test_the_command_prints_a_row_for_each_model_and_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", "isolation", "--pairs", "0"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| SD")]
    assert len(rows) == 9 and all(line.count("(") == 3 for line in rows)

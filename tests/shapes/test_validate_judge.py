from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from t2ictl.benchmarks.shapes.evaluate import validate_judge
from t2ictl.benchmarks.shapes.evaluate.cases import TRUE
from t2ictl.benchmarks.shapes.evaluate.mistakes import WRONG
from t2ictl.errors import BadSetting
from t2ictl.shapes.verdict import FAILURES
from tests.shapes.scenes import image_of


@pytest.mark.parametrize("name", [*TRUE, *WRONG])
def test_the_judge_is_right_on_drawn_images(name: str) -> None:
    """Thirty a kind; ``make test-slow`` has enough of them for a rate."""
    as_drawn, softened, said = validate_judge.count_right(name, 30, 1)
    assert as_drawn == 30, said
    assert softened >= 28


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRUE, *WRONG])
def test_the_rate_on_drawn_images_is_as_aimed_at(name: str) -> None:
    as_drawn, softened, said = validate_judge.count_right(name, 1000, 2)
    assert as_drawn >= validate_judge.AIM * 1000, said
    assert softened >= 970


def test_every_failure_has_a_counterexample() -> None:
    assert tuple(WRONG) == FAILURES
    for name, maker in WRONG.items():
        assert maker(np.random.default_rng(0)).failure == name


def test_a_wrong_verdict_is_not_counted() -> None:
    case = TRUE["single"](np.random.default_rng(0))
    verdict = validate_judge.judge_expectation(np.full((64, 64, 3), 238, np.uint8), case.asked)
    assert not validate_judge.is_judged_right(verdict, case)


def _write(folder: Path, name: str, entries: list[dict[str, object]]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")


def test_labels_name_files_or_cells(tmp_path: Path) -> None:
    right, wrong = image_of("a red star"), image_of("a blue star")
    right.save(tmp_path / "one.png")
    sheet = np.concatenate([np.concatenate([np.asarray(right), np.asarray(wrong)], axis=1)] * 2)
    validate_judge.Image.fromarray(sheet).save(tmp_path / "sheet.png")
    _write(tmp_path, "alone", [{"file": "one.png", "prompt": "a red star", "reading": "right"}])
    _write(
        tmp_path,
        "sheet",
        [
            {"cell": 2, "prompt": "a red star", "reading": "right"},
            {"cell": 1, "prompt": "a red star", "reading": "color"},
            {"cell": 3, "prompt": "a red star", "reading": "wrong"},
            {"cell": 3, "prompt": "a red star", "reading": "leak"},
            {"cell": 0, "prompt": "a red star", "reading": "missing"},
        ],
    )
    readings = validate_judge.read_labels(tmp_path)
    assert [item.name for item in readings[:2]] == ["one.png", "sheet.png 2"]
    same_outcome, same_kind, lines = validate_judge.compare(readings)
    assert (same_outcome, same_kind) == (5, 4)
    assert lines[0] == "sheet.png 3: 'a red star' read as leak, judged color"


def test_unknown_readings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="No labels"):
        validate_judge.read_labels(tmp_path)
    _write(tmp_path, "bad", [{"file": "one.png", "prompt": "a red star", "reading": "nice"}])
    with pytest.raises(BadSetting, match="nice"):
        validate_judge.read_labels(tmp_path)


def test_command_prints_tables_and_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parent / "data"
    assert validate_judge.main(["--scenes", "1", "--labels", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(TRUE) + len(WRONG) + 2
    assert any(line.startswith("Right or wrong as read: 19") for line in lines)

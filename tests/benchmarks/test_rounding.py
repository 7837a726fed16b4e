"""The study of rounding: images of batches beside the same made alone."""

from __future__ import annotations

import pytest

from t2ictl.benchmarks.studies.rounding import differences, main

PROMPTS = ["a red circle and a blue square", "a green star"]


def test_without_a_control_batches_differ_by_rounding_alone() -> None:
    assert all(each <= 1 for each in differences([], 2, PROMPTS)) and len(list(differences([], 1, PROMPTS))) == 2


def test_an_odd_number_of_prompts_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--prompts", "3"])
    assert ended.value.code == 2 and "even number" in capsys.readouterr().err

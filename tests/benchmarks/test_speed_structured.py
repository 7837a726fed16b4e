"""The work of structured guidance on the layer shapes of SD 1.5: operations are counted, times are not asserted."""

from __future__ import annotations

import sys

import pytest

from t2ictl.benchmarks.speed.structured import main, operations


def test_averaged_values_cost_what_plain_attention_costs() -> None:
    few, many = (operations("SD 1.5, 512 x 512", phrases) for phrases in (2, 4))
    assert few["values"] == pytest.approx(1.0, abs=1e-4) and many["values"] == pytest.approx(1.0, abs=1e-4)
    # One more attention over 77 keys for each phrase, in one of two rows.
    assert 1.004 < few["keys"] < 1.008 and many["keys"] - 1 == pytest.approx(2 * (few["keys"] - 1), rel=0.02)
    assert few["values"] + few["encoding"] < few["published values"] < 1.01
    assert many["encoding"] == pytest.approx(2 * few["encoding"], rel=0.01) and many["encoding"] < 1e-3


def test_the_command_prints_a_row_for_each_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["structured", "--pairs", "0", "--phrases", "1"])
    assert main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "1024" in line or "512" in line]
    assert [line.split("|")[2].strip() for line in rows] == ["1", "1"]

"""A run that was killed and resumed gives the bytes of one that was not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.runs import fingerprint
from tests.repository.sources import ROOT


@pytest.mark.parametrize("kills, prompts", [(2, 3), pytest.param(10, 8, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_no_trace(kills: int, prompts: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.kill_runs", str(tmp_path), str(kills), str(prompts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == kills
    whole, killed = fingerprint(tmp_path / "whole"), sorted(tmp_path.glob("killed-*"))
    assert len(whole) == 1 + prompts * 2 * 4 and killed
    for out in killed:
        assert fingerprint(out) == whole

"""The batch size changes rounding and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from t2ictl.cli.app import main

ARMS = "plain,attention_segregation,random:attention_segregation"
OUTCOMES = ("has_all", "is_bound", "has_no_extra", "is_well_formed", "is_strict")


def compare(folder: Path, prompts: int, steps: int) -> tuple[int, float, int]:
    """Run at batch sizes 1 and 8; gives the largest pixel difference, the share of equal verdicts, and images."""
    tables = []
    for batch in (1, 8):
        options = ("--prompts", str(prompts), "--seeds", "2", "--steps", str(steps), "--batch", str(batch))
        out = str(folder / str(batch))
        assert main(["bench", "run", "--arms", ARMS, *options, "--device", "cpu", "--out", out]) == 0
        tables.append(pd.read_parquet(folder / str(batch) / "results.parquet"))
    alone, together = tables
    assert alone[["arm", "prompt_id", "seed"]].equals(together[["arm", "prompt_id", "seed"]])
    pixels = [[np.asarray(Image.open(folder / batch / name), int) for name in alone.image] for batch in ("1", "8")]
    apart = max(int(np.abs(one - other).max()) for one, other in zip(*pixels, strict=True))
    verdicts = [table[[*OUTCOMES, "failure"]].fillna("") for table in tables]
    return apart, float((verdicts[0] == verdicts[1]).all(axis=1).mean()), len(alone)


@pytest.mark.parametrize("prompts, steps", [(4, 2), pytest.param(70, 6, marks=pytest.mark.slow)])
def test_batches_of_one_and_eight_agree(prompts: int, steps: int, tmp_path: Path) -> None:
    apart, equal, count = compare(tmp_path, prompts, steps)
    assert count == prompts * 2 * 3
    assert apart <= 1
    assert equal >= 0.995

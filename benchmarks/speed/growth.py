"""Whether controlled runs hold on to memory: over the runs of a program, and over the steps of a run.

Two figures. Bytes of all tensors that Python can reach are exact. The resident set of the process is what a user sees,
and jitters with the allocator; its slope is that of a least-squares line over the runs after the fourth::

    python -m t2ictl.benchmarks.speed.growth
"""

from __future__ import annotations

import argparse
import gc
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import t2ictl
from t2ictl import Control
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.processors.structured_guidance.control import StructuredGuidance
from t2ictl.processors.token_merging.control import TokenMerging

__all__ = ["main", "over_runs", "over_steps", "slope"]

PROMPT = "a red circle and a blue square"
#: Controls of the measured runs, by label.
CASES: dict[str, Callable[[], list[Control]]] = {
    "plain": list,
    "A-STAR, maps recorded": lambda: [AttentionSegregation()],
    "Attend-and-Excite, refined": lambda: [AttendAndExcite()],
    "A-STAR, structured guidance, token merging": lambda: [
        AttentionSegregation(), StructuredGuidance(), TokenMerging(),
    ],
}  # fmt: skip
SETTLED = 5  # runs after which allocators and caches have what they want


def _reachable() -> int:
    """Bytes of the storages of all tensors that Python can reach."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking some lazy modules for their class warns
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


def _resident() -> float:
    """MiB of the process that are in memory; nothing where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def over_runs(pipe: Any, controls: list[Control], runs: int = 20, steps: int = 5) -> tuple[list[int], list[float]]:
    """Run the same again and again.

    Args:
        pipe: the pipeline.
        controls: the controls; maps are recorded too.
        runs: how often.
        steps: denoising steps of each.

    Returns:
        After each run the bytes of reachable tensors, and the resident set (MiB).
    """
    reachable, resident = [], []
    for run in range(runs):
        t2ictl.generate(pipe, PROMPT, controls, seed=run, steps=steps, record=bool(controls))
        reachable.append(_reachable())
        resident.append(_resident())
    return reachable, resident


def over_steps(pipe: Any, controls: list[Control], steps: int = 12) -> list[int]:
    """Look after each step of a run.

    Args:
        pipe: the pipeline.
        controls: the controls; nothing is recorded, since a record has room for all steps from the first.
        steps: denoising steps.

    Returns:
        Bytes of reachable tensors after each step.
    """
    seen: list[int] = []
    t2ictl.generate(pipe, PROMPT, controls, seed=1, steps=steps, on_step=lambda _: seen.append(_reachable()))
    return seen


def slope(values: list[float]) -> float:
    """Give the growth a run, over the runs from the fifth on.

    Args:
        values: one a run.

    Returns:
        Slope of the least-squares line.

    Example:
        >>> round(slope([9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0]), 6)
        1.0
    """
    kept = values[SETTLED - 1 :]
    return float(np.polyfit(range(len(kept)), kept, 1)[0])


def main() -> int:
    """Print the table.

    Returns:
        Exit status 0.
    """
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    for name, make in CASES.items():
        reachable, resident = over_runs(pipe, make())
        steps = over_steps(pipe, make())
        a_run = (reachable[-1] - reachable[SETTLED - 1]) / (len(reachable) - SETTLED)
        a_step = (steps[-1] - steps[1]) / (len(steps) - 2)
        print(
            f"{name}: runs 5 to 20, resident set {slope(resident):+.3f} MiB a run, reachable tensors {a_run:+.1f} "
            f"bytes a run; steps 2 to {len(steps)}, reachable tensors {a_step:+.1f} bytes a step",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

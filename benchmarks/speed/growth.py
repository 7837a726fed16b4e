"""Whether controlled runs hold on to memory: over the runs of a program, and over the steps of a run.

Two figures. Bytes of all tensors that Python can reach are exact. The resident set of the process is what a user sees,
and jitters with the allocator; its slope is that of a least-squares line over the runs after the fourth::

    t2ictl bench speed growth
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import t2ictl
from t2ictl import Control
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import embedded_model
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.processors.structured_guidance.control import StructuredGuidance
from t2ictl.processors.token_merging.control import TokenMerging

__all__ = ["over_runs", "over_steps", "run", "slope"]

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
    for seed in range(runs):
        t2ictl.generate(pipe, PROMPT, controls, seed=seed, steps=steps, record=bool(controls))
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
    """Compute the growth a run, over the runs from the fifth on.

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


def run() -> None:
    """Print a row for each case."""
    head = ("run", "resident set, runs 5 to 20 (MiB a run)", "reachable tensors (bytes a run)")
    print_table((*head, "reachable tensors, steps 2 to 12 (bytes a step)"), _rows())


def _rows() -> Iterator[tuple[str, ...]]:
    pipe = embedded_model()
    for name, make in CASES.items():
        reachable, resident = over_runs(pipe, make())
        steps = over_steps(pipe, make())
        a_run = (reachable[-1] - reachable[SETTLED - 1]) / (len(reachable) - SETTLED)
        a_step = (steps[-1] - steps[1]) / (len(steps) - 2)
        yield name, f"{slope(resident):+.3f}", f"{a_run:+.1f}", f"{a_step:+.1f}"

"""Measure how much of the rounding of a batch an image shows: ``t2ictl bench study rounding``.

The same images are made in batches of two and each alone, on the embedded model, in float32, and compared pixel by
pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import t2ictl
from t2ictl import Control
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.runs.plan import make_plan, plan_items
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation

__all__ = ["differences", "main"]

#: What is measured, and for how many steps.
CASES: dict[str, tuple[list[Control], int]] = {
    "no control": ([], 20),
    "`AttendAndExcite()`": ([AttendAndExcite()], 20),
    "`AttentionSegregation()`": ([AttentionSegregation()], 20),
    '`AttentionSegregation(preset="none")`': ([AttentionSegregation(preset="none")], 20),
    "the same without retention": ([AttentionSegregation(preset="none", retention=0.0)], 20),
    "the same in 6 steps": ([AttentionSegregation(preset="none")], 6),
}
SEED, GUIDANCE = 1000, 3.0


def differences(controls: Sequence[Control], steps: int, prompts: Sequence[str]) -> Iterator[int]:
    """Make each two prompts together and alone.

    Args:
        controls: what acts.
        steps: denoising steps.
        prompts: an even number of prompts.

    Yields:
        For each prompt the largest difference of a value of a pixel (0 to 255).
    """
    pipe = t2ictl.load("shapes", device="cpu")
    for first in range(0, len(prompts), 2):
        both = prompts[first : first + 2]
        seed = SEED + first
        asked: dict[str, Any] = {"steps": steps, "guidance_scale": GUIDANCE}
        together = t2ictl.generate(pipe, both, controls, seed=seed, **asked).images
        for number, prompt in enumerate(both):
            alone = t2ictl.generate(pipe, prompt, controls, seed=seed + number, **asked).image
            yield int(np.abs(np.asarray(alone, int) - np.asarray(together[number], int)).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each case.

    Args:
        arguments: of the command line.

    Returns:
        Exit status 0.
    """
    parser = ArgumentParser(prog="t2ictl bench study rounding", description=__doc__)
    parser.add_argument("--prompts", type=int, default=50, help="number of tuning prompts, an even one")
    count = parser.parse_args(arguments).prompts
    if count < 2 or count % 2:
        parser.error("--prompts has to be an even number from 2")
    plan = make_plan({"arms": "plain", "split": "tune", "kinds": ["pair"], "prompts": {"pair": count}})
    prompts = [item.prompt for item in plan_items(plan)]
    found = {name: sorted(differences(controls, steps, prompts)) for name, (controls, steps) in CASES.items()}
    rows = (
        (name, str(len(each)), str(sum(value <= 1 for value in each)), str(each[len(each) // 2]), str(each[-1]))
        for name, each in found.items()
    )
    print_table(("control", "images", "within 1/255", "median", "largest"), rows)
    return 0

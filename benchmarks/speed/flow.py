"""What batching an analysis saves: ``python -m t2ictl.benchmarks.speed.flow``.

All conditions of a prompt over shared noise, in batches, against one call of the pipeline for each condition and seed
as the released code of Follow the Flow makes them; the images are the same up to rounding. On a CPU a
batch saves what a call costs beside its arithmetic; on a GPU it also fills the device.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import torch

import t2ictl
from t2ictl.benchmarks.speed.pairs import interval, paired_ratios
from t2ictl.generation import Request
from t2ictl.processors.token_flow.analysis.scoring import Scoring
from t2ictl.processors.token_flow.conditions import Intervention

__all__ = ["main"]

PROMPT = "a red circle and a blue square"


def _conditions(scoring: Scoring) -> list[Intervention]:
    make = scoring.conditions
    found = [make.whole(), make.nothing()]
    for item in scoring.items:
        found += [make.keep(f"keep:{item.name}", item.rows), make.isolate(item)]
        found.append(make.remove(f"drop:{item.name}", item.rows))
    return found


def _run(pipe: Any, request: Request, seeds: int, batch: int) -> None:
    scoring = Scoring(pipe, request, ["circle", "square"], None, seeds=range(seeds), batch=batch)
    scoring.images.of(scoring.cells(_conditions(scoring), scoring.seeds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ratio of the times.

    Args:
        arguments: command-line arguments; None for those of the process.

    Returns:
        Exit status 0.
    """
    parser = argparse.ArgumentParser(prog="python -m t2ictl.benchmarks.speed.flow", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="how often both ways are timed, in turns")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    pipe = t2ictl.load("shapes", device=options.device)
    request = Request(prompt=PROMPT, steps=options.steps, guidance_scale=3.0)
    single, batched = (functools.partial(_run, pipe, request, options.seeds, size) for size in (1, options.batch))
    found = paired_ratios(single, {f"batches of {options.batch}": batched}, options.pairs)
    images = f"{8 * options.seeds} images of {options.steps} steps"
    print(f"{images}, {torch.get_num_threads()} threads, {options.device}; time over that of one call an image")
    for label, ratios in found.items():
        low, high = interval(ratios)
        print(f"{label}: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

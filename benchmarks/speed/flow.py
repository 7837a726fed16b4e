"""What batching an analysis saves: ``t2ictl bench speed flow``.

All conditions of a prompt over shared noise, in batches, against one call of the pipeline for each condition and seed
as the released code of Follow the Flow makes them; the images are the same up to rounding. On a CPU a
batch saves what a call costs beside its arithmetic; on a GPU it also fills the device.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from t2ictl.benchmarks.speed.models import embedded_model
from t2ictl.benchmarks.speed.pairs import device_and_dtype, paired_ratios, print_ratios
from t2ictl.generation import Request
from t2ictl.processors.token_flow.analysis.scoring import Scoring
from t2ictl.processors.token_flow.conditions import Intervention

__all__ = ["run"]

PROMPT = "a red circle and a blue square"


def _conditions(scoring: Scoring) -> list[Intervention]:
    make = scoring.conditions
    found = [make.whole(), make.nothing()]
    for item in scoring.items:
        found += [make.keep(f"keep:{item.name}", item.rows), make.isolate(item)]
        found.append(make.remove(f"drop:{item.name}", item.rows))
    return found


def _analyze(pipe: Any, request: Request, seeds: int, batch: int) -> None:
    scoring = Scoring(pipe, request, ["circle", "square"], None, seeds=range(seeds), batch=batch)
    scoring.images.of(scoring.cells(_conditions(scoring), scoring.seeds))


def run(pairs: int = 5, seeds: int = 4, steps: int = 20, batch: int = 16, device: str | None = None) -> None:
    """Print the ratio of the times.

    Args:
        pairs: how often both ways are timed, in turns.
        seeds: images of each condition.
        steps: denoising steps.
        batch: images of one call.
        device: of torch; None for CUDA where there is one.
    """
    device, _ = device_and_dtype(device)
    pipe = embedded_model(device)
    request = Request(prompt=PROMPT, steps=steps, guidance_scale=3.0)
    single, batched = (functools.partial(_analyze, pipe, request, seeds, size) for size in (1, batch))
    found = paired_ratios(single, {f"batches of {batch}": batched}, pairs)
    threads = torch.get_num_threads()
    title = f"{8 * seeds} images of {steps} steps, {device}, {threads} {'thread' if threads == 1 else 'threads'}"
    print_ratios(title, found, base="one call an image")

"""What both training stages share: the clock, atomic checkpoints, the log, rates and averages.

Nothing random lives in a checkpoint: the batch and the noise of update ``n`` are functions
of the seed, the stage and ``n`` alone, so a resumed run sees exactly what an uninterrupted
one would have seen.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: One number a purpose, so that no two streams of randomness are the same.
STREAM = {
    "scene": 1,
    "autoencoder": 2,
    "denoiser": 3,
    "weights": 4,
    "frozen": 5,
    "validation": 6,
    "clip": 21,
    "clip-2": 22,
    "t5": 23,
}


def stream(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Make the generator of one update or one scene.

    Args:
        seed: of the recipe.
        purpose: a key of :data:`STREAM`.
        index: update or scene, from 0.

    Returns:
        A fresh generator, the same for the same arguments.

    Example:
        >>> bool(stream(0, "scene", 5).random() == stream(0, "scene", 5).random())
        True
    """
    return np.random.default_rng([seed, STREAM[purpose], index])


def torch_stream(generator: np.random.Generator) -> torch.Generator:
    """Make a torch generator from the next draw of a NumPy one.

    Args:
        generator: gives one draw.

    Returns:
        A CPU generator.

    Example:
        >>> torch_stream(np.random.default_rng(0)).device.type
        'cpu'
    """
    return torch.Generator().manual_seed(int(generator.integers(2**62)))


@dataclass(kw_only=True)
class Deadline:
    """A wall-clock limit for the whole command.

    Args:
        minutes: from now; None means no limit.

    Example:
        >>> Deadline(minutes=None).is_over()
        False
    """

    minutes: float | None
    started: float = field(default_factory=time.monotonic)

    def is_over(self) -> bool:
        """Return whether the time is used up."""
        return self.minutes is not None and time.monotonic() - self.started > 60 * self.minutes


def save_atomic(state: Any, path: Path) -> None:
    """Write a checkpoint so that a crash leaves either the old one or the new one.

    Args:
        state: anything ``torch.save`` takes.
        path: where to; its folder is created.

    Example:
        >>> import tempfile
        >>> where = Path(tempfile.mkdtemp()) / "a" / "state.pt"
        >>> save_atomic({"step": 3}, where); torch.load(where)["step"]
        3
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    torch.save(state, partial)
    os.replace(partial, path)


def append_log(path: Path, **record: Any) -> None:
    """Add one JSON line to the training log.

    Args:
        path: the log file.
        record: plain values.

    Example:
        >>> import tempfile
        >>> where = Path(tempfile.mkdtemp()) / "log.jsonl"
        >>> append_log(where, step=1); where.read_text()
        '{"step": 1}\\n'
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of an update as a part of the highest one.

    Args:
        step: from 0.
        steps: length of the run.
        warmup: updates of linear rise.

    Returns:
        A number from 0 to 1.

    Example:
        >>> cosine_rate(50, 100, 0)
        0.5
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * done))


def trapezoid_rate(step: int, steps: int, warmup: int, decay_share: float) -> float:
    """Return the learning rate of an update: rise, plateau, linear fall to zero.

    Unlike a cosine it does not depend on the length of the run before the fall begins, so a
    run can be shortened or lengthened while it is on its plateau.

    Args:
        step: from 0.
        steps: length of the run.
        warmup: updates of linear rise.
        decay_share: part of the run, at its end, in which the rate falls.

    Returns:
        A number from 0 to 1.

    Example:
        >>> [trapezoid_rate(step, 100, 10, 0.4) for step in (0, 50, 80)]
        [0.1, 1.0, 0.5]
    """
    return max(0.0, min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1.0, decay_share * steps)))


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], weights: Iterable[tuple[str, torch.Tensor]], decay: float) -> None:
    """Move an exponential average of the weights one update on, in place.

    Args:
        average: name to float32 tensor.
        weights: the current weights under the same names.
        decay: part of the old average that is kept.

    Example:
        >>> kept = {"w": torch.zeros(1)}
        >>> update_average(kept, [("w", torch.ones(1))], 0.75); float(kept["w"])
        0.25
    """
    for name, weight in weights:
        average[name].lerp_(weight.detach(), 1 - decay)

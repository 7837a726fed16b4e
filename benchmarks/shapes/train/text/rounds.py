"""The updates of a text encoder's run, resumed where they stand: what both objectives share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from t2ictl.benchmarks.shapes.train.loop import Deadline, append_log, save_atomic, trapezoid_rate
from t2ictl.benchmarks.shapes.train.text.settings import ContrastiveRecipe, SpanRecipe


class Trainee(Protocol):
    """What is trained, and on what.

    Example:
        >>> class Square:
        ...     def __init__(self) -> None:
        ...         self.model = torch.nn.Linear(1, 1, bias=False)
        ...         self.optimizers = (torch.optim.SGD(self.model.parameters()),)
        ...
        ...     def loss(self, step: int) -> torch.Tensor:
        ...         return self.model.weight.square().sum()
        ...
        ...     def measure(self) -> dict[str, float]:
        ...         return {}
    """

    @property
    def model(self) -> torch.nn.Module:
        """Every weight that learns."""

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """What owns the weights, each weight once."""

    def loss(self, step: int) -> torch.Tensor:
        """Compute the loss of an update, a function of the weights, the recipe and the update alone."""

    def measure(self) -> dict[str, float]:
        """Measure what the log tells of held-out examples."""


def checkpoint_of(recipe: ContrastiveRecipe | SpanRecipe, folder: Path) -> Path:
    """Name the checkpoint of a run.

    Args:
        recipe: its part.
        folder: of the run.

    Returns:
        A path in the folder.

    Example:
        >>> checkpoint_of(SpanRecipe(), Path("run")).name
        't5.pt'
    """
    return folder / f"{recipe.part}.pt"


def save(trainee: Trainee, step: int, path: Path) -> None:
    """Write a checkpoint.

    Args:
        trainee: whose weights and optimizers go in.
        step: updates that are done.
        path: of the file.
    """
    states = [optimizer.state_dict() for optimizer in trainee.optimizers]
    save_atomic({"model": trainee.model.state_dict(), "optimizers": states, "step": step}, path)


def restore(trainee: Trainee, path: Path) -> int:
    """Read a checkpoint if there is one.

    Args:
        trainee: gets its weights and the states of its optimizers.
        path: of the file.

    Returns:
        Updates that are done.
    """
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    trainee.model.load_state_dict(state["model"])
    for optimizer, stored in zip(trainee.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(stored)
    return int(state["step"])


def update(trainee: Trainee, step: int, rate: float) -> float:
    """Make one update.

    Args:
        trainee: what learns.
        step: from 0.
        rate: learning rate; a group of an optimizer may have a ``factor`` to it.

    Returns:
        The loss before the update.
    """
    loss = trainee.loss(step)
    trainee.model.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), 1.0)
    for optimizer in trainee.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        optimizer.step()
    return float(loss.detach())


def train(recipe: ContrastiveRecipe | SpanRecipe, trainee: Trainee, folder: Path, deadline: Deadline) -> bool:
    """Run or continue all updates, with checkpoints and a log.

    Args:
        recipe: lengths and rates.
        trainee: untrained; gets the checkpoint's weights if there is one.
        folder: of the run: the checkpoint and ``log.jsonl``.
        deadline: when to stop.

    Returns:
        Whether all updates are done.
    """
    path = checkpoint_of(recipe, folder)
    step = saved = restore(trainee, path)
    losses: list[float] = []
    started = time.monotonic()
    while step < recipe.steps and not deadline.is_over():
        rate = recipe.rate * trapezoid_rate(step, recipe.steps, recipe.warmup, recipe.decay_share)
        losses.append(update(trainee, step, rate))
        step += 1
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            append_log(
                folder / "log.jsonl",
                stage=recipe.part,
                step=step,
                loss=round(float(np.mean(losses)), 4),
                seconds_per_update=round((time.monotonic() - started) / len(losses), 4),
                **trainee.measure(),
            )
            losses, started = [], time.monotonic()
        if step % recipe.checkpoint_every == 0:
            save(trainee, step, path)
            saved = step
    if saved != step:
        save(trainee, step, path)
    return step >= recipe.steps

"""What every denoiser that learns here shares: models, optimizers, an average, and the loop around an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from t2ictl.benchmarks.shapes.train.loop import (
    Deadline,
    append_log,
    save_atomic,
    trapezoid_rate,
    update_average,
)
from t2ictl.benchmarks.shapes.train.team import ALONE, Team

State = dict[str, Any]
#: What an update measured, by name.
Measured = dict[str, float]


class Pace(Protocol):
    """The numbers of a recipe that the loop reads; see ``settings.Recipe``."""

    @property
    def steps(self) -> int:
        """Updates of the run."""
        ...

    @property
    def rate(self) -> float:
        """Highest learning rate."""
        ...

    @property
    def warmup(self) -> int:
        """Updates of linear warm-up."""
        ...

    @property
    def decay_share(self) -> float:
        """Part of the updates, at the end, in which the rate falls to zero."""
        ...

    @property
    def ema_decay(self) -> float:
        """Of the average, per update, once warmed up."""
        ...

    @property
    def checkpoint_every(self) -> int:
        """Updates between two checkpoints."""
        ...

    @property
    def snapshot_every(self) -> int:
        """Updates between two kept averages."""
        ...


@dataclass(kw_only=True)
class Learner:
    """Everything that changes while models learn.

    Args:
        models: by name.
        optimizers: together they own every weight once.
        average: exponential average of all weights, by name.
        step: updates done.

    Example:
        >>> learner = Learner(models={"line": torch.nn.Linear(1, 1)})
        >>> learner.start_average(); sorted(learner.average)
        ['line.bias', 'line.weight']
    """

    models: dict[str, torch.nn.Module]
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    average: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0

    def named_weights(self) -> list[tuple[str, torch.Tensor]]:
        """List all weights under names that say which model they belong to."""
        models = self.models.items()
        return [(f"{name}.{key}", value) for name, model in models for key, value in model.named_parameters()]

    def start_average(self) -> None:
        """Let the average begin at the weights as they are."""
        self.average = {name: weight.detach().clone() for name, weight in self.named_weights()}

    def state(self) -> State:
        """Collect a checkpoint."""
        return {
            **{name: model.state_dict() for name, model in self.models.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
            "step": self.step,
        }

    def load(self, state: State) -> None:
        """Continue from a checkpoint."""
        for name, model in self.models.items():
            model.load_state_dict(state[name])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.average = state["average"]
        self.step = state["step"]


def advance(learner: Learner, loss: torch.Tensor, pace: Pace, team: Team = ALONE) -> None:
    """Make one update of the weights and of their average.

    The average starts short and lengthens, so that early snapshots are usable.

    Args:
        learner: changed in place.
        loss: of this member's part of the batch, a scalar.
        pace: rates.
        team: who else trains; gradients are averaged over all members' parts.
    """
    weights = [weight for _, weight in learner.named_weights()]
    for weight in weights:
        weight.grad = None
    (loss / team.size).backward()
    team.sum_up([weight.grad for weight in weights if weight.grad is not None])
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    rate = pace.rate * trapezoid_rate(learner.step, pace.steps, pace.warmup, pace.decay_share)
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    learner.step += 1
    decay = min(pace.ema_decay, (1 + learner.step) / (10 + learner.step))
    update_average(learner.average, learner.named_weights(), decay)


@dataclass(kw_only=True)
class Records:
    """What a run writes down: log, kept averages and checkpoints.

    Args:
        folder: of the run; holds ``NAME.pt``, ``log.jsonl`` and the kept averages ``average-<update>.pt``.
        name: of the stage.
        recent: what the updates since the last line of the log measured.
    """

    folder: Path
    name: str
    recent: list[Measured] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """Where the run goes on from."""
        return self.folder / f"{self.name}.pt"

    def keep(self, learner: Learner, pace: Pace, is_over: bool) -> None:
        """Write log, kept average and checkpoint where one is due."""
        step, is_last = learner.step, learner.step == pace.steps
        if step % 50 == 0:
            means = {key: round(sum(each[key] for each in self.recent) / len(self.recent), 5) for key in self.recent[0]}
            append_log(self.folder / "log.jsonl", stage=self.name, step=step, **means)
            self.recent.clear()
        if step % pace.snapshot_every == 0 or is_last:
            save_atomic(learner.average, self.folder / f"average-{step:06d}.pt")
        if step % pace.checkpoint_every == 0 or is_last or is_over:
            save_atomic(learner.state(), self.checkpoint)


def learn(
    learner: Learner,
    pace: Pace,
    records: Records,
    deadline: Deadline,
    update: Callable[[int], Measured],
    team: Team = ALONE,
) -> bool:
    """Repeat an update to the end of the run, or continue where a checkpoint stands.

    Args:
        learner: changed in place.
        pace: length, rates, and how often something is kept.
        records: what is written down, by the first member alone.
        deadline: stop, with a checkpoint, when it is over.
        update: makes the update of that number, from 0, with :func:`advance`.
        team: who else trains.

    Returns:
        Whether the last update was reached.
    """
    if records.checkpoint.exists():
        learner.load(torch.load(records.checkpoint, weights_only=True))
    bar = tqdm(total=pace.steps, initial=learner.step, desc=records.name, mininterval=10, disable=not team.is_first)
    is_over = team.any(deadline.is_over())
    while learner.step < pace.steps and not is_over:
        records.recent.append(update(learner.step))
        bar.update()
        is_over = team.any(deadline.is_over())
        if team.is_first:
            records.keep(learner, pace, is_over)
    bar.close()
    return learner.step >= pace.steps

"""Several processes train one model: each takes a part of every batch, and gradients are averaged.

One process a core is nearly twice as fast here as one process with two threads, because the
tensors are small. What the team sees is the same batch whatever its size, so runs with one
and with two members differ by rounding alone.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from t2ictl.errors import BadSetting


@dataclass(frozen=True, kw_only=True)
class Team:
    """Who else trains.

    Args:
        rank: this process, from 0; the first one writes files.
        size: how many there are.

    Example:
        >>> Team().is_first
        True
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this member's rows of a batch that all members know.

        Args:
            rows: shape ``(B, ...)``; B must be a multiple of the size.

        Returns:
            Every ``size``-th row, so that stratified times stay spread for each member.

        Raises:
            BadSetting: the rows cannot be shared equally.
        """
        if len(rows) % self.size:
            raise BadSetting(
                f"{self.size} workers cannot share a batch of {len(rows)}.", "Use a multiple, or 1 worker."
            )
        return rows[self.rank :: self.size]

    def sum_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their sums over the members, in one message.

        Args:
            tensors: float32, changed in place.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is up for any member, so that all stop at the same update."""
        if self.size == 1:
            return flag
        votes = torch.tensor([float(flag)])
        torch.distributed.all_reduce(votes)
        return bool(votes.item())


#: One process, nobody to wait for.
ALONE = Team()


def _end_with_parent() -> None:
    """End this process when the one that started it ends.

    Torch asks the system for an interrupt then, which does not reach a process that ignores interrupts, as those
    started in the background by a script do. Members without a parent would go on writing into a run that is
    already continued.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _member(rank: int, size: int, meeting: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Join the others and work."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        work(*arguments, Team(rank=rank, size=size))
    finally:
        torch.distributed.destroy_process_group()


def run_team(size: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Run work in several processes.

    Args:
        size: how many; one works in this process.
        work: a module-level function; its last argument is the :class:`Team`.
        arguments: what comes before it, picklable.

    Example:
        >>> run_team(1, lambda team: print(team.size))
        1
    """
    if size == 1:
        work(*arguments, ALONE)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.spawn(_member, (size, meeting, work, arguments), nprocs=size)

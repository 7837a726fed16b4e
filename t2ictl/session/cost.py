"""What a run cost, in units that mean the same on every machine."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

__all__ = ["Cost", "peak_bytes", "start_peak"]


@dataclass(kw_only=True)
class Cost:
    """Work done in a session, counted in rows: one row is one image in one guidance branch.

    Args:
        forwards: denoiser forward passes that the pipeline asked for (rows).
        extra_forwards: forward passes added for objectives, whole or ended early (rows).
        backwards: gradients taken back to the latents (rows).
        seconds: wall time inside the session.
        peak_bytes: most memory in use: of the CUDA allocator, or of the whole process on a CPU;
            0 where the system does not tell.
    """

    forwards: int = 0
    extra_forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, other: Cost) -> None:
        """Add the work of another session; of the two peaks the higher one stays.

        Args:
            other: its cost.

        Example:
            >>> cost = Cost(forwards=2, peak_bytes=5)
            >>> cost.add(Cost(forwards=3, peak_bytes=4))
            >>> cost.forwards, cost.peak_bytes
            (5, 5)
        """
        self.forwards += other.forwards
        self.extra_forwards += other.extra_forwards
        self.backwards += other.backwards
        self.seconds += other.seconds
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return asdict(self)


def start_peak(device: torch.device) -> None:
    """Begin a new measurement of peak memory; a CPU process cannot reset its own.

    Args:
        device: where the denoiser runs.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Read the peak: of the CUDA allocator since the last reset, or of the process since its start.

    Args:
        device: where the denoiser runs.

    Returns:
        Bytes.

    Example:
        >>> peak_bytes(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""How often a piece of code waits for the device, counted where there is none.

Reading a number (``item``, ``tolist``, ``bool``), or making a tensor whose size depends on values (``nonzero``, boolean
indices), has to wait until a GPU has caught up. On a CPU these calls cost nothing, but they are the same calls::

    t2ictl bench speed synchronizations
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import t2ictl
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import embedded_model
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation

__all__ = ["Synchronizations", "counts", "run"]

# A tolist of n numbers is one copy to the host on a GPU, and n reads on a CPU: it is counted by its own patch.
_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}


class Synchronizations(TorchDispatchMode):
    """Counts them while the block runs.

    Example:
        >>> with Synchronizations() as asked:
        ...     read = bool(torch.ones(1).all()), torch.ones(3).tolist(), torch.ones(2) + 1
        >>> asked.count
        2
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._in_list = False
        self._tolist = torch.Tensor.tolist

    def __enter__(self) -> Synchronizations:
        counter = self

        def tolist(tensor: torch.Tensor) -> object:
            """Count once, whatever torch calls inside."""
            counter.count += 1
            counter._in_list = True
            try:
                return counter._tolist(tensor)
            finally:
                counter._in_list = False

        torch.Tensor.tolist = tolist  # type: ignore[assignment, method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        torch.Tensor.tolist = self._tolist  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func._schema.name in _READS and not self._in_list
        return func(*args, **(kwargs or {}))


def counts(steps: int = 20) -> dict[str, tuple[int, int]]:
    """Count the waits of whole images, on the embedded model.

    Args:
        steps: denoising steps.

    Returns:
        Waits of a call and its latent updates, by what is done in it.
    """
    pipe = embedded_model()
    cases: dict[str, list[t2ictl.Control]] = {
        "plain": [],
        "A-STAR": [AttentionSegregation(preset="none")],
        "Attend-and-Excite, not refined": [AttendAndExcite(refinement=None, preset="none")],
        "Attend-and-Excite, refined": [AttendAndExcite(preset="none")],
    }
    found = {}
    for name, chosen in cases.items():
        _call(pipe, chosen, steps)  # a schedule that is new is measured on the CPU, once
        with Synchronizations() as waits:
            updates = _call(pipe, chosen, steps)
        found[name] = waits.count, updates
    return found


def _call(pipe: Any, chosen: list[t2ictl.Control], steps: int) -> int:
    """Make an image, and return the number of updates."""
    with t2ictl.controlled(pipe, chosen) as session:
        noise = torch.Generator().manual_seed(1)
        pipe("a red circle and a blue square", num_inference_steps=steps, generator=noise, output_type="latent")
    return len(session.trace)


def run(steps: int = 20) -> None:
    """Print a row for each case.

    Args:
        steps: denoising steps.
    """
    found = counts(steps).items()
    rows = ((name, waits, f"{waits / steps:.1f}", updates) for name, (waits, updates) in found)
    print_table((f"run of {steps} steps", "waits", "a step", "updates"), rows)

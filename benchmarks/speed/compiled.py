"""Why compiled denoisers are refused: how often a controlled one would be compiled, and where it would break.

The repeated blocks of a denoiser are compiled as diffusers does it, with the refusal taken out, and the same call is
made in three sessions, one after the other. Graphs are counted before any backend sees them, so no compiler is needed::

    t2ictl bench speed compiled
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo as dynamo
from torch._dynamo.utils import counters

import t2ictl
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import embedded_model
from t2ictl.processors import AttentionSegregation, StructuredGuidance

__all__ = ["counts", "run"]

CASES: dict[str, Callable[[], list[Any]] | None] = {
    "plain, no session": None,
    "A-STAR": lambda: [AttentionSegregation()],
    "structured guidance": lambda: [StructuredGuidance()],
}


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    """Take the refusal out, and let a layer be compiled as often as it asks for."""
    nothing = mock.Mock(return_value=None)
    with (
        mock.patch("t2ictl.families.refuse_compiled", nothing),
        mock.patch("t2ictl.families.base.refuse_compiled", nothing),
        dynamo.config.patch(recompile_limit=1000, accumulated_recompile_limit=10000),
    ):
        yield


def counts(case: str, sessions: int = 3, steps: int = 3) -> list[tuple[int, int]]:
    """Count what is compiled on the embedded model.

    Args:
        case: a key of ``CASES``.
        sessions: sessions with one call each; without a session, calls.
        steps: denoising steps of a call.

    Returns:
        Graphs, and breaks between graphs, that each call added.
    """
    pipe = embedded_model()
    make, found = CASES[case], []
    dynamo.reset()
    counters.clear()
    pipe.unet.compile_repeated_blocks(backend="eager")
    before = (0, 0)
    for _ in range(sessions):
        with _allowed(), t2ictl.controlled(pipe, make()) if make is not None else contextlib.nullcontext():
            generator = torch.Generator().manual_seed(0)
            pipe("a red circle and a blue square", num_inference_steps=steps, generator=generator, output_type="latent")
        now = (int(counters["stats"]["unique_graphs"]), sum(counters["graph_break"].values()))
        found.append((now[0] - before[0], now[1] - before[1]))
        before = now
    dynamo.reset()
    return found


def run() -> None:
    """Print a row for each case."""
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    print_table(("repeated blocks compiled", "graphs, by call", "breaks, by call"), _rows())


def _rows() -> Iterator[tuple[str, ...]]:
    for case in CASES:
        graphs, breaks = zip(*counts(case), strict=True)
        yield case, ", ".join(map(str, graphs)), ", ".join(map(str, breaks))

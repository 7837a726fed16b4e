"""``t2ictl bench speed``: one command for all measurements, each of which is loaded when it runs."""

from __future__ import annotations

import importlib
import inspect
from typing import Annotated, Any

import typer

from t2ictl.errors import BadSetting

__all__ = ["MEASUREMENTS", "speed_command"]

#: What can be measured, each by ``run`` of the module of this name.
MEASUREMENTS = {
    "update": "a latent update: operations, bytes kept for its backward pass",
    "published": "updates beside diffusers' own pipeline: times, operations",
    "maps": "recording the maps of words: operations and times",
    "memory": "a denoiser pass, and decoding: memory at the highest point",
    "growth": "memory over the runs of a program and the steps of a run",
    "synchronizations": "how often the host waits for the device",
    "compiled": "graphs and breaks of compiled denoisers",
    "structured": "structured guidance: operations and times",
    "isolation": "isolation and reposition: operations, generations, times",
    "merging": "token merging: operations",
    "flow": "token-flow analysis: times of batches over single calls",
}
HELP = (
    "Measure what something costs: operations, bytes, or ratios of times of two things in one run.\n\n\b\n"
    + "\n".join(f"{name:17} {what}" for name, what in MEASUREMENTS.items())
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="One of the names above.")]
Model = Annotated[
    str | None,
    typer.Option(help="Transformers in place of U-Nets, with commas: flux, sd35m, sd35l, sana, pixart (update)."),
]
Pairs = Annotated[
    int | None, typer.Option(min=0, help="Timed pairs; 0: none (flow, isolation, maps, published, structured).")
]
Side = Annotated[
    int | None,
    typer.Option(min=1, help="Side of the latent in cells, an eighth of the pixels (published, structured)."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps (flow, published, synchronizations).")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Images of each condition (flow).")]
Batch = Annotated[int | None, typer.Option(min=1, help="Images of one call (flow).")]
Phrases = Annotated[str | None, typer.Option(help="Numbers of phrases, with commas (structured).")]
Updates = Annotated[str | None, typer.Option(help="Numbers of updates in 50 steps, with commas (published).")]
Operations = Annotated[
    bool | None, typer.Option("--operations", help="Count operations of whole images, and time nothing (published).")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where times are taken; default: CUDA where there is one (flow, isolation, published, structured)."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch (all); default: torch's own.")]


def speed_command(
    name: Name,
    model: Model = None,
    pairs: Pairs = None,
    side: Side = None,
    steps: Steps = None,
    seeds: Seeds = None,
    batch: Batch = None,
    phrases: Phrases = None,
    updates: Updates = None,
    operations: Operations = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Measure what something costs."""
    if name not in MEASUREMENTS:
        raise BadSetting(f"There is no measurement {name!r}.", f"Measurements: {', '.join(MEASUREMENTS)}.")
    given = {
        "model": model,
        "pairs": pairs,
        "side": side,
        "steps": steps,
        "seeds": seeds,
        "batch": batch,
        "phrases": _numbers("phrases", phrases),
        "updates": _numbers("updates", updates),
        "operations": operations,
        "device": device,
    }
    measure(name, {key: value for key, value in given.items() if value is not None}, threads)


def measure(name: str, options: dict[str, Any], threads: int | None = None) -> None:
    """Run a measurement and print what it finds.

    Args:
        name: a key of :data:`MEASUREMENTS`.
        options: those that were given.
        threads: of torch; None for its own number.

    Raises:
        BadSetting: for an option that the measurement does not have.
    """
    run = importlib.import_module(f"t2ictl.benchmarks.speed.{name}").run
    known = list(inspect.signature(run).parameters)
    for key in options:
        if key not in known:
            which = ", ".join(f"--{each}" for each in (*known, "threads"))
            raise BadSetting(f"The measurement {name!r} has no option --{key}.", f"It has {which}.")
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        run(**options)
    finally:
        torch.set_num_threads(before)


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Read numbers with commas."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise BadSetting(f"--{option} cannot be {text!r}.", f"Give whole numbers from 1, with commas: --{option} 2,4.")
    return tuple(int(part) for part in parts)

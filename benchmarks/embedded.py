"""Options of what measures models of the embedded world: which model, and with how many steps and which guidance."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import t2ictl
from t2ictl.shapes import instrument_id
from t2ictl.shapes.embedded import DEFAULT, MODELS, installed_models, measured_as

__all__ = ["add_model", "as_measured", "identity", "open_model"]


def add_model(parser: argparse.ArgumentParser, *, steps: bool = True) -> None:
    """Add the options ``--model``, ``--steps`` and ``--guidance``.

    Args:
        parser: of the command.
        steps: whether the last two are added.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_model(parser)
        >>> parser.parse_args([])
        Namespace(model='shapes', steps=None, guidance=None)
    """
    there = ", ".join(installed_models())
    parser.add_argument(
        "--model", default=DEFAULT, help=f"{there} (embedded), or a diffusers folder; default: {DEFAULT}"
    )
    if steps:
        parser.add_argument("--steps", type=int, default=None, help="denoising steps; default: the model's, 20")
        parser.add_argument("--guidance", type=float, default=None, help="of classifier-free guidance; default: so too")


def as_measured(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in steps and guidance with which the model is measured, where nobody chose others.

    Args:
        options: as they were read.

    Returns:
        The options, changed.

    Example:
        >>> as_measured(argparse.Namespace(model="shapes", steps=4, guidance=None))
        Namespace(model='shapes', steps=4, guidance=3.0)
    """
    known = measured_as(options.model)
    options.steps = known.steps if options.steps is None else options.steps
    options.guidance = known.guidance if options.guidance is None else options.guidance
    return options


def open_model(name: str, device: str | None = "cpu") -> Any:
    """Load a model, without its progress bar.

    Args:
        name: an embedded model, or a diffusers folder.
        device: where to put it.

    Returns:
        The plain pipeline.

    Raises:
        BadSetting: if it is not there or cannot be loaded.

    Example:
        >>> type(open_model("shapes")).__name__
        'StableDiffusionPipeline'
    """
    pipe = t2ictl.load(name, device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def identity(name: str) -> str:
    """Name world, judge and weights with which figures are made.

    Args:
        name: an embedded model, or a diffusers folder.

    Returns:
        A line, for the head of a table.

    Example:
        >>> identity("shapes")
        'shapes 2 (world ..., judge ..., weights ...)'
    """
    return instrument_id(name if name in MODELS else Path(name))

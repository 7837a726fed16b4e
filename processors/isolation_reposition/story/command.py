"""The command ``t2ictl story``. Apart from its work, so that ``t2ictl --help`` loads no torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from t2ictl.cli.app import AsJson, Device, Dtype, Model

__all__ = ["story"]


def story(
    file: Annotated[Path, typer.Argument(help="A story: YAML, or an image or story.json that this command wrote.")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("story"),
    model: Model = "shapes",
    check: Annotated[bool, typer.Option("--check", help="Only find out whether the story can be told.")] = False,
    device: Device = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Make a story: several images in which the same subjects stay themselves."""
    work = importlib.import_module("t2ictl.processors.isolation_reposition.story.files")
    work.story_files(file, out, model, device=device, dtype=dtype, only_check=check, as_json=as_json)

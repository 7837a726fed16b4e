"""The command ``t2ictl flow``. Light, since every start of the command line reads it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from t2ictl.cli.app import Model

__all__ = ["flow"]


def flow(
    prompt: Annotated[str, typer.Argument(help="The prompt to analyze.")],
    items: Annotated[str, typer.Option(help="Words or phrases, by commas; default: all objects.")] = "",
    sense: Annotated[
        list[str], typer.Option(help="ITEM:OTHER=SEEN, what is seen if OTHER leaks into ITEM; may be repeated.")
    ] = [],  # noqa: B006 (typer reads the default and never changes it)
    swap: Annotated[list[str], typer.Option(help="ITEM=WORDS of the same kind, for comparison; may be repeated.")] = [],  # noqa: B006
    model: Model = "shapes",
    judge: Annotated[
        str | None,
        typer.Option(help="shapes, clip:PATH, vlm:PATH, choice:PATH, detector:PATH or none; default: shapes' own."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Images of each condition.")] = 8,
    confirm: Annotated[int, typer.Option(help="Further seeds on which a repair must hold; 0: no repair.")] = 12,
    operator: Annotated[
        list[str],
        typer.Option(help="How tokens are removed: clean_pad, released, encoder_mask, drop; may be repeated."),
    ] = ["clean_pad"],  # noqa: B006
    depth: Annotated[
        list[float], typer.Option(help="Share of the encoder's layers whose reading is shown, too; may be repeated.")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; default: the model's own.")] = None,
    guidance_scale: Annotated[float, typer.Option(help="Strength of classifier-free guidance; 1: none.")] = 7.5,
    negative_prompt: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    batch: Annotated[int, typer.Option(help="Images of one pipeline call.")] = 8,
    out: Annotated[Path, typer.Option(help="The folder to write to; the same command goes on there.")] = Path("flow"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: CUDA where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
) -> None:
    """Find out what each word carries, what leaks into what, and what repairs it; writes report.html."""
    work = importlib.import_module("t2ictl.processors.token_flow.analysis.files")
    work.flow_files(
        prompt,
        work.items_of(items, sense, swap),
        out,
        model,
        judge=judge,
        seeds=seeds,
        confirm=confirm,
        operators=tuple(operator),
        depths=tuple(depth),
        batch=batch,
        device=device,
        dtype=dtype,
        as_json=as_json,
        request={
            "seed": seed,
            "steps": steps,
            "size": size,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
        },
    )

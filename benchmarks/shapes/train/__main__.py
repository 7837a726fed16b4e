"""``python -m t2ictl.benchmarks.shapes.train --out DIR``: all stages, each resumed where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.shapes.train.autoencoder import encode_images, train_autoencoder
from t2ictl.benchmarks.shapes.train.denoiser import train_denoiser
from t2ictl.benchmarks.shapes.train.export import export_folder, normalize_latents
from t2ictl.benchmarks.shapes.train.loop import Deadline, append_log
from t2ictl.benchmarks.shapes.train.record import read_recipe_of
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.team import run_team
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
from t2ictl.errors import BadSetting


def read_recipe(folder: Path, changes: dict[str, Any]) -> Recipe:
    """Read the recipe of a run, or start one; the numbers of updates may change while it is under way.

    Args:
        folder: of the run.
        changes: values given on the command line.

    Returns:
        The recipe, which is also written to ``recipe.json``.

    Raises:
        BadSetting: a value other than the number of updates differs from the one on record.
    """
    return read_recipe_of(Recipe, folder, changes, ("steps", "vae_steps"))


def run(recipe: Recipe, folder: Path, minutes: float | None, workers: int = 1) -> bool:
    """Run or continue all stages: tokenizer, autoencoder, latents, denoiser, export.

    Args:
        recipe: every number of the run.
        folder: checkpoints, log, kept averages, and at the end ``model/``.
        minutes: stop with a checkpoint after this long; None runs to the end.
        workers: processes that train the denoiser together.

    Returns:
        Whether the run is complete.
    """
    deadline = Deadline(minutes=minutes)
    tokenizer = build_tokenizer(recipe)
    vae = train_autoencoder(recipe, folder, deadline)
    if vae is None:
        return False
    latents = normalize_latents(vae, encode_images(vae, recipe, folder))
    run_team(workers, train_denoiser, recipe, folder, deadline, latents, tokenizer)
    if not (folder / f"average-{recipe.steps:06d}.pt").exists():
        return False
    average = torch.load(folder / f"average-{recipe.steps:06d}.pt", weights_only=True)
    export_folder(recipe, tokenizer, vae, average, folder / "model")
    append_log(folder / "log.jsonl", stage="export", step=recipe.steps)
    return True


def export_average(recipe: Recipe, folder: Path, target: Path, step: int) -> None:
    """Export a run as it stands, without training.

    Args:
        recipe: of the run.
        folder: of the run, with its autoencoder and latents finished.
        target: folder to write; replaced if it exists.
        step: which kept average; 0 takes the one of the last checkpoint.

    Raises:
        BadSetting: the autoencoder is not finished, or there is no such average.
    """
    vae = train_autoencoder(recipe, folder, Deadline(minutes=0))
    path = folder / (f"average-{step:06d}.pt" if step else "denoiser.pt")
    if vae is None or not path.exists():
        raise BadSetting(f"{folder} has nothing to export at update {step}.", "Train further, or choose a kept update.")
    normalize_latents(vae, encode_images(vae, recipe, folder))
    state = torch.load(path, weights_only=True)
    export_folder(recipe, build_tokenizer(recipe), vae, state if step else state["average"], target)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run; exit status 0 when complete, 3 when the time was over first."""
    parser = ArgumentParser(prog="python -m t2ictl.benchmarks.shapes.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; give it again to continue")
    parser.add_argument("--minutes", type=float, default=None, help="stop with a checkpoint after this long")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch, where one process works")
    parser.add_argument("--workers", type=int, default=1, help="processes that train the denoiser together")
    parser.add_argument("--export", type=Path, default=None, help="do not train; write the model of the run here")
    parser.add_argument(
        "--export-step", type=int, default=0, help="kept average to export; default: the last checkpoint"
    )
    parser.add_argument("--start", type=Path, default=None, help="exported model to start from; default: from nothing")
    for name in ("seed", "images", "vae_steps", "steps", "batch"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=None, help=f"default {getattr(Recipe, name)}"
        )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    names = ("seed", "images", "vae_steps", "steps", "batch")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.start is not None:
        changes["start"] = str(options.start)
    if options.export is not None:
        export_average(read_recipe(options.out, changes), options.out, options.export, options.export_step)
        return 0
    return 0 if run(read_recipe(options.out, changes), options.out, options.minutes, options.workers) else 3


if __name__ == "__main__":
    raise SystemExit(main())

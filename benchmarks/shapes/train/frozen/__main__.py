"""``python -m t2ictl.benchmarks.shapes.train.frozen``: a denoiser on frozen text encoders, resumed where it stands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.shapes.train.frozen.export import export_frozen
from t2ictl.benchmarks.shapes.train.frozen.layout import layout_of
from t2ictl.benchmarks.shapes.train.frozen.settings import MODELS, FrozenRecipe
from t2ictl.benchmarks.shapes.train.frozen.train import Run, train_frozen
from t2ictl.benchmarks.shapes.train.loop import Deadline
from t2ictl.benchmarks.shapes.train.record import read_recipe_of
from t2ictl.benchmarks.shapes.train.scenes import draw_scenes
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.team import run_team
from t2ictl.errors import BadSetting

#: What may change while a run is under way, because no checkpoint depends on it.
FREE = (
    "steps",
    "rate",
    "ghost_share",
    "swap_share",
    "decay_share",
    "shift",
    "validate_every",
    "snapshot_every",
    "checkpoint_every",
)
#: Settings with options of their own, or none.
SPECIAL = ("model", "start", "unet_channels")


def world_of(folder: Path) -> Recipe:
    """Read how the scenes of a folder are drawn.

    Args:
        folder: of the scenes; one that is not there gets those of the default recipe.

    Returns:
        A recipe whose numbers about scenes are those of the folder.

    Example:
        >>> world_of(Path("nowhere")).images
        40000
    """
    record = folder / "scenes.json"
    return Recipe(**json.loads(record.read_text(encoding="utf-8"))) if record.exists() else Recipe()


def train(run: Run, scenes: Path, workers: int = 1) -> bool:
    """Draw or read the scenes and train.

    Args:
        run: what it is made from.
        scenes: folder of the drawn scenes.
        workers: processes that train together.

    Returns:
        Whether the last update was reached.
    """
    recipe = run.recipe
    drawn = draw_scenes(run.world, scenes)
    layout = layout_of(drawn.scenes) if recipe.model == "dit" and recipe.layout_weight else None
    run_team(workers, train_frozen, run, drawn, layout)
    return (run.folder / f"average-{recipe.steps:06d}.pt").exists()


def export(run: Run, target: Path, step: int) -> None:
    """Export a run as it stands, without training.

    Args:
        run: what it is made from.
        target: folder to write; replaced if it exists.
        step: which kept average; 0 takes the one of the last checkpoint.

    Raises:
        BadSetting: there is no such average.
    """
    path = run.folder / (f"average-{step:06d}.pt" if step else "denoiser.pt")
    if not path.exists():
        raise BadSetting(f"{run.folder} has nothing to export at update {step}.", "Train, or choose a kept update.")
    state = torch.load(path, weights_only=True)
    export_frozen(run.recipe, run.encoders, state if step else state["average"], target)


def _parser() -> ArgumentParser:
    """Offer every number of the recipe as an option."""
    parser = ArgumentParser(prog="python -m t2ictl.benchmarks.shapes.train.frozen", description=__doc__)
    parser.add_argument("--model", choices=MODELS, required=True, help="the transformer or the U-Net")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; give it again to continue")
    parser.add_argument("--encoders", type=Path, required=True, help="folder of the frozen encoders and tokenizers")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of the drawn scenes, which it makes")
    parser.add_argument("--start", type=Path, default=None, help="exported model to start from; default: from nothing")
    parser.add_argument("--minutes", type=float, default=None, help="stop with a checkpoint after this long")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch, where one process works")
    parser.add_argument("--workers", type=int, default=1, help="processes that train together")
    parser.add_argument("--compile", action="store_true", help="compile the model; a minute that pays off later")
    parser.add_argument("--export", type=Path, default=None, help="do not train; write the model of the run here")
    parser.add_argument("--export-step", type=int, default=0, help="which kept average; default: the last checkpoint")
    for field in dataclasses.fields(FrozenRecipe):
        if field.name not in SPECIAL:
            kind = type(field.default)
            name = field.name.replace("_", "-")
            parser.add_argument(f"--{name}", type=kind, default=None, help=f"default {field.default}")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run; exit status 0 when complete, 3 when the time was over first."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in dataclasses.fields(FrozenRecipe) if field.name not in SPECIAL[1:]]
    changes: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.start is not None:
        changes["start"] = str(options.start)
    run = Run(
        recipe=read_recipe_of(FrozenRecipe, options.out, changes, FREE),
        world=world_of(options.scenes),
        folder=options.out,
        encoders=options.encoders,
        deadline=Deadline(minutes=options.minutes),
        is_compiled=options.compile,
    )
    if options.export is not None:
        export(run, options.export, options.export_step)
        return 0
    return 0 if train(run, options.scenes, options.workers) else 3


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m t2ictl.benchmarks.shapes.train.text --part clip --out DIR --scenes DIR``: one encoder, resumable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.shapes.train.loop import Deadline
from t2ictl.benchmarks.shapes.train.record import read_recipe_of
from t2ictl.benchmarks.shapes.train.scenes import draw_scenes
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.text.contrastive import Contrastive
from t2ictl.benchmarks.shapes.train.text.export import export_part
from t2ictl.benchmarks.shapes.train.text.rounds import train
from t2ictl.benchmarks.shapes.train.text.settings import CLIP, CLIP_2, T5, ContrastiveRecipe, SpanRecipe
from t2ictl.benchmarks.shapes.train.text.spans import Spans
from t2ictl.benchmarks.shapes.train.text.tokenizer import build_t5_tokenizer
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer

RECIPES: dict[str, Any] = {"clip": CLIP, "clip-2": CLIP_2, "t5": T5}


def run(recipe: ContrastiveRecipe | SpanRecipe, folder: Path, scenes: Path, deadline: Deadline) -> bool:
    """Train or continue one encoder.

    Args:
        recipe: of the part.
        folder: of the run.
        scenes: folder of the cached scenes.
        deadline: when to stop.

    Returns:
        Whether the run is complete.
    """
    drawn = draw_scenes(Recipe(), scenes)
    if isinstance(recipe, SpanRecipe):
        return train(recipe, Spans(recipe, build_t5_tokenizer(), drawn), folder, deadline)
    return train(recipe, Contrastive(recipe, build_tokenizer(Recipe()), drawn), folder, deadline)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run; exit status 0 when complete, 3 when the time was over first."""
    parser = ArgumentParser(prog="python -m t2ictl.benchmarks.shapes.train.text", description=__doc__)
    parser.add_argument("--part", choices=tuple(RECIPES), required=True, help="which encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; give it again to continue")
    parser.add_argument("--scenes", type=Path, required=True, help="cached scenes; made where they are missing")
    parser.add_argument("--minutes", type=float, default=None, help="stop with a checkpoint after this long")
    parser.add_argument("--steps", type=int, default=None, help="updates; default: of the recipe")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--export", type=Path, default=None, help="write the encoder there when complete; with --minutes 0 as it stands"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = RECIPES[options.part]
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, steps=options.steps)
    recipe = read_recipe_of(type(recipe), options.out, dataclasses.asdict(recipe), ("steps",))
    is_complete = options.minutes == 0 or run(recipe, options.out, options.scenes, Deadline(minutes=options.minutes))
    if is_complete and options.export is not None:
        export_part(recipe, options.out, options.export)
    return 0 if is_complete else 3


if __name__ == "__main__":
    raise SystemExit(main())

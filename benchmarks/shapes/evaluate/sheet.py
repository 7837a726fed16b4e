"""Images for a person to read: ``python -m t2ictl.benchmarks.shapes.evaluate.sheet --out FOLDER/NAME``.

Writes a sheet of generated images and its list of prompts, with empty readings. The judge
takes no part in it. Filled in, the two files are what
``python -m t2ictl.benchmarks.shapes.evaluate.validate_judge --labels FOLDER`` compares the judge with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.embedded import add_model, as_measured, open_model
from t2ictl.benchmarks.shapes.evaluate.evaluate import generate, trials

#: Images of every kind, 100 in all.
MIX = {
    "pair": 30,
    "attributes": 14,
    "mark": 14,
    "triple": 12,
    "relation": 10,
    "single": 6,
    "texture": 5,
    "size": 5,
    "bolt": 4,
}
COLUMNS = 10
#: Height of the text over an enlarged image, and characters of one of its lines, at any enlargement.
CAPTION, LINE = 36, 30


def lay_out(images: Sequence[Image.Image]) -> Image.Image:
    """Put images of one size side by side, row by row.

    Args:
        images: at least one.

    Returns:
        The sheet.

    Example:
        >>> lay_out([Image.new("RGB", (4, 4))] * 11).size
        (40, 8)
    """
    width, height = images[0].size
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(images) // COLUMNS) * height), "white")
    for cell, image in enumerate(images):
        sheet.paste(image, (cell % COLUMNS * width, cell // COLUMNS * height))
    return sheet


def enlarge(image: Image.Image, title: str, factor: int = 3) -> Image.Image:
    """Make an image readable: larger pixels, with its number and prompt above.

    Args:
        image: to enlarge.
        title: text, broken into lines.
        factor: pixels for each pixel.

    Returns:
        The enlarged image.

    Example:
        >>> enlarge(Image.new("RGB", (64, 64)), "0 a red star").size
        (196, 232)
    """
    width, height = image.width * factor, image.height * factor
    tile = Image.new("RGB", (width + 4, height + CAPTION + 4), "white")
    tile.paste(image.resize((width, height), Image.Resampling.NEAREST), (0, CAPTION))
    lines = [title[start : start + LINE] for start in range(0, len(title), LINE)]
    ImageDraw.Draw(tile).multiline_text((2, 0), "\n".join(lines), fill="black", spacing=1)
    return tile


def main(arguments: list[str] | None = None) -> int:
    """Write ``NAME.png`` and ``NAME.json``, and an enlarged sheet on request."""
    parser = ArgumentParser(prog="python -m t2ictl.benchmarks.shapes.evaluate.sheet", description=__doc__)
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder and name of the files, without an ending")
    parser.add_argument("--large", type=Path, default=None, help="also write an enlarged sheet with prompts here")
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--seed", type=int, default=77)
    options = as_measured(parser.parse_args(arguments))
    torch.set_num_threads(1)
    pipe = open_model(options.model)
    todo = [trial for kind, count in MIX.items() for trial in trials(kind, options.split, count, options.seed)]
    images = [
        image
        for start in range(0, len(todo), 10)
        for image in generate(pipe, todo[start : start + 10], options.steps, options.guidance)
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lay_out(images).save(options.out.with_suffix(".png"))
    labels = [{"cell": cell, "prompt": item.prompt, "reading": ""} for cell, (item, _) in enumerate(todo)]
    text = ",\n".join(f"  {json.dumps(label)}" for label in labels)
    options.out.with_suffix(".json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    if options.large is not None:
        tiles = [
            enlarge(image, f"{cell} {item.prompt}")
            for cell, (image, (item, _)) in enumerate(zip(images, todo, strict=True))
        ]
        lay_out(tiles).save(options.large)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

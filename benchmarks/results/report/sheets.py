"""Contact sheets: prompts down, arms across, the same seed in a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw

from t2ictl.benchmarks.runs.summary import shown_name
from t2ictl.benchmarks.runs.table import checked_image

__all__ = ["contact_sheet"]

CELL, GAP, HEAD, LINE = 128, 4, 18, 16
#: Outline of an image that is not as asked, and of one that is; none where nobody judged.
WRONG, RIGHT = "#d55e00", "#009e73"


def contact_sheet(run: Path, rows: pd.DataFrame, arms: Sequence[str], path: Path, prompts: int = 12) -> Path:
    """Put the first prompts of a category on one sheet, the first seed of each.

    Prompts are taken in the order of their ids, so nothing is chosen by what came out.

    Args:
        run: folder of the run.
        rows: rows of one category.
        arms: columns.
        path: a PNG file.
        prompts: lines at most.

    Returns:
        The file.
    """
    shown = list(dict.fromkeys(rows.sort_values("prompt_id")["prompt_id"]))[:prompts]
    step = CELL + GAP
    sheet = Image.new("RGB", (GAP + step * len(arms), HEAD + (LINE + step) * len(shown)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, arm in enumerate(arms):
        draw.text((GAP + column * step, 3), _cut(shown_name(arm), 20), fill="black")
    first = rows[(rows["seed"] == rows["seed"].min()) & (rows["status"] == "ok")].set_index(["prompt_id", "arm"])
    for line, prompt_id in enumerate(shown):
        top = HEAD + line * (LINE + step)
        text = rows.loc[rows["prompt_id"] == prompt_id, "prompt"].iloc[0]
        draw.text((GAP, top + 1), _cut(str(text), max(20, 20 * len(arms))), fill="black")
        for column, arm in enumerate(arms):
            if (prompt_id, arm) in first.index:
                corner = (GAP + column * step, top + LINE)
                _place(sheet, draw, run, first.loc[(prompt_id, arm)], corner)
    sheet.save(path)
    return path


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, run: Path, row: pd.Series, corner: tuple[int, int]) -> None:
    with Image.open(checked_image(run, row)) as opened:
        image = opened.convert("RGB")
    enlarges = max(image.size) < CELL
    image = image.resize((CELL, CELL), Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS)
    sheet.paste(image, corner)
    strict = row.get("is_strict")
    if strict is not None and not pd.isna(strict):
        box = (*corner, corner[0] + CELL - 1, corner[1] + CELL - 1)
        draw.rectangle(box, outline=RIGHT if strict else WRONG, width=2)

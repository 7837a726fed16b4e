"""A contact sheet of one story: one row an arm, portraits first."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw

from t2ictl.benchmarks.studies.stories.arms import StoryImages
from t2ictl.benchmarks.studies.stories.suite import Story

__all__ = ["contact_sheet"]

SIDE, GAP, LINE = 128, 6, 14


def contact_sheet(story: Story, images: Mapping[str, StoryImages]) -> Image.Image:
    """Lay out the images of a story.

    Args:
        story: for the prompts above the columns.
        images: of each arm.

    Returns:
        The sheet.
    """
    columns, left = len(story.prompts), 70
    size = (left + columns * (SIDE + GAP), 3 * LINE + len(images) * (SIDE + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((2, 0), story.key, fill="black")
    for column, prompt in enumerate(story.prompts):
        words = prompt.split()
        lines = [" ".join(words[:4]), " ".join(words[4:])]
        draw.text((left + column * (SIDE + GAP), 0), "\n".join(lines), fill="black")
    for row, (label, shown) in enumerate(images.items()):
        top = 3 * LINE + row * (SIDE + GAP)
        draw.text((2, top + SIDE // 2), label, fill="black")
        for column, image in enumerate((*shown.portraits, *shown.scenes)):
            tile = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + column * (SIDE + GAP), top))
    return sheet

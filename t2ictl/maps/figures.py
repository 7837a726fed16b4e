"""Images for people: word maps over an image on one honest scale, and images side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

__all__ = ["map_sheet", "overlay", "side_by_side", "stacked"]

TILE = 256  # pixels a side at least: small images are enlarged by whole factors, so that no detail is invented
GAP = 12  # between tiles
BAR = 28  # height of the caption under a tile
PAPER, INK = "#ffffff", "#1f2328"
# Dark to bright in even steps of lightness, readable without color vision.
COLD, WARM, HOT = "#0b0724", "#b73779", "#fcfdbf"


def _tile(image: Image.Image, caption: str) -> Image.Image:
    factor = max(1, -(-TILE // max(image.size)))
    large = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    framed = Image.new("RGB", (large.width, large.height + BAR), PAPER)
    framed.paste(large, (0, 0))
    font = ImageFont.load_default(14)
    ImageDraw.Draw(framed).text((4, large.height + 6), _fitted(caption, font, large.width - 8), fill=INK, font=font)
    return framed


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shorten a caption to the width of its tile."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def side_by_side(images: Sequence[tuple[str, Image.Image]], columns: int = 4) -> Image.Image:
    """Put images beside each other, each with its caption below.

    Args:
        images: pairs of caption and image.
        columns: most images in a row.

    Returns:
        One RGB image. Small images are enlarged by a whole factor without smoothing.

    Example:
        >>> side_by_side([("plain", Image.new("RGB", (64, 64))), ("controlled", Image.new("RGB", (64, 64)))]).size
        (524, 284)
    """
    tiles = [_tile(image, caption) for caption, image in images]
    across = min(columns, len(tiles))
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    down = -(-len(tiles) // across)
    sheet = Image.new("RGB", (across * (width + GAP) - GAP, down * (height + GAP) - GAP), PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % across * (width + GAP), number // across * (height + GAP)))
    return sheet


def stacked(groups: Sequence[Sequence[tuple[str, Image.Image]]], columns: int = 4) -> Image.Image:
    """Put groups of images below each other, each begun in a row of its own.

    Args:
        groups: of each, pairs of caption and image.
        columns: most images in a row.

    Returns:
        One RGB image.

    Example:
        >>> small = Image.new("RGB", (64, 64))
        >>> stacked([[("cat", small)], [("a cat", small), ("a cat at sea", small)]]).size
        (524, 580)
    """
    sheets = [side_by_side(group, columns) for group in groups if group]
    height = sum(sheet.height + GAP for sheet in sheets) - GAP
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), height), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + GAP
    return whole


def overlay(image: Image.Image, map_YX: Tensor, top: float, strength: float = 0.65) -> Image.Image:
    """Lay an attention map over an image.

    Args:
        image: the image.
        map_YX: attention of each place to a word, values from 0.
        top: the value shown brightest. Give all maps of a sheet the same one: a word with
            little attention then looks as weak as it is.
        strength: opacity of the map in [0, 1].

    Returns:
        An RGB image of the same size.

    Example:
        >>> import torch
        >>> overlay(Image.new("RGB", (64, 64)), torch.zeros(16, 16), top=1.0).size
        (64, 64)
    """
    levels = (map_YX.float() / max(top, 1e-12)).clamp(0, 1).mul(255).round().byte()
    gray = Image.fromarray(levels.cpu().numpy()).resize(image.size, Image.Resampling.BICUBIC)
    heat = ImageOps.colorize(gray, black=COLD, mid=WARM, white=HOT)
    return Image.blend(image.convert("L").convert("RGB"), heat, strength)


def map_sheet(image: Image.Image, maps: Mapping[str, Tensor]) -> Image.Image:
    """Show the image and the map of each word on one scale, which is printed on the sheet.

    Args:
        image: the image.
        maps: ``map_YX`` by word.

    Returns:
        One RGB image: the image first, then the words in order.

    Example:
        >>> import torch
        >>> map_sheet(Image.new("RGB", (64, 64)), {"cat": torch.rand(16, 16)}).height
        284
    """
    top = max(float(each.max()) for each in maps.values())
    tiles = [(f"image (brightest = {top:.3f})", image)]
    tiles += [(f"{word} (max {float(each.max()):.3f})", overlay(image, each, top)) for word, each in maps.items()]
    return side_by_side(tiles)

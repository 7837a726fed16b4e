"""Images for people: heat maps of words on one honest scale, over an image or alone, and images in grids.

Legend: ``Y`` ``X`` map rows and columns, ``K`` stop of the color scale, ``R`` color channel.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = [
    "COLORS",
    "LOSSLESS",
    "heat_map",
    "heatmap_grid",
    "html_row",
    "image_grid",
    "image_uri",
    "overlay",
    "png_bytes",
    "stacked_grids",
]

TILE = 256  # pixels a side at least: small images are enlarged by whole factors, so that no detail is invented
GAP = 12  # between tiles
BAR = 28  # height of the caption under a tile
PAPER, INK = "#ffffff", "#1f2328"
COLORS = ("#0b0724", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")
"""Color scale of heat maps: dark to bright in even steps of lightness, readable without color vision."""
LOSSLESS = 128  # pixels of the longer side up to which a data address is lossless
LARGEST = 512  # pixels of the longer side in a data address: a page of 200 images stays small enough to be sent


def image_uri(image: Image.Image, largest: int = LARGEST) -> str:
    """Return an image as a data address: lossless where it is small, else made smaller first.

    Args:
        image: the image.
        largest: its longer side at most (pixels).

    Returns:
        ``data:image/webp;base64,...``
    """
    if max(image.size) > largest:
        image = image.copy()
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", lossless=max(image.size) <= LOSSLESS, quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as the content of a PNG file.

    Args:
        image: the image.

    Returns:
        The bytes.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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
    text = text[: int(width)]  # a letter has a pixel at least; measuring a long text for each of its letters takes long
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def image_grid(images: Sequence[tuple[str, Image.Image]], columns: int = 4) -> Image.Image:
    """Put images beside each other, each with its caption below.

    Args:
        images: pairs of caption and image, at least one.
        columns: most images in a row.

    Returns:
        One RGB image. Small images are enlarged by a whole factor without smoothing.

    Example:
        >>> image_grid([("plain", Image.new("RGB", (64, 64))), ("controlled", Image.new("RGB", (64, 64)))]).size
        (524, 284)
    """
    tiles = [_tile(image, caption) for caption, image in images]
    across = min(columns, len(tiles))
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    down = -(-len(tiles) // across)
    grid = Image.new("RGB", (across * (width + GAP) - GAP, down * (height + GAP) - GAP), PAPER)
    for number, tile in enumerate(tiles):
        grid.paste(tile, (number % across * (width + GAP), number // across * (height + GAP)))
    return grid


def stacked_grids(groups: Sequence[Sequence[tuple[str, Image.Image]]], columns: int = 4) -> Image.Image:
    """Put groups of images below each other, each begun in a row of its own.

    Args:
        groups: of each, pairs of caption and image; at least one group has an image.
        columns: most images in a row.

    Returns:
        One RGB image.

    Example:
        >>> small = Image.new("RGB", (64, 64))
        >>> stacked_grids([[("cat", small)], [("a cat", small), ("a cat at sea", small)]]).size
        (524, 580)
    """
    grids = [image_grid(group, columns) for group in groups if group]
    height = sum(grid.height + GAP for grid in grids) - GAP
    whole = Image.new("RGB", (max(grid.width for grid in grids), height), PAPER)
    top = 0
    for grid in grids:
        whole.paste(grid, (0, top))
        top += grid.height + GAP
    return whole


@functools.cache
def _color_table() -> np.ndarray:
    """The color of each of 256 levels."""
    stops_KR = np.array([[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in COLORS], dtype=np.float64)
    levels_K = np.linspace(0, 255, len(COLORS))
    channels = [np.interp(np.arange(256), levels_K, stops_K) for stops_K in stops_KR.T]
    return np.stack(channels, axis=1).astype(np.uint8)


def heat_map(map_YX: Tensor, top: float, size: tuple[int, int] | None = None) -> Image.Image:
    """Draw an attention map in colors, enlarged smoothly.

    Args:
        map_YX: attention of each position to a word, values from 0.
        top: the value shown brightest. With one value for all words of an image, a word with little attention looks as
            weak as it is.
        size: width and height of the result (pixels); None: the map's aspect, 256 on the longer side.

    Returns:
        An RGB image.

    Example:
        >>> import torch
        >>> heat_map(torch.zeros(16, 8), top=1.0).size
        (128, 256)
    """
    levels_YX = (map_YX.float() / max(top, 1e-12)).clamp(0, 1).cpu().numpy()
    height, width = levels_YX.shape
    factor = TILE / max(height, width)
    size = size or (max(1, round(width * factor)), max(1, round(height * factor)))
    smooth_YX = np.asarray(Image.fromarray(levels_YX).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(_color_table()[(np.clip(smooth_YX, 0, 1) * 255).round().astype(np.uint8)])


def overlay(image: Image.Image, map_YX: Tensor, top: float, strength: float = 0.65) -> Image.Image:
    """Lay the heat map of an attention map over an image, which is drawn in gray.

    Args:
        image: the image.
        map_YX: attention of each position to a word, values from 0.
        top: the value shown brightest, as for :func:`heat_map`.
        strength: opacity of the heat map in [0, 1].

    Returns:
        An RGB image of the same size.

    Example:
        >>> import torch
        >>> overlay(Image.new("RGB", (64, 64)), torch.zeros(16, 16), top=1.0).size
        (64, 64)
    """
    return Image.blend(image.convert("L").convert("RGB"), heat_map(map_YX, top, image.size), strength)


def heatmap_grid(image: Image.Image, maps: Mapping[str, Tensor]) -> Image.Image:
    """Show an image and the heat map of each word over it, on one scale, which is printed below the image.

    Args:
        image: the image.
        maps: ``map_YX`` by word.

    Returns:
        One RGB image: the image first, then the words in order.

    Example:
        >>> import torch
        >>> heatmap_grid(Image.new("RGB", (64, 64)), {"cat": torch.rand(16, 16)}).height
        284
    """
    top = max((float(each.max()) for each in maps.values()), default=0.0)
    tiles = [(f"image (brightest = {top:.3f})", image)]
    tiles += [(f"{word} (max {float(each.max()):.3f})", overlay(image, each, top)) for word, each in maps.items()]
    return image_grid(tiles)


def html_row(images: Sequence[tuple[str, Image.Image]]) -> str:
    """Return a row of images with captions as HTML, which wraps where it does not fit.

    Args:
        images: pairs of caption and image.

    Returns:
        One ``div`` with the images inside; captions are escaped.

    Example:
        >>> html_row([])
        '<div style="display:flex;flex-wrap:wrap;gap:8px"></div>'
    """
    figures = (
        f'<figure style="margin:0"><img width="128" src="{image_uri(image)}" alt="">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, image in images
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(figures)}</div>'

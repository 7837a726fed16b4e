"""Images as the page shows them: small enough to be sent at every click. The file itself is for download."""

from __future__ import annotations

import base64
from pathlib import Path

import streamlit as st
from PIL import Image, ImageChops

from t2ictl.maps import figures

__all__ = ["LEGEND", "PIXELATED", "data_uri", "difference", "difference_uri", "image_size", "image_uri"]

#: The scale of heat maps as a CSS gradient, from nothing to the top.
LEGEND = f"linear-gradient(to right, {', '.join(figures.COLORS)})"
#: Images up to this many pixels are shown pixel by pixel.
PIXELATED = figures.LOSSLESS
LARGEST = 1024
_KEPT = 12


def data_uri(image: Image.Image) -> str:
    """Return an image as a data address, lossless.

    Args:
        image: the image.

    Returns:
        ``data:image/png;base64,...``
    """
    return "data:image/png;base64," + base64.b64encode(figures.png_bytes(image)).decode()


def difference(one: Image.Image, other: Image.Image) -> Image.Image:
    """Show where two images differ: the absolute difference, as it is, not stretched.

    Args:
        one: an image.
        other: one of the same size.

    Returns:
        An RGB image; black where they are equal.
    """
    return ImageChops.difference(one.convert("RGB"), other.convert("RGB"))


@st.cache_data(max_entries=_KEPT, show_spinner=False)
def image_uri(path: Path) -> str:
    """Return an image for the page.

    Args:
        path: its PNG file; numbers are never used twice, so one path is one image.

    Returns:
        A data address.
    """
    with Image.open(path) as image:
        return figures.image_uri(image, LARGEST)


@st.cache_data(max_entries=_KEPT, show_spinner=False)
def difference_uri(path: Path, other: Path) -> str:
    """Return the difference of two images for the page.

    Args:
        path: one PNG file.
        other: another.

    Returns:
        A data address.
    """
    with Image.open(path) as one, Image.open(other) as two:
        image = difference(one, two)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return data_uri(image)


@st.cache_data(max_entries=100, show_spinner=False)
def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image (pixels).

    Args:
        path: its file.

    Returns:
        Width and height.
    """
    with Image.open(path) as image:
        return image.size

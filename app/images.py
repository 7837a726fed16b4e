"""Images as the page shows them: small enough to be sent at every click. The file itself is for download."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import streamlit as st
from PIL import Image

from t2ictl.app.overlay import difference, uri

__all__ = ["PIXELATED", "difference_uri", "image_size", "image_uri"]

#: Images up to this many pixels are shown pixel by pixel, and sent without loss.
PIXELATED = 128
LARGEST = 1024
_KEPT = 12


@st.cache_data(max_entries=_KEPT, show_spinner=False)
def image_uri(path: Path) -> str:
    """Give an image for the page.

    Args:
        path: its PNG file; numbers are never used twice, so one path is one image.

    Returns:
        A data address.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if max(image.size) <= PIXELATED:
        return uri(image)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    image.save(held, format="WEBP", quality=92)
    return "data:image/webp;base64," + base64.b64encode(held.getvalue()).decode()


@st.cache_data(max_entries=_KEPT, show_spinner=False)
def difference_uri(path: Path, other: Path) -> str:
    """Give the difference of two images for the page.

    Args:
        path: one PNG file.
        other: another.

    Returns:
        A data address.
    """
    with Image.open(path) as one, Image.open(other) as two:
        image = difference(one, two)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return uri(image)


@st.cache_data(max_entries=100, show_spinner=False)
def image_size(path: Path) -> tuple[int, int]:
    """Give width and height of an image (pixels).

    Args:
        path: its file.

    Returns:
        Width and height.
    """
    with Image.open(path) as image:
        return image.size

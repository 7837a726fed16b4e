"""Images as settings: a file, or an image in memory that travels with the settings while it is small."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageOps
from pydantic import BeforeValidator, PlainSerializer

from t2ictl.errors import BadSetting
from t2ictl.settings.trust import require_files

__all__ = ["ImageField", "open_image", "require_pixels"]

IN_MEMORY = "data:image/png;base64,"
ABSENT = "sha256:"
# Settings have to fit into a text chunk of 1 MiB, together with everything else.
LARGEST = 64 * 1024
# Pixels that are decoded: of an image that came inside settings, and of a file that the user named. What is not decoded
# takes no memory, however large a small file says that it is.
LARGEST_HELD, LARGEST_FILE = 4096**2, 100_000_000


def _text(value: Any) -> Any:
    """Read an image (file, PIL image, array of 0..255 or 0..1) as the path of its file, or as its own PNG data."""
    if value is None:
        return None
    if isinstance(value, str) and value.startswith(ABSENT):
        raise BadSetting(
            f"The image {value[:20]}... was too large for the settings, which hold its hash alone.",
            "Give the image again, as a file.",
        )
    if isinstance(value, Path) or (isinstance(value, str) and not value.startswith(IN_MEMORY)):
        require_files(value)
        if not os.path.isfile(value):
            raise BadSetting(f"There is no image {_named(str(value))}.", "Give the path of a PNG or JPEG file.")
        value = str(value)
    if isinstance(value, str):
        open_image(value)  # raises if it cannot be read
        return value
    if not isinstance(value, Image.Image):
        value = _of_array(np.asarray(value))
    held = io.BytesIO()
    ImageOps.exif_transpose(value).convert("RGB").save(held, format="PNG")
    return IN_MEMORY + base64.b64encode(held.getvalue()).decode()


def _of_array(array: np.ndarray) -> Image.Image:
    """The image of an array of 0..255, or, of truth values and floating point numbers, 0..1."""
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or array.dtype.kind not in "biuf":
        raise BadSetting(
            f"An array of shape {array.shape} and type {array.dtype} is no image.", "Give rows, columns, 3 channels."
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise BadSetting("The array of an image holds what is no number.", "Give values between 0 and 1.")
    values = array * 255.0 if array.dtype.kind in "bf" else array
    return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))


def _written(value: str | None) -> str | None:
    """What stands in settings: a path, small data, or the hash of large data."""
    if value is None or len(value) <= LARGEST:
        return value
    return ABSENT + hashlib.sha256(value.encode()).hexdigest()


ImageField = Annotated[str, BeforeValidator(_text), PlainSerializer(_written)]
"""An image: path of a file, PIL image or array. Read back from settings unless it was in memory and large."""


def open_image(given_image: str) -> Image.Image:
    """Open an image of the settings.

    Args:
        given_image: a value of a :data:`ImageField` field.

    Returns:
        An RGB image.

    Raises:
        BadSetting: if it cannot be read.

    Example:
        >>> open_image(_text(Image.new("RGB", (4, 2), "red"))).size
        (4, 2)
    """
    try:
        if given_image.startswith(IN_MEMORY):
            source: Any = io.BytesIO(base64.b64decode(given_image.removeprefix(IN_MEMORY)))
        else:
            source = given_image
        with Image.open(source) as image:
            require_pixels(image, LARGEST_HELD if given_image.startswith(IN_MEMORY) else LARGEST_FILE)
            # Cameras say how a photograph is turned, and boxes are given for the upright one.
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # of a damaged file, every format's reader reports something else
        raise BadSetting(
            f"The image {_named(given_image)} cannot be read: {str(error).rstrip('.')}.", "Give a PNG or JPEG file."
        ) from None


def require_pixels(image: Image.Image, most: int = LARGEST_HELD) -> None:
    """Refuse an image that is too large to be decoded, before it is.

    Args:
        image: as it was opened.
        most: most pixels.

    Raises:
        BadSetting: if it has more.
    """
    if image.width * image.height > most:
        raise BadSetting(f"it has {image.width} x {image.height} pixels, more than {most}", "Make it smaller.")


def _named(image: str) -> str:
    """A path for a message; of data no more than a beginning."""
    return repr(image if len(image) < 200 else image[:40] + "...")

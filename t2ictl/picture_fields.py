"""Pictures as settings: a file, or a picture in memory that travels with the settings while it is small."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BeforeValidator, PlainSerializer

from t2ictl.errors import BadSetting

__all__ = ["Picture", "open_picture"]

IN_MEMORY = "data:image/png;base64,"
ABSENT = "sha256:"
# Settings have to fit into a text chunk of 1 MiB, together with everything else.
LARGEST = 64 * 1024


def _text(value: Any) -> Any:
    """Read a picture (file, PIL image, array of 0..255 or 0..1) as the path of its file, or as its own PNG data."""
    if value is None:
        return None
    if isinstance(value, str) and value.startswith(ABSENT):
        raise BadSetting(
            f"The picture {value[:20]}... was too large for the settings, which hold its hash alone.",
            "Give the picture again, as a file.",
        )
    if isinstance(value, str) and value.startswith(IN_MEMORY):
        return value
    if isinstance(value, (str, Path)):
        if not Path(value).is_file():
            raise BadSetting(f"There is no picture {str(value)!r}.", "Give the path of a PNG or JPEG file.")
        open_picture(str(value))
        return str(value)
    if not isinstance(value, Image.Image):
        array = np.asarray(value)
        if array.ndim != 3 or array.shape[2] != 3:
            raise BadSetting(f"An array of shape {array.shape} is no picture.", "Give rows, columns and 3 channels.")
        is_fraction = np.issubdtype(array.dtype, np.floating)
        value = Image.fromarray(np.clip(array * 255 if is_fraction else array, 0, 255).round().astype(np.uint8))
    held = io.BytesIO()
    value.convert("RGB").save(held, format="PNG")
    return IN_MEMORY + base64.b64encode(held.getvalue()).decode()


def _written(value: str | None) -> str | None:
    """What stands in settings: a path, small data, or the hash of large data."""
    if value is None or len(value) <= LARGEST:
        return value
    return ABSENT + hashlib.sha256(value.encode()).hexdigest()


Picture = Annotated[str, BeforeValidator(_text), PlainSerializer(_written)]
"""A picture: path of a file, PIL image or array. Read back from settings unless it was in memory and large."""


def open_picture(picture: str) -> Image.Image:
    """Open a picture of the settings.

    Args:
        picture: a value of a :data:`Picture` field.

    Returns:
        An RGB picture.

    Raises:
        BadSetting: if it cannot be read.

    Example:
        >>> open_picture(_text(Image.new("RGB", (4, 2), "red"))).size
        (4, 2)
    """
    try:
        if picture.startswith(IN_MEMORY):
            source: Any = io.BytesIO(base64.b64decode(picture.removeprefix(IN_MEMORY)))
        else:
            source = picture
        with Image.open(source) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError) as error:
        name = picture if len(picture) < 80 else "in the settings"
        raise BadSetting(f"The picture {name} cannot be read: {error}.", "Give a PNG or JPEG file.") from None

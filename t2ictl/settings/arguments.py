"""Arguments of a pipeline call beside those of a request: written into the settings of an image, and read back."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2ictl.errors import BadSetting, shown
from t2ictl.settings.images import ABSENT, IN_MEMORY, LARGEST, require_pixels

__all__ = ["read_arguments", "written_arguments"]

MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # that a PNG holds as they are
_DEPTH = 20


def written_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write arguments as JSON values.

    Numbers, texts and lists of them are kept. Images are kept as PNG data while all of them together are small; of a
    larger one, and of a tensor, the hash is kept, so that a reader knows what is missing.

    Args:
        arguments: as the pipeline got them.

    Returns:
        JSON value by name.

    Example:
        >>> written_arguments({"strength": 0.5, "latents": torch.zeros(2)})["latents"][:12]
        'sha256:af557'
    """
    room = [LARGEST]
    return {name: _written(value, room) for name, value in arguments.items()}


def _written(value: Any, room: list[int], depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)) and depth < _DEPTH:
        return [_written(each, room, depth + 1) for each in value]
    if isinstance(value, Mapping) and depth < _DEPTH:
        return {str(key): _written(each, room, depth + 1) for key, each in value.items()}
    if isinstance(value, Image.Image):
        content = _png(value)
        text = IN_MEMORY + base64.b64encode(content).decode()
        if len(text) <= room[0]:
            room[0] -= len(text)
            return text
        return ABSENT + hashlib.sha256(content).hexdigest()
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    if isinstance(value, np.ndarray):
        return ABSENT + hashlib.sha256(value.tobytes()).hexdigest()
    return f"{ABSENT}{type(value).__name__}"


def _png(image: Image.Image) -> bytes:
    held = io.BytesIO()
    (image if image.mode in MODES else image.convert("RGB")).save(held, format="PNG")
    return held.getvalue()


def read_arguments(data: object) -> tuple[dict[str, Any], list[str]]:
    """Read arguments back.

    Args:
        data: as :func:`written_arguments` wrote them.

    Returns:
        Value by name, and the names of those that are not in the settings.

    Raises:
        BadSetting: if they have another form, or an image among them is damaged.

    Example:
        >>> read_arguments({"strength": 0.5, "image": "sha256:0"})
        ({'strength': 0.5}, ['image'])
    """
    if not isinstance(data, Mapping):
        raise BadSetting(f"The settings have arguments {shown(data, 60)}.", "Arguments are a JSON object.")
    if not all(isinstance(name, str) for name in data):
        raise BadSetting(f"The settings have arguments {shown(data, 60)}.", "Names of arguments are text.")
    try:
        missing = [name for name, value in data.items() if _is_absent(value)]
        return {name: _read(value) for name, value in data.items() if name not in missing}, missing
    except RecursionError:
        raise BadSetting("The arguments in the settings are nested too deeply.", "Use a file of t2ictl.") from None


def _is_absent(value: Any) -> bool:
    if isinstance(value, (list, tuple, Mapping)):
        return any(_is_absent(each) for each in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, str) and value.startswith(ABSENT)


def _read(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _read(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_read(each) for each in value]
    if not (isinstance(value, str) and value.startswith(IN_MEMORY)):
        return value
    try:
        with Image.open(io.BytesIO(base64.b64decode(value.removeprefix(IN_MEMORY))), formats=["PNG"]) as image:
            require_pixels(image)
            return image.copy()
    except Exception as error:  # a damaged file is reported in many ways
        raise BadSetting(f"An image in the settings cannot be read: {error}.", "Use a file of t2ictl.") from None

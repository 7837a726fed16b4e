"""From results to one HTML file: images and maps inside, nothing fetched.

Legend: ``N`` word, ``P`` place (layer group), ``S`` step, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from t2ictl.maps.record import AttentionRecord

__all__ = ["image_uri", "render", "rendered_maps"]

HOME = Path(__file__).parent
# Longer sides are brought to this many pixels: a report of 200 images stays small enough to be sent.
LARGEST = 512
# Values of maps in the page, from 0 to the brightest: 16 bits, so that ranks and low values stay right.
LEVELS = 65535


def render(template: str, folders: Sequence[Path] = (), **values: Any) -> str:
    """Fill a template in; everything that is filled in is escaped.

    Args:
        template: name of its file.
        folders: where it is looked for before this package's own folder.
        **values: what it shows; ``data`` is also there for its script, as JSON.

    Returns:
        The page.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, HOME]),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script"] = _script
    environment.filters["percent"] = _percent
    return environment.get_template(template).render(**values)


def _script(data: Any) -> Markup:
    """JSON for a script element: no text in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def image_uri(image: Image.Image, largest: int = LARGEST) -> str:
    """Give an image as a data address: lossless where it is small, else made smaller first.

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
    is_small = max(image.size) <= 128
    image.convert("RGB").save(buffer, "WEBP", lossless=is_small, quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def rendered_maps(record: AttentionRecord, image: int = 0, words: Sequence[str] = ()) -> dict[str, Any]:
    """Give the maps of an image for a page: every word, layer group and step, on one scale.

    Args:
        record: of a session.
        image: which image of the call.
        words: which words; empty: all that were recorded.

    Returns:
        Plain JSON data: ``words``, ``places`` (the first one is all of them), ``steps``, ``size`` (rows and columns),
        ``top`` (the brightest mean over steps, which all maps share), ``scale``, and ``maps``: 16-bit values from 0
        to ``scale``, in base64, ordered word, place, step, row, column; the first step is the mean over all.
    """
    names = list(words) or record.names(image)
    places: list[str | None] = [None, *record.maps]
    has_steps = all(len(maps) == record.steps for maps in record.maps.values()) and record.steps > 1
    steps: list[int | None] = [None, *(range(record.steps) if has_steps else ())]
    maps_NPSYX = torch.stack(
        [torch.stack([_steps(record, name, image, place, steps) for place in places]) for name in names]
    )
    scale = max(float(maps_NPSYX.max()), 1e-12)
    values = (maps_NPSYX / scale * LEVELS).round().clamp(0, LEVELS).to(torch.int32).numpy().astype("<u2")
    return {
        "words": names,
        "places": ["all", *record.maps],
        "steps": len(steps) - 1,
        "size": list(maps_NPSYX.shape[-2:]),
        "top": float(maps_NPSYX[:, 0, 0].max()),
        "scale": scale,
        "maps": base64.b64encode(values.tobytes()).decode(),
    }


def _steps(record: AttentionRecord, word: str, image: int, place: str | None, steps: Sequence[int | None]) -> Tensor:
    return torch.stack([record.map(word, image=image, place=place, step=step) for step in steps])

"""From results to one HTML file: images and maps inside, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

__all__ = ["render"]

HOME = Path(__file__).parent


def render(template: str, folders: Sequence[Path] = (), **values: Any) -> str:
    """Fill a template in; everything that is filled in is escaped.

    Args:
        template: name of its file.
        folders: searched before this package's own folder.
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

"""How a record of attention maps shows itself in a notebook."""

from __future__ import annotations

import html
from typing import Any

from PIL import Image

from t2ictl.maps.figures import heat_map, html_row, png_bytes, stacked_grids

__all__ = ["ShownInNotebooks"]

COLUMNS = 8  # heat maps in a row


class ShownInNotebooks:
    """Something with ``names`` and a ``map`` of words for each of its ``prompts``, shown as heat maps on one scale."""

    def _tiles(self, image: int) -> list[tuple[str, Image.Image]]:
        """The heat map of each word of an image on one scale, with its caption."""
        record: Any = self
        names = record.names(image) if record.maps else []
        maps = {name: record.map(name, image=image) for name in names}
        top = max((float(each.max()) for each in maps.values()), default=0.0)
        return [(f"{name} (max {float(each.max()):.3f})", heat_map(each, top)) for name, each in maps.items()]

    def _repr_png_(self) -> bytes | None:
        """The heat maps of all words in a row, one row for each image, for notebooks."""
        record: Any = self
        rows = [tiles for image in range(len(record.prompts)) if (tiles := self._tiles(image))]
        return png_bytes(stacked_grids(rows, COLUMNS)) if rows else None

    def _repr_html_(self) -> str:
        """The heat maps of all words in a row, one row for each image, for notebooks."""
        record: Any = self
        parts = [f"<code>{html.escape(repr(record))}</code>"]
        for image, prompt in enumerate(record.prompts):
            parts.append(f"<p>{html.escape(prompt.text)}</p>{html_row(self._tiles(image))}")
        return "".join(parts)

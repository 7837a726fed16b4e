"""The stage: images, the heat map of a word over them, comparison, and pointing. One component for all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import streamlit as st

__all__ = ["Pane", "stage"]

_HOME = Path(__file__).parent
_STAGE = st.components.v2.component(
    "t2ictl.stage",
    html="<div class='stage'></div>",
    css=(_HOME / "stage.css").read_text(encoding="utf-8"),
    js=(_HOME / "stage.js").read_text(encoding="utf-8"),
)


@dataclass(frozen=True, kw_only=True)
class Pane:
    """One image of the stage.

    Args:
        src: data address of the image.
        alt: what it shows, in words.
        label: its caption.
        note: what stands at the right of the caption.
        heat: data address of a heat map that lies over it; empty for none.
        which: 0 for the image itself, 1 for the plain one: whose maps are meant when somebody points.
    """

    src: str
    alt: str
    label: str
    note: str = ""
    heat: str = ""
    which: int = 0


def stage(
    panes: Sequence[Pane],
    *,
    mode: str,
    aspect: float,
    opacity: float,
    point: Mapping[str, Any] | None,
    pixelated: bool,
    key: str,
    on_point: Callable[[], None],
) -> Mapping[str, Any] | None:
    """Show images, and return where somebody pointed.

    Args:
        panes: one image, or the image and the plain one.
        mode: ``"one"``, ``"side"``, ``"slider"`` or ``"flick"``.
        aspect: width over height.
        opacity: of the maps, in [0, 1].
        point: the marked position: ``x`` and ``y`` as fractions; None for none.
        pixelated: whether pixels are shown as they are, for small images.
        key: of the component.
        on_point: called when somebody pointed.

    Returns:
        The last position that was pointed at: ``x``, ``y`` and ``pane``; None if there was none.
    """
    data = {
        "panes": [asdict(pane) for pane in panes],
        "mode": mode,
        "aspect": aspect,
        "opacity": opacity,
        "point": point,
        "pixelated": pixelated,
    }
    found = _STAGE(key=key, data=data, on_point_change=on_point)
    return found.get("point") if found else None

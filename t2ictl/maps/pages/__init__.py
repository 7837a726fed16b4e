"""HTML pages that need no other file and no network."""

from __future__ import annotations

from t2ictl.maps.pages.rendering import render

__all__ = ["render"]

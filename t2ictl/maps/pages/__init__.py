"""HTML pages that need no other file and no network."""

from __future__ import annotations

from t2ictl.maps.pages.rendering import image_uri, render, rendered_maps

__all__ = ["image_uri", "render", "rendered_maps"]

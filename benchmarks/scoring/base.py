"""What a metric is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

__all__ = ["Metric", "Score", "short"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a metric says of one image.

    Args:
        value: the score.
        parts: what it is made of, by name.
    """

    value: float
    parts: dict[str, float] = field(default_factory=dict)


class Metric(Protocol):
    """A metric. ``name`` carries its variant, ``facts`` what else a reader needs to make it again."""

    name: str
    facts: dict[str, Any]

    def __call__(self, image: Image.Image, prompt: str) -> Score:
        """Score one image."""


def short(model: str) -> str:
    """Return the last part of a folder or hub id.

    Args:
        model: folder or hub id.

    Returns:
        Its name.

    Example:
        >>> short("openai/clip-vit-base-patch32")
        'clip-vit-base-patch32'
    """
    return model.rstrip("/").rpartition("/")[2]

"""What the official code of token merging sets apart, by the kind of prompt and by the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from t2ictl.attention.layers import Layer
from t2ictl.settings.windows import Window

__all__ = ["PRESETS", "Preset", "SDXL_LAYERS", "published_layers"]


# Official code: three layers of the first decoder block, 32 x 32 at 1024. Elsewhere the decoder at the semantic size.
SDXL_LAYERS = tuple(f"up.0.1.{layer}.cross" for layer in (1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What the official code sets apart for attributes and for objects with accessories."""

    window: Window
    entropy: int
    substitutes: bool


PRESETS = {
    "attribute": Preset(window=Window(stop=0.1), entropy=4, substitutes=False),
    "object": Preset(window=Window(stop=0.14), entropy=6, substitutes=True),
}


def published_layers(family: str, layers: Sequence[Layer], factor: int) -> tuple[str, ...]:
    """Layer filter for the entropy: the published layers of SDXL, elsewhere the decoder at the semantic factor."""
    is_published = family == "sdxl" and set(SDXL_LAYERS) <= {layer.address for layer in layers}
    return SDXL_LAYERS if is_published else (f"up.*@{factor}",)

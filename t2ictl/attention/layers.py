"""Where: readable addresses of attention layers, and one way to select them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from t2ictl.errors import NoLayerMatched

__all__ = ["Kind", "Layer", "LayerFilter", "TextPlace", "select_layers"]


Kind = Literal["cross", "self", "joint", "single", "linear"]
TextPlace = Literal["none", "keys", "first", "last"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The address of one attention layer, in words that hold for every family.

    Args:
        address: a path that ends with the kind: ``up.1.0.0.cross`` (block, number, attention, layer) of a U-Net,
            ``transformer_blocks.7.joint`` of a transformer.
        module: name of the attention module inside the denoiser.
        kind: ``"cross"`` (the image attends to text), ``"self"`` (to itself), ``"joint"`` (image and text to both, with
            projections of their own), ``"single"`` (the same with shared ones), ``"linear"`` (to itself, without a
            softmax).
        block: ``"down"``, ``"mid"`` or ``"up"`` of a U-Net; ``"early"``, ``"middle"`` or ``"late"``, the thirds of a
            transformer.
        stride: latent cells per map cell along each side (1, 2, 4, ...).
        order: position in the order in which the denoiser runs its layers.
        heads: number of attention heads.
        depth: share of the denoiser's blocks that come before, in [0, 1).
        text: where text stands among the keys: they are all text, it comes first, last, or there is none.
    """

    address: str
    module: str
    kind: Kind
    block: str
    stride: int
    order: int
    heads: int
    depth: float = 0.0
    text: TextPlace = "keys"

    @property
    def has_words(self) -> bool:
        """Whether places of the image attend to words here, with a softmax."""
        return self.kind in ("cross", "joint", "single")

    def size(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of this layer's maps.

        Each level of a U-Net halves a side and rounds up, so odd sizes come out right; so do patches.

        Args:
            latent_size: height and width of the latent (cells).

        Returns:
            Height and width of the map (cells).

        Example:
            >>> layer = Layer(address="mid.0.0.0.cross", module="m", kind="cross", block="mid",
            ...             stride=4, order=0, heads=8)
            >>> layer.size((13, 64))
            (4, 16)
        """
        height, width = latent_size
        stride = self.stride
        while stride > 1:
            height, width, stride = -(-height // 2), -(-width // 2), stride // 2
        return height, width


LayerFilter = str | Sequence[str] | Callable[[Layer], bool]


_DEPTH = re.compile(r"depth(?P<sign><=|>=|<|>)(?P<value>\d*\.?\d+)")
_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def _matches(layer: Layer, pattern: str) -> bool:
    """Match one pattern: conditions that all hold, joined by ``&``."""
    return all(_holds(layer, each.strip()) for each in pattern.split("&"))


def _holds(layer: Layer, condition: str) -> bool:
    """Match ``GLOB``, ``GLOB@STRIDE`` or ``depth<SHARE``; a bare word is a kind or a block."""
    if depth := _DEPTH.fullmatch(condition):
        return bool(_SIGNS[depth["sign"]](layer.depth, float(depth["value"])))
    glob, _, stride = condition.partition("@")
    if stride and str(layer.stride) != stride:
        return False
    if glob in ("", "*", layer.kind, layer.block):
        return True
    # All of a block by its name: "transformer_blocks.7" is not "transformer_blocks.70".
    return fnmatchcase(layer.address, glob) or fnmatchcase(layer.address, f"{glob}.{layer.kind}")


def select_layers(layers: Sequence[Layer], where: LayerFilter) -> tuple[Layer, ...]:
    """Choose attention layers by pattern, list of patterns, or predicate.

    A pattern is a glob on the address (``"up.*.cross"``, ``"transformer_blocks.7"``) or one word (``"cross"``,
    ``"mid"``, ``"joint"``), with an optional ``@stride``: ``"cross@4"`` is every cross-attention whose map has a
    quarter of the latent's side. ``"depth<0.5"`` is the first half of the blocks; ``"joint&depth<0.5"`` asks for both.

    Args:
        layers: the layers of the model.
        where: the filter; of several patterns, any may match.

    Returns:
        The chosen layers in the order in which the denoiser runs them.

    Raises:
        NoLayerMatched: if the filter matches no layer; a control that touches nothing would
            look as if it worked.

    Example:
        >>> mid = Layer(address="mid.0.0.0.cross", module="m", kind="cross", block="mid", stride=4, order=0, heads=8)
        >>> [layer.address for layer in select_layers([mid], "cross@4")]
        ['mid.0.0.0.cross']
        >>> select_layers([mid], "up.*")
        Traceback (most recent call last):
        t2ictl.errors.NoLayerMatched: No attention layer matches 'up.*'. This model has: mid.0.0.0.cross@4.
    """
    if callable(where):
        chosen = [layer for layer in layers if where(layer)]
    else:
        patterns = (where,) if isinstance(where, str) else tuple(where)
        chosen = [layer for layer in layers if any(_matches(layer, pattern) for pattern in patterns)]
    if not chosen:
        known = ", ".join(f"{layer.address}@{layer.stride}" for layer in layers)
        shown = where if isinstance(where, str) else getattr(where, "__name__", where)
        raise NoLayerMatched(f"No attention layer matches {shown!r}.", f"This model has: {known}.")
    return tuple(sorted(chosen, key=lambda layer: layer.order))

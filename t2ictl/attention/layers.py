"""Where: readable addresses of attention layers, and one way to select them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from t2ictl.errors import NoLayerMatched

__all__ = ["Layer", "LayerFilter", "select_layers"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The address of one attention layer, in words that hold for every U-Net family.

    Args:
        address: ``block.number.attention.layer.kind``, for example ``up.1.0.0.cross``.
        module: name of the attention module inside the denoiser.
        kind: ``"cross"`` (the image attends to text) or ``"self"`` (it attends to itself).
        block: ``"down"``, ``"mid"`` or ``"up"``.
        stride: latent cells per map cell along each side (1, 2, 4, ...).
        order: position in the order in which the denoiser runs its layers.
        heads: number of attention heads.
    """

    address: str
    module: str
    kind: Literal["cross", "self"]
    block: Literal["down", "mid", "up"]
    stride: int
    order: int
    heads: int

    def size(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of this layer's maps.

        Each level of a U-Net halves a side and rounds up, so odd sizes come out right.

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


def _matches(layer: Layer, pattern: str) -> bool:
    """Match one pattern: ``GLOB`` or ``GLOB@STRIDE``; a bare word is a kind or a block."""
    glob, _, stride = pattern.partition("@")
    if stride and str(layer.stride) != stride:
        return False
    if glob in ("", "*"):
        return True
    if "." not in glob:
        return glob in (layer.kind, layer.block)
    return fnmatchcase(layer.address, glob)


def select_layers(layers: Sequence[Layer], where: LayerFilter) -> tuple[Layer, ...]:
    """Choose attention layers by pattern, list of patterns, or predicate.

    A pattern is a glob on the address (``"up.*.cross"``) or one word (``"cross"``, ``"mid"``),
    with an optional ``@stride``: ``"cross@4"`` is every cross-attention whose map has a
    quarter of the latent's side.

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

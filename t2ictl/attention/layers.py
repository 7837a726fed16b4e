"""Where: readable addresses of attention layers, and one way to select them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from t2ictl.errors import NoSiteMatched

__all__ = ["Site", "SiteFilter", "select"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """The address of one attention layer, in words that hold for every U-Net family.

    Args:
        address: ``place.block.attention.layer.kind``, for example ``up.1.0.0.cross``.
        module: name of the attention module inside the denoiser.
        kind: ``"cross"`` (image looks at text) or ``"self"`` (image looks at itself).
        place: ``"down"``, ``"mid"`` or ``"up"``.
        factor: latent cells per map cell along each side (1, 2, 4, ...).
        order: position in the order in which the denoiser runs its layers.
        heads: number of attention heads.
    """

    address: str
    module: str
    kind: Literal["cross", "self"]
    place: Literal["down", "mid", "up"]
    factor: int
    order: int
    heads: int

    def size(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Give the height and width of this layer's maps.

        Each level of a U-Net halves a side and rounds up, so odd sizes come out right.

        Args:
            latent_size: height and width of the latent (cells).

        Returns:
            Height and width of the map (cells).

        Example:
            >>> site = Site(address="mid.0.0.0.cross", module="m", kind="cross", place="mid",
            ...             factor=4, order=0, heads=8)
            >>> site.size((13, 64))
            (4, 16)
        """
        height, width = latent_size
        factor = self.factor
        while factor > 1:
            height, width, factor = -(-height // 2), -(-width // 2), factor // 2
        return height, width


SiteFilter = str | Sequence[str] | Callable[[Site], bool]


def _matches(site: Site, pattern: str) -> bool:
    """Match one pattern: ``GLOB`` or ``GLOB@FACTOR``; a bare word is a kind or a place."""
    glob, _, factor = pattern.partition("@")
    if factor and str(site.factor) != factor:
        return False
    if glob in ("", "*"):
        return True
    if "." not in glob:
        return glob in (site.kind, site.place)
    return fnmatchcase(site.address, glob)


def select(sites: Sequence[Site], where: SiteFilter) -> tuple[Site, ...]:
    """Choose attention layers by pattern, list of patterns, or predicate.

    A pattern is a glob on the address (``"up.*.cross"``) or one word (``"cross"``, ``"mid"``),
    with an optional ``@factor``: ``"cross@4"`` is every cross-attention whose map has a
    quarter of the latent's side.

    Args:
        sites: the layers of the model.
        where: the filter; of several patterns, any may match.

    Returns:
        The chosen layers in the order in which the denoiser runs them.

    Raises:
        NoSiteMatched: if the filter matches no layer; a control that touches nothing would
            look as if it worked.

    Example:
        >>> mid = Site(address="mid.0.0.0.cross", module="m", kind="cross", place="mid", factor=4, order=0, heads=8)
        >>> [site.address for site in select([mid], "cross@4")]
        ['mid.0.0.0.cross']
        >>> select([mid], "up.*")
        Traceback (most recent call last):
        t2ictl.errors.NoSiteMatched: No attention layer matches 'up.*'. This model has: mid.0.0.0.cross@4.
    """
    if callable(where):
        chosen = [site for site in sites if where(site)]
    else:
        patterns = (where,) if isinstance(where, str) else tuple(where)
        chosen = [site for site in sites if any(_matches(site, pattern) for pattern in patterns)]
    if not chosen:
        known = ", ".join(f"{site.address}@{site.factor}" for site in sites)
        shown = where if isinstance(where, str) else getattr(where, "__name__", where)
        raise NoSiteMatched(f"No attention layer matches {shown!r}.", f"This model has: {known}.")
    return tuple(sorted(chosen, key=lambda site: site.order))

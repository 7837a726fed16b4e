"""One forward pass of the denoiser: what acts in it, and who listens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.attention.layers import Layer
from t2ictl.errors import UnsupportedPipeline
from t2ictl.settings.windows import Step

__all__ = ["DenoiserPass", "MapKind", "PassKind", "Rows", "StopForward", "ActivePass", "Tap", "map_kind"]


Rows = slice | list[int]


MapKind = Literal["text", "all_keys", "text_to_image", "output_space", "text_mass"]
"""Readings of joint attention, in which places of the image attend to text and image. ``text``: normalized over text
alone, as in cross-attention. ``all_keys``: a word's share of all attention of a place. ``text_to_image``: where a
word's own query goes, normalized over places. ``output_space``: likeness of a place's and a word's results
(ConceptAttention, Helbling et al. 2025, arXiv 2502.04320). ``text_mass``: what of a place's attention goes to text at
all, one column."""


def map_kind(tap: Tap) -> MapKind:
    """Return the reading that a tap wants: its ``kind``, or ``"text"``."""
    found: MapKind = getattr(tap, "kind", "text")
    return found


class Tap(Protocol):
    """A read-only listener to attention maps. It never touches the image path.

    It hears what the layer's own queries and keys say, before any edit of that layer acts: the
    columns are then the tokens of the prompt, whatever an edit adds to the keys.
    """

    layers: frozenset[str]
    rows: Rows

    def take(self, call: AttentionCall, map_BQK: Tensor) -> None:
        """Receive the attention weights of one layer, summed over its heads, for the tap's rows."""


class StopForward(Exception):
    """Ends an extra forward pass after the last layer it was made for."""


class PassKind(Enum):
    """What a forward pass is for.

    ``IMAGE``: it makes the image; taps compute beside the fused kernels. ``MAPS``: an extra pass for attention maps:
    no image comes of it, so a layer's maps and its attention share queries and keys. ``OTHER_TEXT``: an extra pass
    under another text, without edits and taps, and short for a text of one position.
    """

    IMAGE = "image"
    MAPS = "maps"
    OTHER_TEXT = "other text"


@dataclass(kw_only=True)
class DenoiserPass:
    """What is to happen during one forward pass of the denoiser.

    Args:
        batch: what each row of this pass is.
        latent_size: height and width of the latent (cells).
        step: which evaluation this is.
        edits: edits by layer address, in order.
        taps: listeners to maps.
        stop_after: address of the layer after whose maps the pass may end, or None.
        kind: what the pass is for.
        text_length: text positions that attention reads.
        visited: addresses of the layers that have run.
    """

    batch: BatchLayout
    latent_size: tuple[int, int]
    step: Step
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict)
    taps: Sequence[Tap] = ()
    stop_after: str | None = None
    kind: PassKind = PassKind.IMAGE
    text_length: int = 0
    visited: set[str] = field(default_factory=set)

    def check_visited(self, layers: Sequence[Layer]) -> None:
        """See that no layer was left out.

        Args:
            layers: all layers that have one of our processors, in the order in which they run.

        Raises:
            UnsupportedPipeline: if one before the end of the pass did not run.
        """
        for layer in layers:
            if layer.address not in self.visited:
                raise UnsupportedPipeline(
                    f"The attention layer {layer.address} did not run at evaluation {self.step.index}: something "
                    "reuses features of an earlier evaluation in its place.",
                    "Take the cache out for the length of the session (diffusers' own: its disable_cache()); "
                    "its features would come from other latents than those that the session measures and moves.",
                )
            if layer.address == self.stop_after:
                return


class ActivePass:
    """The pass in progress, shared by all processors of a session."""

    def __init__(self) -> None:
        self._current: DenoiserPass | None = None

    @property
    def current(self) -> DenoiserPass | None:
        """The pass in progress, or None."""
        return self._current

    def begin(self, now: DenoiserPass) -> None:
        """Start a pass whose end somebody else will tell: a hook after the denoiser."""
        self._current = now

    def end(self) -> None:
        """End the pass, if one is in progress."""
        self._current = None

    @contextmanager
    def use(self, now: DenoiserPass) -> Iterator[None]:
        """Hold a pass for the length of a ``with`` block."""
        self.begin(now)
        try:
            yield
        finally:
            self.end()

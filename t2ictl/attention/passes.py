"""One forward pass of the denoiser: what acts in it, and who listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.settings.windows import Step

__all__ = ["DenoiserPass", "Rows", "StopForward", "ActivePass", "Tap"]


Rows = slice | list[int]


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
    """Ends a extra forward pass after the last layer it was made for."""


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
        is_own: an extra pass for maps: no image comes of it, so a layer's maps and its attention may share
            queries and keys.
        is_free: an extra pass under another text: without edits and taps, and short for a text of one position.
    """

    batch: BatchLayout
    latent_size: tuple[int, int]
    step: Step
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict)
    taps: Sequence[Tap] = ()
    stop_after: str | None = None
    is_own: bool = False
    is_free: bool = False


class ActivePass:
    """The pass in progress, shared by all processors of a session; None when none is."""

    current: DenoiserPass | None = None

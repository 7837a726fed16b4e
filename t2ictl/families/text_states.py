"""What the text encoders of a pipeline give the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Encode", "PromptEmbeds"]


@dataclass(frozen=True, kw_only=True)
class PromptEmbeds:
    """The conditional text states of a call.

    Args:
        embeds: ``embeds_BTC``, what cross-attention reads; of two encoders side by side.
        pooled: ``pooled_BC``, or None for models without.
    """

    embeds: Tensor
    pooled: Tensor | None = None

    def same_images(self, other: PromptEmbeds) -> frozenset[int]:
        """Find the images that have the very same states in both.

        Args:
            other: states of the same images.

        Returns:
            The images; none where the rows have another length.
        """
        if self.embeds.shape != other.embeds.shape:
            return frozenset()
        same_B = (self.embeds == other.embeds).flatten(1).all(dim=1)
        if self.pooled is not None and other.pooled is not None:
            same_B = same_B & (self.pooled == other.pooled).flatten(1).all(dim=1)
        return frozenset(torch.nonzero(same_B).flatten().tolist())


class Encode(Protocol):
    """Encodes texts, one row each, as the pipeline encodes its prompt in this call."""

    def __call__(
        self,
        texts: Sequence[str],
        first: Sequence[int] | None = None,
        seen: Sequence[Tensor] | None = None,
        depth: float = 1.0,
    ) -> PromptEmbeds:
        """Return the states.

        ``first`` is for each text the position from which on its words are read (None: 1), ``seen`` for each encoder
        ``seen_BK``, the positions that it may read (None: all), ``depth`` the share of its layers that read.
        """

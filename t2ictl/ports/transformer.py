"""What the ports of transformers have in common: a chain of blocks, each with one or two attention layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import nn

from t2ictl.attention.layers import Kind, Layer, TextPlace
from t2ictl.ports.base import DenoiserPort

__all__ = ["Attention", "TransformerPort"]

Attention = tuple[str, Kind, TextPlace]
"""An attention layer of a block: its attribute, its kind, and where text stands among its keys."""
_THIRDS = ("early", "middle", "late")


class TransformerPort(DenoiserPort):
    """A chain of blocks of one size."""

    chains: ClassVar[Mapping[str, Sequence[Attention]]]
    """Lists of blocks in the order in which they run, and the attention layers of each."""

    @property
    def patch_size(self) -> int:
        """Latent cells per position along each side."""
        return int(self.denoiser.config.patch_size)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent: one for inpainting is given more than it predicts, one of variances predicts more."""
        config = self.denoiser.config
        return min(int(config.in_channels), int(getattr(config, "out_channels", None) or config.in_channels))

    @property
    def native_cells(self) -> tuple[int, int]:
        """Its sample size."""
        own = self.denoiser.config.sample_size
        return (own, own) if isinstance(own, int) else (own[0], own[1])

    @property
    def cell_multiple(self) -> int:
        """A patch."""
        return self.patch_size

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The attention layers of all blocks."""
        blocks = list(self.blocks())
        found: list[Layer] = []
        for number, (name, block) in enumerate(blocks):
            for attribute, kind, text in self.chains[name.partition(".")[0]]:
                attention: Any = getattr(block, attribute, None)
                if attention is None:  # some blocks have a second layer, others not
                    continue
                found.append(
                    Layer(
                        address=f"{name}.{kind}",
                        module=f"{name}.{attribute}",
                        kind=kind,
                        block=_THIRDS[3 * number // len(blocks)],
                        stride=self.patch_size,
                        order=len(found),
                        heads=int(attention.heads),
                        depth=number / len(blocks),
                        text=text,
                    )
                )
        return tuple(found)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield all blocks in the order in which they run."""
        for chain in self.chains:
            for number, block in enumerate(getattr(self.denoiser, chain)):
                yield f"{chain}.{number}", block

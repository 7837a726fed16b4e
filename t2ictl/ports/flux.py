"""The transformers of FLUX.1 and Chroma, and others that take packed latents.

Two by two cells of the latent are one token of four times as many channels. Height and width are not in the packed
sample; they are in the ids of its tokens.

Legend: ``B`` batch row, ``N`` token of the latent, ``C`` channels, ``Y`` ``X`` rows and columns of the latent, ``P``
cells of a patch along each side.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ChromaTransformer2DModel, FluxTransformer2DModel
from torch import Tensor, nn

from t2ictl.attention.cache import TensorCache
from t2ictl.ports.base import Inputs
from t2ictl.ports.transformer import TransformerPort

__all__ = ["ChromaPort", "FluxPort", "packed", "unpacked"]

PATCH = 2
# Pixels of the images that the models were made for, in latent cells; the configuration does not say.
NATIVE = 128


def packed(x_BCYX: Tensor) -> Tensor:
    """Pack patches of a latent into tokens.

    Args:
        x_BCYX: the latent; both sides are even.

    Returns:
        ``tokens_BNC``, row by row, channels before rows before columns of a patch.

    Example:
        >>> x_BCYX = torch.arange(16.0).view(1, 1, 4, 4)
        >>> packed(x_BCYX)[0, 0].tolist()
        [0.0, 1.0, 4.0, 5.0]
    """
    batch, channels, height, width = x_BCYX.shape
    patches = x_BCYX.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens_BNC: Tensor, rows: int, columns: int) -> Tensor:
    """Undo :func:`packed`.

    Args:
        tokens_BNC: the tokens.
        rows: tokens along the height.
        columns: tokens along the width.

    Returns:
        ``x_BCYX``.

    Example:
        >>> x_BCYX = torch.randn(2, 4, 6, 8)
        >>> torch.equal(unpacked(packed(x_BCYX), 3, 4), x_BCYX)
        True
    """
    batch = len(tokens_BNC)
    patches = tokens_BNC.reshape(batch, rows, columns, -1, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * PATCH, columns * PATCH)


class FluxPort(TransformerPort):
    """``FluxTransformer2DModel``: packed latents, text before image; joint blocks, then single ones."""

    chains = {
        "transformer_blocks": (("attn", "joint", "first"),),
        "single_transformer_blocks": (("attn", "single", "first"),),
    }
    unbatched = frozenset({"img_ids", "txt_ids"})

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser)
        self._sides = TensorCache()

    @classmethod
    def _stock_class(cls) -> type[nn.Module]:
        return FluxTransformer2DModel

    @property
    def patch_size(self) -> int:
        """Latents come in patches already; the model's own patch is one token."""
        return PATCH

    @property
    def latent_channels(self) -> int:
        """Channels of the unpacked latent; what a model for inpainting gets beside stands behind them in each token."""
        return self._token // PATCH**2

    @property
    def _token(self) -> int:
        """Channels of a token that belong to the latent: as many as are predicted."""
        config = self.denoiser.config
        return int(getattr(config, "out_channels", None) or config.in_channels)

    @property
    def native_cells(self) -> tuple[int, int]:
        """1024 pixels a side."""
        return NATIVE, NATIVE

    def latents(self, inputs: Inputs) -> Tensor:
        """Return the unpacked latents, without the tokens of reference images and channels of other inputs."""
        rows, columns = self._grid(inputs)
        return unpacked(inputs[self.sample_name][:, : rows * columns, : self._token], rows, columns)

    def with_latents(self, inputs: Inputs, x_RCYX: Tensor) -> dict[str, Any]:
        """Put other latents into the first tokens and channels."""
        sample, tokens_RNC = inputs[self.sample_name], packed(x_RCYX)
        count = tokens_RNC.shape[1]
        if self._token < sample.shape[2]:
            tokens_RNC = torch.cat([tokens_RNC, sample[:, :count, self._token :]], dim=2)
        if count < sample.shape[1]:
            tokens_RNC = torch.cat([tokens_RNC, sample[:, count:]], dim=1)
        return {**inputs, self.sample_name: tokens_RNC}

    def pipeline_form(self, x_BCYX: Tensor) -> Tensor:
        """Return packed latents."""
        return packed(x_BCYX)

    def without_text(self, inputs: Inputs) -> dict[str, Any]:
        """Make the pooled states zero, where there are any."""
        pooled = inputs.get("pooled_projections")
        return dict(inputs) if pooled is None else {**inputs, "pooled_projections": torch.zeros_like(pooled)}

    def _grid(self, inputs: Inputs) -> tuple[int, int]:
        """Rows and columns of the latent's tokens; reference images have a first id of their own."""
        ids: Tensor = inputs["img_ids"]
        found: tuple[int, int] = self._sides(ids, "grid", lambda: _grid_of(ids[0] if ids.ndim == 3 else ids))
        return found


class ChromaPort(FluxPort):
    """``ChromaTransformer2DModel``: FLUX.1 without pooled text and embedded guidance."""

    @classmethod
    def _stock_class(cls) -> type[nn.Module]:
        return ChromaTransformer2DModel

    def without_text(self, inputs: Inputs) -> dict[str, Any]:
        """Take out the mask of the text's positions."""
        return {name: value for name, value in inputs.items() if name != "attention_mask"}


def _grid_of(ids_N3: Tensor) -> tuple[int, int]:
    own = ids_N3[ids_N3[:, 0] == ids_N3[0, 0]]
    rows, columns = (own[:, 1:].amax(0) + 1).long().tolist()
    return rows, columns

"""Transformers with cross-attention to text: PixArt, SANA, HunyuanDiT."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanDiT2DModel, PixArtTransformer2DModel, SanaTransformer2DModel
from torch import Tensor, nn

from t2ictl.ports.base import Inputs
from t2ictl.ports.transformer import TransformerPort

__all__ = ["HunyuanDiTPort", "PixArtPort", "SanaPort"]


class _CrossPort(TransformerPort):
    """Self-attention of the image, then cross-attention to a row of text."""

    def without_text(self, inputs: Inputs) -> dict[str, Any]:
        """Take out the mask of the text's positions."""
        return {name: value for name, value in inputs.items() if name != "encoder_attention_mask"}


class PixArtPort(_CrossPort):
    """``PixArtTransformer2DModel``: it predicts noise and its variance."""

    chains = {"transformer_blocks": (("attn1", "self", "none"), ("attn2", "cross", "keys"))}

    @classmethod
    def _stock_class(cls) -> type[nn.Module]:
        return PixArtTransformer2DModel

    def attended_text(self, rows_BTC: Tensor) -> Tensor:
        """Project them to the width of the blocks."""
        projection: Any = self.denoiser.caption_projection
        return rows_BTC if projection is None else projection(_where(projection, rows_BTC, self.denoiser.dtype))


class SanaPort(_CrossPort):
    """``SanaTransformer2DModel``: self-attention is linear, without a softmax."""

    chains = {"transformer_blocks": (("attn1", "linear", "none"), ("attn2", "cross", "keys"))}

    @classmethod
    def _stock_class(cls) -> type[nn.Module]:
        return SanaTransformer2DModel

    def attended_text(self, rows_BTC: Tensor) -> Tensor:
        """Project them to the width of the blocks, and normalize them."""
        model = self.denoiser
        rows_BTC = _where(model.caption_projection, rows_BTC, model.dtype)
        states_BTC: Tensor = model.caption_norm(model.caption_projection(rows_BTC))
        return states_BTC


class HunyuanDiTPort(_CrossPort):
    """``HunyuanDiT2DModel``: rows of BERT, then those of T5, in one cross-attention."""

    chains = {"blocks": (("attn1", "self", "none"), ("attn2", "cross", "keys"))}
    text_names = ("encoder_hidden_states", "encoder_hidden_states_t5")
    unbatched = frozenset({"image_rotary_emb"})

    @classmethod
    def _stock_class(cls) -> type[nn.Module]:
        return HunyuanDiT2DModel

    def without_text(self, inputs: Inputs) -> dict[str, Any]:
        """Mark every position of both rows as empty."""
        empty = {
            name: torch.zeros_like(value) for name, value in inputs.items() if name.startswith("text_embedding_mask")
        }
        return {**inputs, **empty}


def _where(module: nn.Module, rows_BTC: Tensor, dtype: torch.dtype) -> Tensor:
    """Text rows where a module can read them: under offloading its weights wait elsewhere than text is encoded."""
    device = next(module.parameters()).device
    return rows_BTC.to(dtype) if device.type == "meta" else rows_BTC.to(device, dtype)

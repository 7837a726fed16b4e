"""The transformer of Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from t2ictl.ports.base import Inputs
from t2ictl.ports.transformer import TransformerPort

__all__ = ["SD3Port"]


class SD3Port(TransformerPort):
    """``SD3Transformer2DModel``: joint attention, image before text; some blocks attend to the image once more."""

    chains = {"transformer_blocks": (("attn", "joint", "last"), ("attn2", "self", "none"))}

    @classmethod
    def _stock_class(cls) -> type[nn.Module]:
        return SD3Transformer2DModel

    def without_text(self, inputs: Inputs) -> dict[str, Any]:
        """Make the pooled states zero."""
        return {**inputs, "pooled_projections": torch.zeros_like(inputs["pooled_projections"])}

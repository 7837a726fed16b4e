"""What pipelines with a U-Net and CLIP text encoders have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from t2ictl.attention.layers import Layer, select_layers
from t2ictl.families.base import Adapter
from t2ictl.ports.unet import UNetPort
from t2ictl.prompts.prompt import Prompt

__all__ = ["UNetAdapter"]


class UNetAdapter(Adapter):
    """A pipeline with a U-Net: cross-attention to one row of CLIP tokens."""

    port_class = UNetPort
    offers = frozenset({"maps", "self_maps", "values", "rows", "encoders", "features"})
    spells_embeddings = True
    needed_arguments = ("prompt", "num_images_per_prompt", "do_classifier_free_guidance")

    @cached_property
    def semantic_stride(self) -> int:
        """Latent cells per cell of the maps in which words have shape.

        Published methods read 16 x 16 maps of SD 1.x and 32 x 32 of SDXL: a quarter of the
        latent's side. A model of smaller latents (the embedded one) keeps at least 16 cells a
        side. It depends on the model alone, so that another image size reads the same layers.
        """
        sample = self.denoiser.config.sample_size or 64
        side = min(sample) if isinstance(sample, Sequence) else sample
        factors = sorted({layer.stride for layer in self.layers if layer.kind == "cross"})
        fitting = [factor for factor in factors if factor <= 4 and side / factor >= 16]
        return max(fitting, default=factors[0])

    @cached_property
    def semantic_layers(self) -> tuple[Layer, ...]:
        """Cross-attention at the semantic stride."""
        return select_layers(self.word_layers, f"cross@{self.semantic_stride}")

    @property
    def pads_with_end(self) -> bool:
        """Whether empty positions repeat the end token, as in SD 1.x, or hold another one, as in SD 2.x."""
        tokenizer = self.tokenizers[0]
        return bool(tokenizer.pad_token_id == tokenizer.eos_token_id)

    def parse(self, texts: Sequence[str], parser: str = "grammar", how: Mapping[str, Any] | None = None) -> Prompt:
        """Parse one prompt; each tokenizer has its own limit."""
        own = [texts[min(number, len(texts) - 1)] for number in range(len(self.tokenizers))]
        convert: Any = getattr(self.pipe, "maybe_convert_prompt", None)
        if convert is not None:
            own = [convert(text, tokenizer) for text, tokenizer in zip(own, self.tokenizers, strict=True)]
        return Prompt.parse(own[0], self.tokenizers, texts=own, parser=parser)

"""Stable Diffusion 1.x and 2.x: one text encoder, one U-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from t2ictl.families.arguments import Encoded, batch_layout, listed, negative_texts
from t2ictl.families.checks import has_clip
from t2ictl.families.unets import UNetAdapter

__all__ = ["StableDiffusionAdapter"]


class StableDiffusionAdapter(UNetAdapter):
    """Pipelines with one CLIP text encoder, whatever they do beside: image to image, inpainting, ControlNet, LCM."""

    family = "sd"
    title = "SD 1.x, 2.x"

    @staticmethod
    def matches(pipe: Any) -> bool:
        """Return whether a pipeline has one CLIP text encoder and a U-Net."""
        return (
            has_clip(pipe, "", CLIPTextModel)
            and isinstance(getattr(pipe, "unet", None), UNet2DConditionModel)
            and not hasattr(pipe, "text_encoder_2")
            and hasattr(pipe, "encode_prompt")
        )

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The one tokenizer."""
        return (self.pipe.tokenizer,)

    def encoded(self, arguments: Mapping[str, Any]) -> Encoded:
        """Read prompt, embeddings and batch layout."""
        prompts = listed(arguments["prompt"])
        embeddings = arguments.get("prompt_embeds")
        count = len(prompts) if embeddings is None else len(embeddings)
        return Encoded(
            texts=tuple((text,) for text in prompts) if embeddings is None else None,
            embeddings=embeddings,
            batch=batch_layout(arguments, count),
            negatives=negative_texts(arguments, count, ("negative_prompt",)),
        )

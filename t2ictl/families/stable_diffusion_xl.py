"""SDXL: two text encoders side by side, one U-Net with size and pooled-text conditioning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel
from transformers import CLIPTextModelWithProjection

from t2ictl.families.arguments import Encoded, batch_layout, negative_texts, texts_by_prompt
from t2ictl.families.checks import has_clip
from t2ictl.families.text_states import PromptEmbeds
from t2ictl.families.unets import UNetAdapter

__all__ = ["StableDiffusionXLAdapter"]


class StableDiffusionXLAdapter(UNetAdapter):
    """Pipelines with two CLIP text encoders, and the refiner, which has the second one only."""

    family = "sdxl"
    title = "SDXL"

    @staticmethod
    def matches(pipe: Any) -> bool:
        """Return whether a pipeline has SDXL's second text encoder and a U-Net."""
        return (
            has_clip(pipe, "_2", CLIPTextModelWithProjection)
            and isinstance(getattr(pipe, "unet", None), UNet2DConditionModel)
            and hasattr(pipe, "encode_prompt")
        )

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """Both tokenizers, or the refiner's one."""
        both = (getattr(self.pipe, "tokenizer", None), self.pipe.tokenizer_2)
        return tuple(tokenizer for tokenizer in both if tokenizer is not None)

    def encoded(self, arguments: Mapping[str, Any]) -> Encoded:
        """Read both prompts, embeddings and batch layout."""
        texts = texts_by_prompt(arguments, ("prompt", "prompt_2"))  # as the pipeline does: "" is no prompt_2
        embeddings = arguments.get("prompt_embeds")
        count = len(texts) if embeddings is None else len(embeddings)
        return Encoded(
            texts=texts if embeddings is None else None,
            embeddings=embeddings,
            batch=batch_layout(arguments, count),
            negatives=negative_texts(arguments, count),
        )

    def text_states(self, result: tuple[Any, ...]) -> PromptEmbeds:
        """Read rows and pooled states."""
        return PromptEmbeds(embeds=result[0], pooled=result[2])

    def with_text_states(self, result: tuple[Any, ...], states: PromptEmbeds) -> tuple[Any, ...]:
        """Put other rows and pooled states in their place."""
        pooled = result[2] if states.pooled is None else states.pooled.to(result[2].dtype)
        return (states.embeds.to(result[0].dtype), result[1], pooled, *result[3:])

"""FLUX.1 and Chroma: joint attention to one row of T5; packed latents; guidance in calls of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import ChromaTransformer2DModel, FluxTransformer2DModel

from t2ictl.families.rows import KnownRows
from t2ictl.families.text_states import PromptEmbeds
from t2ictl.families.transformers import TransformerAdapter
from t2ictl.ports.flux import ChromaPort, FluxPort

__all__ = ["ChromaAdapter", "FluxAdapter"]


class FluxAdapter(TransformerAdapter):
    """Pipelines with the transformer of FLUX.1; of CLIP it reads the pooled state alone, which belongs to no word."""

    family = "flux"
    title = "FLUX.1"
    offers = frozenset({"maps"})
    port_class = FluxPort
    denoiser_class = FluxTransformer2DModel
    prompt_names = ("prompt_2",)
    guidance_first = False
    semantic_kind = "joint"
    semantic_depths = (0.43, 1.0)  # blocks 8 to 18 of the 19 that keep image and text apart
    longest_text = 512

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """That of T5."""
        return (self.pipe.tokenizer_2,)

    def text_states(self, result: tuple[Any, ...]) -> PromptEmbeds:
        """Read rows and pooled states."""
        return PromptEmbeds(embeds=result[0], pooled=result[1])

    def known_rows(self, results: Sequence[tuple[Any, ...]]) -> KnownRows:
        """Read rows of prompts, and of negative prompts if there was a second call for them."""
        return KnownRows(cond=(results[0][0],), uncond=(results[1][0],) if len(results) > 1 else None)


class ChromaAdapter(TransformerAdapter):
    """Pipelines with the transformer of Chroma."""

    family = "chroma"
    title = "Chroma"
    offers = frozenset({"maps"})
    port_class = ChromaPort
    denoiser_class = ChromaTransformer2DModel
    needed_arguments = ("prompt", "num_images_per_prompt", "do_classifier_free_guidance")
    guidance_first = False
    semantic_kind = "joint"
    semantic_depths = (0.43, 1.0)
    longest_text = 512

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """That of T5."""
        return (self.pipe.tokenizer,)

    def known_rows(self, results: Sequence[tuple[Any, ...]]) -> KnownRows:
        """Read rows of prompts and of negative prompts."""
        rows, _, mask, negative, _, negative_mask = results[0]
        uncond = None if negative is None else (negative,)
        return KnownRows(cond=(rows,), uncond=uncond, masks=(mask, negative_mask))

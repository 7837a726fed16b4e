"""PixArt-Alpha and PixArt-Sigma: cross-attention to one row of T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import PixArtTransformer2DModel

from t2ictl.families.captions import tidying
from t2ictl.families.rows import KnownRows
from t2ictl.families.transformers import TransformerAdapter
from t2ictl.ports.cross import PixArtPort
from t2ictl.prompts.readings import Reading
from t2ictl.prompts.tokens import Encoding, encode

__all__ = ["PixArtAdapter", "pairs_with_masks"]


class PixArtAdapter(TransformerAdapter):
    """Pipelines with PixArt's transformer; captions are lower-cased, or cleaned, before T5 reads them."""

    family = "pixart"
    title = "PixArt"
    offers = frozenset({"maps", "self_maps", "values"})
    port_class = PixArtPort
    denoiser_class = PixArtTransformer2DModel
    needed_arguments = ("prompt", "num_images_per_prompt", "do_classifier_free_guidance")
    semantic_depths = (0.11, 0.33)  # blocks 3 to 8 of 28
    longest_text = 300

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """That of T5."""
        return (self.pipe.tokenizer,)

    def how(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return length and cleaning."""
        return {**super().how(arguments), "clean_caption": bool(arguments.get("clean_caption", False))}

    def encodings(self, texts: Sequence[str], how: Mapping[str, Any]) -> tuple[Encoding, ...]:
        """Read the caption as it is after the pipeline has tidied it."""
        reading = Reading(clean=tidying(self.pipe, how))
        return (encode(texts[0], self.pipe.tokenizer, self.text_length(how), reading=reading),)

    def known_rows(self, results: Sequence[tuple[Any, ...]]) -> KnownRows:
        """Read rows of prompts and of negative prompts."""
        return pairs_with_masks(results[0])


def pairs_with_masks(result: tuple[Any, ...]) -> KnownRows:
    """Read what ``encode_prompt`` returns as rows, their mask, negative rows, and the mask of these.

    Args:
        result: its return value.
    """
    negative = result[2] if len(result) > 2 else None
    return KnownRows(cond=(result[0],), uncond=None if negative is None else (negative,), masks=result[1::2])

"""SANA: linear self-attention, cross-attention to a row of Gemma that reads an instruction before the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import SanaTransformer2DModel

from t2ictl.families.captions import tidying
from t2ictl.families.pixart import pairs_with_masks
from t2ictl.families.rows import KnownRows
from t2ictl.families.transformers import TransformerAdapter, default_argument
from t2ictl.ports.cross import SanaPort
from t2ictl.prompts.readings import Reading
from t2ictl.prompts.tokens import Encoding, encode

__all__ = ["SanaAdapter"]


class SanaAdapter(TransformerAdapter):
    """Pipelines with SANA's transformer."""

    family = "sana"
    title = "SANA"
    offers = frozenset({"maps", "values"})
    port_class = SanaPort
    denoiser_class = SanaTransformer2DModel
    text_is_causal = True
    semantic_depths = (0.15, 0.35)  # blocks 3 to 6 of 20
    longest_text = 300

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """That of Gemma."""
        return (self.pipe.tokenizer,)

    def how(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return length, cleaning and instruction."""
        own = {"clean_caption": bool(arguments.get("clean_caption", False))}
        return {**super().how(arguments), **own, "instruction": arguments.get("complex_human_instruction") or ()}

    def encodings(self, texts: Sequence[str], how: Mapping[str, Any]) -> tuple[Encoding, ...]:
        """Read the caption behind the instruction; of the row, the first and the last positions are kept."""
        tokenizer, length = self.pipe.tokenizer, self.text_length(how)
        lines = how.get("instruction", default_argument(self.pipe, "complex_human_instruction") or ())
        instruction = "\n".join(lines)
        # The pipeline makes room for the instruction, less its start token and the blank at its end.
        whole = length if not lines else len(tokenizer.encode(instruction)) + length - 2
        reading = Reading(
            prefix=instruction,
            clean=tidying(self.pipe, how),
            rows=lambda total: [0, *range(total - length + 1, total)],
        )
        return (encode(texts[0], tokenizer, whole, reading=reading),)

    def known_rows(self, results: Sequence[tuple[Any, ...]]) -> KnownRows:
        """Read rows of prompts and of negative prompts."""
        return pairs_with_masks(results[0])

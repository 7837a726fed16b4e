"""HunyuanDiT: cross-attention to a row of BERT, and behind it one of T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffusers import HunyuanDiT2DModel

from t2ictl.families.rows import KnownRows
from t2ictl.families.transformers import TransformerAdapter
from t2ictl.ports.cross import HunyuanDiTPort
from t2ictl.prompts.prompt import Prompt
from t2ictl.prompts.tokens import Encoding, encode

__all__ = ["HunyuanDiTAdapter"]

_BERT, _T5 = 77, 256  # lengths of the rows, which no argument of a call changes


class HunyuanDiTAdapter(TransformerAdapter):
    """Pipelines with HunyuanDiT's transformer; they call ``encode_prompt`` once for each encoder."""

    family = "hunyuan_dit"
    title = "HunyuanDiT"
    offers = frozenset({"maps", "self_maps"})
    port_class = HunyuanDiTPort
    denoiser_class = HunyuanDiT2DModel
    prompt_names = ("prompt", "prompt")
    negative_names = ("negative_prompt", "negative_prompt")
    semantic_depths = (0.11, 0.33)  # blocks 4 to 12 of 40
    longest_text = _T5

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """Those of BERT and of T5."""
        return (self.pipe.tokenizer, self.pipe.tokenizer_2)

    def how(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing: the two calls of ``encode_prompt`` have lengths of their own."""
        return {}

    def how_long(self, tokens: int) -> Mapping[str, Any]:
        """Nothing: rows have one length."""
        return {}

    def embeds_length(self, prompt: Prompt, how: Mapping[str, Any]) -> int:
        """Return the length of BERT's row; a call takes that of T5 beside it."""
        return _BERT

    def encodings(self, texts: Sequence[str], how: Mapping[str, Any]) -> tuple[Encoding, ...]:
        """Read both rows, one behind the other."""
        first, second = self.tokenizers
        return encode(texts[0], first, _BERT), replace(encode(texts[1], second, _T5), offset=_BERT)

    def known_rows(self, results: Sequence[tuple[Any, ...]]) -> KnownRows:
        """Read rows of both encoders."""
        negative = [each[1] for each in results]
        return KnownRows(
            cond=tuple(each[0] for each in results),
            uncond=None if any(each is None for each in negative) else tuple(negative),
            masks=tuple(mask for each in results for mask in each[2:]),
        )

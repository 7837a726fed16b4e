"""Stable Diffusion 3 and 3.5: joint attention to two CLIP rows side by side, and behind them one of T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffusers import SD3Transformer2DModel

from t2ictl.families.rows import KnownRows
from t2ictl.families.text_states import PromptEmbeds
from t2ictl.families.transformers import TransformerAdapter, default_argument
from t2ictl.ports.sd3 import SD3Port
from t2ictl.prompts.prompt import Prompt
from t2ictl.prompts.tokens import Encoding, encode

__all__ = ["StableDiffusion3Adapter"]


class StableDiffusion3Adapter(TransformerAdapter):
    """Pipelines with the transformer of Stable Diffusion 3."""

    family = "sd3"
    title = "SD 3, 3.5"
    offers = frozenset({"maps"})
    port_class = SD3Port
    denoiser_class = SD3Transformer2DModel
    needed_arguments = ("prompt", "num_images_per_prompt", "do_classifier_free_guidance")
    negative_names = ("negative_prompt", "negative_prompt_2", "negative_prompt_3")
    semantic_kind = "joint"
    semantic_depths = (0.125, 0.334)  # blocks 3 to 7 of 24, 4 to 11 of 38
    longest_text = 256

    @property
    def prompt_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """One for each tokenizer."""
        return ("prompt", "prompt_2", "prompt_3")[: len(self.tokenizers)]

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """Those of both CLIPs, and of T5; without its encoder T5's part of the row is zero."""
        clip = (self.pipe.tokenizer, self.pipe.tokenizer_2)
        has_t5 = getattr(self.pipe, "text_encoder_3", None) is not None
        return (*clip, self.pipe.tokenizer_3) if has_t5 else clip

    @property
    def causal_encoders(self) -> tuple[bool, ...]:
        """CLIP reads forwards only, T5 both ways."""
        return (True, True, False)[: len(self.tokenizers)]

    def encodings(self, texts: Sequence[str], how: Mapping[str, Any]) -> tuple[Encoding, ...]:
        """Read all rows; T5's begins where those of CLIP end."""
        # The pipeline pads both to the limit of the first one.
        limit = int(self.pipe.tokenizer_max_length)
        found = [encode(text, each, limit) for text, each in zip(texts[:2], self.tokenizers[:2], strict=True)]
        if len(texts) > 2:
            found.append(replace(encode(texts[2], self.tokenizers[2], self.text_length(how)), offset=limit))
        return tuple(found)

    @property
    def own_arguments(self) -> dict[str, Any]:
        """The length of T5's row, where the tokenizer ends before the pipeline's own: a model of short rows.

        The transformer has no mask: it reads every position of padding, and such a model is made for few of them.
        Tokenizers of released models end at 512.
        """
        own = default_argument(self.pipe, "max_sequence_length")
        limit = int(self.tokenizers[-1].model_max_length) if len(self.tokenizers) > 2 else None
        return {} if own is None or limit is None or limit >= own else {"max_sequence_length": limit}

    def embeds_length(self, prompt: Prompt, how: Mapping[str, Any]) -> int:
        """Both parts, whether or not there is a T5 to fill the second."""
        return int(self.pipe.tokenizer_max_length) + self.text_length(how)

    def how_long(self, tokens: int) -> Mapping[str, Any]:
        """T5 has what CLIP leaves."""
        return {"max_sequence_length": tokens - int(self.pipe.tokenizer_max_length)}

    def prompt_arguments(self, texts: Sequence[str]) -> dict[str, Any]:
        """Texts for all encoders: those of the second and third have no default."""
        return {"prompt": list(texts), "prompt_2": None, "prompt_3": None}

    def text_states(self, result: tuple[Any, ...]) -> PromptEmbeds:
        """Read rows and pooled states."""
        return PromptEmbeds(embeds=result[0], pooled=result[2])

    def known_rows(self, results: Sequence[tuple[Any, ...]]) -> KnownRows:
        """Read rows of prompts and of negative prompts."""
        negative = results[0][1]
        return KnownRows(cond=(results[0][0],), uncond=None if negative is None else (negative,))

"""Frozen text encoders, read exactly as the stock pipelines read them.

Legend: ``B`` captions, ``T`` text rows, ``W`` their width, ``P`` width of the pooled state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

#: Subfolders of the encoders and of their tokenizers, in the order of the pipeline.
NAMES = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a denoiser gets of captions.

    Args:
        rows_BTW: text rows.
        pooled_BP: pooled states; no columns where the denoiser takes none.
        bias_B: logarithm of how many equal rows of padding the last row stands for; 0 where it is alone.
    """

    rows_BTW: torch.Tensor
    pooled_BP: torch.Tensor
    bias_B: torch.Tensor

    def __getitem__(self, rows: slice) -> Text:
        return Text(rows_BTW=self.rows_BTW[rows], pooled_BP=self.pooled_BP[rows], bias_B=self.bias_B[rows])


def last_key_bias(bias_B: torch.Tensor, keys: int) -> torch.Tensor:
    """Make the bias under which the last key of attention stands for many equal ones.

    ``n`` equal keys have together the weight ``n exp(score) = exp(score + log n)``.

    Args:
        bias_B: ``log n``.
        keys: how many keys there are, the last one included.

    Returns:
        A bias on scores, shape ``(B, 1, 1, keys)``, zero but for the last key.

    Example:
        >>> last_key_bias(torch.tensor([3.0]).log(), 2).exp().flatten().tolist()
        [1.0, 3.0]
    """
    bias = torch.zeros(len(bias_B), 1, 1, keys)
    bias[..., -1] = bias_B[:, None, None]
    return bias


def _tokens(tokenizer: Any, captions: Sequence[str], length: int) -> torch.Tensor:
    """Tokenize as the pipelines do."""
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(captions), **options).input_ids


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """Encoders with their tokenizers.

    Args:
        models: one CLIP, or two CLIP and a T5 encoder.
        tokenizers: one for each.
        length: text rows of each of them.
    """

    models: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    length: int

    def too_long(self, captions: Sequence[str]) -> list[int]:
        """Return which captions some tokenizer would have to cut."""
        lengths = [[len(tokens) for tokens in tokenizer(list(captions)).input_ids] for tokenizer in self.tokenizers]
        return [index for index, each in enumerate(zip(*lengths, strict=True)) if max(each) > self.length]

    @torch.no_grad()
    def encode(self, captions: Sequence[str], is_long_B: torch.Tensor | None = None, long_rows: int = 256) -> Text:
        """Encode captions as the stock pipeline does.

        Args:
            captions: ``B`` texts.
            is_long_B: which of them T5 reads as if padded to ``long_rows``: a last row of padding stands for all that
                would follow, as a key of T5's attention and of the denoiser's.
            long_rows: T5 rows that the stock pipeline makes when it is not told otherwise.

        Returns:
            For one CLIP its last rows, as ``StableDiffusionPipeline``. For three encoders, as
            ``StableDiffusion3Pipeline``: the second-last rows of both CLIPs side by side and filled up with zeros,
            the rows of T5 behind, and both projections side by side.
        """
        tokens = [_tokens(tokenizer, captions, self.length) for tokenizer in self.tokenizers]
        if len(self.models) == 1:
            rows = self.models[0].text_model(tokens[0]).last_hidden_state
            return Text(rows_BTW=rows, pooled_BP=rows[:, 0, :0], bias_B=torch.zeros(len(rows)))
        clips = [model(ids, output_hidden_states=True) for model, ids in zip(self.models[:2], tokens, strict=False)]
        is_padded_B = tokens[2][:, -1] == self.tokenizers[2].pad_token_id
        is_repeated_B = torch.zeros_like(is_padded_B) if is_long_B is None else is_padded_B & is_long_B
        bias_B = is_repeated_B * math.log(long_rows - self.length + 1)
        t5_rows = self.models[2](tokens[2], attention_mask=last_key_bias(bias_B, self.length))[0]
        clip_rows = torch.cat([each.hidden_states[-2] for each in clips], dim=-1)
        clip_rows = torch.nn.functional.pad(clip_rows, (0, t5_rows.shape[-1] - clip_rows.shape[-1]))
        return Text(
            rows_BTW=torch.cat([clip_rows, t5_rows], dim=1),
            pooled_BP=torch.cat([each.text_embeds for each in clips], dim=-1),
            bias_B=bias_B,
        )


def load_encoders(folder: Path, count: int) -> Encoders:
    """Load frozen encoders.

    Args:
        folder: has the subfolders :data:`NAMES` and :data:`TOKENIZERS`.
        count: 1 for the first CLIP alone, 3 for all.

    Returns:
        Encoders in float32; attention is explicit, which is faster than a fused kernel at this size.
    """
    classes: tuple[Any, ...] = (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel)
    models = tuple(
        kind.from_pretrained(str(folder / name), attn_implementation="eager").float().eval().requires_grad_(False)
        for kind, name in zip(classes[:count], NAMES, strict=False)
    )
    readers: tuple[Any, ...] = (CLIPTokenizer, CLIPTokenizer, AutoTokenizer)
    tokenizers = tuple(
        reader.from_pretrained(str(folder / name)) for reader, name in zip(readers[:count], TOKENIZERS, strict=False)
    )
    return Encoders(models=models, tokenizers=tokenizers, length=models[0].config.max_position_embeddings)

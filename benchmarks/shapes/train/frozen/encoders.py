"""Frozen text encoders, read exactly as the stock pipelines read them.

Legend: ``B`` captions, ``T`` text rows, ``W`` their width, ``P`` width of the pooled state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from t2ictl.benchmarks.shapes.train.team import Team

#: Subfolders of the encoders and of their tokenizers, in the order of the pipeline.
NAMES = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a denoiser gets of captions.

    Args:
        rows_BTW: text rows.
        pooled_BP: pooled states; no columns where the denoiser takes none.
        is_padded_B: whether the last row is one of padding, which a longer text row would only repeat.
    """

    rows_BTW: torch.Tensor
    pooled_BP: torch.Tensor
    is_padded_B: torch.Tensor

    def __getitem__(self, rows: slice) -> Text:
        return Text(rows_BTW=self.rows_BTW[rows], pooled_BP=self.pooled_BP[rows], is_padded_B=self.is_padded_B[rows])

    def part(self, team: Team) -> Text:
        """Return the rows of one member of a team."""
        return self[slice(team.rank, None, team.size)]


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
    def encode(self, captions: Sequence[str]) -> Text:
        """Encode captions as the stock pipeline does.

        Args:
            captions: ``B`` texts.

        Returns:
            For one CLIP its last rows, as ``StableDiffusionPipeline``. For three encoders, as
            ``StableDiffusion3Pipeline``: the second-last rows of both CLIPs side by side and filled up with zeros,
            the rows of T5 behind, and both projections side by side.
        """
        tokens = [_tokens(tokenizer, captions, self.length) for tokenizer in self.tokenizers]
        if len(self.models) == 1:
            rows = self.models[0].text_model(tokens[0]).last_hidden_state
            return Text(rows_BTW=rows, pooled_BP=rows[:, 0, :0], is_padded_B=torch.zeros(len(rows), dtype=torch.bool))
        clips = [model(ids, output_hidden_states=True) for model, ids in zip(self.models[:2], tokens, strict=False)]
        t5_rows = self.models[2](tokens[2])[0]
        clip_rows = torch.cat([each.hidden_states[-2] for each in clips], dim=-1)
        clip_rows = torch.nn.functional.pad(clip_rows, (0, t5_rows.shape[-1] - clip_rows.shape[-1]))
        return Text(
            rows_BTW=torch.cat([clip_rows, t5_rows], dim=1),
            pooled_BP=torch.cat([each.text_embeds for each in clips], dim=-1),
            is_padded_B=tokens[2][:, -1] == self.tokenizers[2].pad_token_id,
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

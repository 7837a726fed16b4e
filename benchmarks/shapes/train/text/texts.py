"""Batches of texts with gaps: captions of cached scenes and texts of the wider language."""

from __future__ import annotations

import numpy as np
import torch
from transformers import T5Tokenizer

from t2ictl.benchmarks.shapes.train.captions import training_caption
from t2ictl.benchmarks.shapes.train.loop import stream
from t2ictl.benchmarks.shapes.train.scenes import DrawnScenes
from t2ictl.benchmarks.shapes.train.text.gaps import IGNORED, choose_gaps, corrupt
from t2ictl.benchmarks.shapes.train.text.language import sample_text
from t2ictl.benchmarks.shapes.train.text.settings import SpanRecipe
from t2ictl.benchmarks.shapes.train.text.tokenizer import SENTINELS

Rows = tuple[torch.Tensor, torch.Tensor]


def text_of(recipe: SpanRecipe, drawn: DrawnScenes, generator: np.random.Generator, first: int, last: int) -> str:
    """Write one text: a caption of a cached scene, or one of the wider language.

    Args:
        recipe: ``closed_share``.
        drawn: cached scenes.
        generator: the only source of randomness.
        first: first scene that may be described.
        last: the one after the last.

    Returns:
        The text.
    """
    if generator.random() < recipe.closed_share:
        scene = drawn.scenes[int(generator.integers(first, last))]
        return training_caption(scene, generator, ghost_share=0, swap_share=0)
    return sample_text(generator)


def rows_of(
    recipe: SpanRecipe,
    tokenizer: T5Tokenizer,
    drawn: DrawnScenes,
    generator: np.random.Generator,
    *,
    count: int,
    length: int,
    scenes: tuple[int, int],
) -> Rows:
    """Write texts with gaps, padded to one length, and what fills the gaps.

    Args:
        recipe: how much is hidden.
        tokenizer: of the encoder.
        drawn: cached scenes.
        generator: the only source of randomness.
        count: rows.
        length: of the padded texts; a text that is longer is not used.
        scenes: first scene that may be described, and the one after the last.

    Returns:
        Tokens of shape ``(count, length)``, and labels of shape ``(count, longest)`` that end in :data:`IGNORED`.
    """
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{index}>") for index in range(SENTINELS)]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    shown: list[list[int]] = []
    hidden: list[list[int]] = []
    while len(shown) < count:
        texts = [text_of(recipe, drawn, generator, *scenes) for _ in range(count - len(shown))]
        for row in tokenizer(texts, add_special_tokens=False).input_ids:
            share, mean = generator.uniform(*recipe.corrupted), generator.uniform(*recipe.mean_span)
            gaps = choose_gaps(len(row), share, mean, generator)[:SENTINELS]
            one, other = corrupt(row, gaps, sentinels, end)
            if len(one) <= length:
                shown.append(one + [pad] * (length - len(one)))
                hidden.append(other)
    longest = max(len(row) for row in hidden)
    labels = [row + [IGNORED] * (longest - len(row)) for row in hidden]
    return torch.tensor(shown), torch.tensor(labels)


def batch_of(recipe: SpanRecipe, tokenizer: T5Tokenizer, drawn: DrawnScenes, step: int) -> Rows:
    """Make the rows of one update, a function of the recipe and the update alone.

    All rows of an update have one length, and about the same number of tokens is in every update.

    Args:
        recipe: seed, lengths and shares.
        tokenizer: of the encoder.
        drawn: cached scenes; the last ``held_out`` are never described.
        step: from 0.

    Returns:
        Tokens and labels, see :func:`rows_of`.
    """
    generator = stream(recipe.seed, recipe.part, step + 1)
    length = int(generator.choice(recipe.lengths, p=recipe.length_shares))
    count, seen = max(1, recipe.tokens // length), len(drawn) - recipe.held_out
    return rows_of(recipe, tokenizer, drawn, generator, count=count, length=length, scenes=(0, seen))

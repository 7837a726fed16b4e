"""The span stage: a small T5 fills gaps in texts, and its encoder is kept."""

from __future__ import annotations

import numpy as np
import torch
from transformers import T5ForConditionalGeneration, T5Tokenizer

from t2ictl.benchmarks.shapes.train.loop import stream
from t2ictl.benchmarks.shapes.train.scenes import DrawnScenes
from t2ictl.benchmarks.shapes.train.text.gaps import IGNORED
from t2ictl.benchmarks.shapes.train.text.settings import SpanRecipe
from t2ictl.benchmarks.shapes.train.text.t5 import build_optimizers, build_t5
from t2ictl.benchmarks.shapes.train.text.texts import batch_of, rows_of
from t2ictl.benchmarks.shapes.train.text.tokenizer import SENTINELS
from t2ictl.shapes.prompts import suite

#: Padded length and rows of the evaluation.
HELD_OUT_LENGTH, HELD_OUT_ROWS = 64, 512
#: Captions on which the effect of padding is measured.
PADDED_CAPTIONS = 32


@torch.no_grad()
def span_accuracy(
    recipe: SpanRecipe, tokenizer: T5Tokenizer, drawn: DrawnScenes, model: T5ForConditionalGeneration
) -> dict[str, float]:
    """Count what is filled in correctly in texts that were not trained on, given what was before it.

    Args:
        recipe: how much is hidden.
        tokenizer: of the encoder.
        drawn: cached scenes, the held-out ones of which are described.
        model: as it stands.

    Returns:
        The share of hidden tokens and of whole gaps, and the mean loss in nats.
    """
    generator = stream(recipe.seed, recipe.part, 10**9)
    scenes = len(drawn) - recipe.held_out, len(drawn)
    shown, labels = rows_of(
        recipe, tokenizer, drawn, generator, count=HELD_OUT_ROWS, length=HELD_OUT_LENGTH, scenes=scenes
    )
    tokens = gaps = right_tokens = right_gaps = 0
    losses = []
    for ids, row in zip(shown.split(64), labels.split(64), strict=True):
        result = model(input_ids=ids, labels=row)
        losses.append(float(result.loss))
        guess = result.logits.argmax(-1)
        first_sentinel = len(tokenizer) - SENTINELS
        content = (row != IGNORED) & (row < first_sentinel) & (row != tokenizer.eos_token_id)
        gap = (row >= first_sentinel).cumsum(1)
        tokens += int(content.sum())
        right_tokens += int(((guess == row) & content).sum())
        for index in range(1, int(gap.max()) + 1):
            inside = content & (gap == index)
            gaps += int(inside.any(1).sum())
            right_gaps += int((inside.any(1) & ~((guess != row) & inside).any(1)).sum())
    return {
        "held_out_loss": round(float(np.mean(losses)), 4),
        "tokens_right": round(right_tokens / tokens, 4),
        "gaps_right": round(right_gaps / gaps, 4),
    }


@torch.no_grad()
def padding_change(
    tokenizer: T5Tokenizer, encoder: torch.nn.Module, texts: list[str], lengths: tuple[int, int] = (24, 256)
) -> float:
    """Measure how much the rows of words change with the padding behind them.

    Args:
        tokenizer: of the encoder.
        encoder: a T5 encoder, called without mask.
        texts: that fit the shorter length.
        lengths: the two padded lengths.

    Returns:
        Root mean square of the change, as a part of the root mean square of the rows around their mean.
    """
    rows = []
    for length in lengths:
        ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        states = encoder(ids)[0][:, : min(lengths)]
        rows.append(states[ids[:, : min(lengths)] > tokenizer.eos_token_id])
    one, other = rows
    return float((one - other).square().mean().sqrt() / (one - one.mean(0)).square().mean().sqrt())


class Spans:
    """A T5 at filling gaps.

    Args:
        recipe: every number.
        tokenizer: of the encoder.
        drawn: cached scenes.
    """

    def __init__(self, recipe: SpanRecipe, tokenizer: T5Tokenizer, drawn: DrawnScenes) -> None:
        self.recipe, self.tokenizer, self.drawn = recipe, tokenizer, drawn
        self.model = build_t5(recipe, tokenizer)
        self.optimizers = build_optimizers(recipe, self.model)

    def loss(self, step: int) -> torch.Tensor:
        """Compute the loss of an update's texts."""
        ids, labels = batch_of(self.recipe, self.tokenizer, self.drawn, step)
        return self.model(input_ids=ids, labels=labels).loss

    def measure(self) -> dict[str, float]:
        """Measure what is filled in correctly, and how much padding changes the rows of words."""
        captions = [asked.prompt for asked in suite("pair", "tune", PADDED_CAPTIONS)]
        change = padding_change(self.tokenizer, self.model.encoder, captions)
        found = span_accuracy(self.recipe, self.tokenizer, self.drawn, self.model)
        return {"padding_change": round(change, 4), **found}

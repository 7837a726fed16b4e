"""The span stage: a small T5 fills gaps in texts, and its encoder is kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

from t2ictl.benchmarks.shapes.train.captions import training_caption
from t2ictl.benchmarks.shapes.train.loop import Deadline, append_log, save_atomic, stream, trapezoid_rate
from t2ictl.benchmarks.shapes.train.muon import Muon
from t2ictl.benchmarks.shapes.train.scenes import DrawnScenes
from t2ictl.benchmarks.shapes.train.text.gaps import IGNORED, choose_gaps, corrupt
from t2ictl.benchmarks.shapes.train.text.language import sample_text
from t2ictl.benchmarks.shapes.train.text.settings import SpanRecipe
from t2ictl.benchmarks.shapes.train.text.tokenizer import SENTINELS

#: Padded length and rows of the evaluation.
HELD_OUT_LENGTH, HELD_OUT_ROWS = 64, 512
#: Parts of names of matrices that are not between hidden layers.
NOT_HIDDEN = ("shared", "relative", "lm_head")
#: Deviation of the untrained embedding, which is also the output matrix; T5's own 1.0 leaves the layers no say for long.
EMBEDDING = 0.03

Rows = tuple[torch.Tensor, torch.Tensor]


def build_t5(recipe: SpanRecipe, tokenizer: T5Tokenizer) -> T5ForConditionalGeneration:
    """Make an untrained T5 with gated GELU.

    Args:
        recipe: sizes.
        tokenizer: its size and special tokens.

    Returns:
        Encoder and decoder without dropout.

    Example:
        >>> from t2ictl.benchmarks.shapes.train.text.tokenizer import build_t5_tokenizer
        >>> build_t5(SpanRecipe(), build_t5_tokenizer()).config.d_model
        192
    """
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=recipe.width,
        d_kv=recipe.head_width,
        d_ff=recipe.hidden,
        num_layers=recipe.layers,
        num_decoder_layers=recipe.decoder_layers,
        num_heads=recipe.heads,
        relative_attention_num_buckets=recipe.buckets,
        relative_attention_max_distance=recipe.max_distance,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(recipe.seed, recipe.part, 0).integers(2**31)))
        model = T5ForConditionalGeneration(config)
        torch.nn.init.normal_(model.shared.weight, std=EMBEDDING)
    # For an embedding of deviation 1, which this one has not.
    model.config.scale_decoder_outputs = False
    return model


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


def build_optimizers(recipe: SpanRecipe, model: T5ForConditionalGeneration) -> tuple[torch.optim.Optimizer, ...]:
    """Give the layers' matrices to Muon, and the rest to AdamW.

    With AdamW alone the loss stayed for long at what single words say: a gap needs the words around it.

    Args:
        recipe: the rate.
        model: whose weights they own.

    Returns:
        Two optimizers.
    """
    named = list(model.named_parameters())
    is_hidden = [weight.ndim == 2 and not any(part in name for part in NOT_HIDDEN) for name, weight in named]
    hidden = [weight for (_, weight), inside in zip(named, is_hidden, strict=True) if inside]
    others = [weight for (_, weight), inside in zip(named, is_hidden, strict=True) if not inside]
    return (
        Muon(hidden, lr=recipe.rate, weight_decay=recipe.weight_decay, dtype=torch.float32),
        torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _state(model: torch.nn.Module, optimizers: tuple[torch.optim.Optimizer, ...], step: int) -> dict[str, Any]:
    """Collect a checkpoint."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    return {"model": model.state_dict(), "optimizers": states, "step": step}


def train_spans(
    recipe: SpanRecipe, tokenizer: T5Tokenizer, drawn: DrawnScenes, folder: Path, deadline: Deadline
) -> bool:
    """Run or continue the span run.

    Args:
        recipe: every number.
        tokenizer: of the encoder.
        drawn: cached scenes.
        folder: of the run: ``spans.pt`` and ``log.jsonl``.
        deadline: when to stop.

    Returns:
        Whether all updates are done.
    """
    model = build_t5(recipe, tokenizer)
    optimizers = build_optimizers(recipe, model)
    path, step = folder / "spans.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        step = state["step"]
    texts = [
        f"a {c} {s} and a {d} {t}"
        for c, s, d, t in (("red", "circle", "blue", "square"), ("cyan", "star", "green", "ring"))
    ]
    losses: list[float] = []
    started = time.monotonic()
    while step < recipe.steps and not deadline.is_over():
        ids, labels = batch_of(recipe, tokenizer, drawn, step)
        loss = model(input_ids=ids, labels=labels).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = recipe.rate * trapezoid_rate(step, recipe.steps, recipe.warmup, recipe.decay_share)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        losses.append(float(loss.detach()))
        step += 1
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            seconds = (time.monotonic() - started) / len(losses)
            append_log(
                folder / "log.jsonl",
                stage=recipe.part,
                step=step,
                loss=round(float(np.mean(losses)), 4),
                seconds_per_update=round(seconds, 4),
                padding_change=round(padding_change(tokenizer, model.encoder, texts), 4),
                **span_accuracy(recipe, tokenizer, drawn, model),
            )
            losses, started = [], time.monotonic()
        if step % recipe.checkpoint_every == 0 or step == recipe.steps:
            save_atomic(_state(model, optimizers, step), path)
    if step < recipe.steps:
        save_atomic(_state(model, optimizers, step), path)
    return step >= recipe.steps

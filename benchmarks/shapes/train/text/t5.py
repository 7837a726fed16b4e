"""The untrained T5 and its optimizers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

from t2ictl.benchmarks.shapes.train.loop import stream
from t2ictl.benchmarks.shapes.train.muon import Muon
from t2ictl.benchmarks.shapes.train.text.settings import SpanRecipe

#: Parts of names of matrices that are not between hidden layers.
NOT_HIDDEN = ("shared", "lm_head")
#: Deviation of the untrained embedding, which is also the output matrix; with T5's own 1.0 the
#: loss stays for long at what single words say.
EMBEDDING = 0.03


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


def build_optimizers(recipe: SpanRecipe, model: T5ForConditionalGeneration) -> tuple[torch.optim.Optimizer, ...]:
    """Assign the layers' matrices to Muon, and the rest to AdamW.

    With AdamW alone the loss stayed for long at what single words say: a gap needs the words around it.

    Args:
        recipe: the rates.
        model: whose weights they own.

    Returns:
        Two optimizers.
    """
    hidden, places, others = [], [], []
    for name, weight in model.named_parameters():
        if "relative" in name:
            places.append(weight)
        elif weight.ndim == 2 and not any(part in name for part in NOT_HIDDEN):
            hidden.append(weight)
        else:
            others.append(weight)
    groups: list[dict[str, Any]] = [{"params": others}, {"params": places, "factor": recipe.place_factor}]
    return (
        Muon(hidden, lr=recipe.rate, weight_decay=recipe.weight_decay, dtype=torch.float32),
        torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0),
    )

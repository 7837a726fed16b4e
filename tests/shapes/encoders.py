"""Random encoders with their tokenizers for the tests, in the folder layout that training reads."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.vocabulary import WORDS, build_tokenizer


def _t5_tokenizer(length: int) -> T5Tokenizer:
    """A tokenizer of one token a word."""
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -4.0}
    scores |= {"▁" + word: -3.0 for word in WORDS} | {",": -9.0}
    scores |= {chr(code): -9.0 for code in range(ord("a"), ord("z") + 1)}
    return T5Tokenizer(vocab=list(scores.items()), extra_ids=0, model_max_length=length)


def write_encoders(
    folder: Path, *, widths: tuple[int, int, int] = (16, 8, 32), layers: tuple[int, int, int] = (2, 2, 2)
) -> Path:
    """Write two CLIP encoders and a T5 encoder of 24 rows with random weights."""
    tokenizer = build_tokenizer(Recipe())
    reader = _t5_tokenizer(24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, suffix in enumerate(("", "_2")):
            config = CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=widths[number],
                intermediate_size=2 * widths[number],
                projection_dim=widths[number],
                num_hidden_layers=layers[number],
                num_attention_heads=4,
                max_position_embeddings=24,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{suffix}")
            tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        t5 = T5Config(
            vocab_size=len(reader),
            d_model=widths[2],
            d_kv=widths[2] // 4,
            d_ff=2 * widths[2],
            num_layers=layers[2],
            num_heads=4,
            feed_forward_proj="gated-gelu",
            # Farther than the 24 rows of training all distances are one, so that longer rows are no news.
            relative_attention_num_buckets=16,
            relative_attention_max_distance=24,
        )
        T5EncoderModel(t5).save_pretrained(folder / "text_encoder_3")
        reader.save_pretrained(folder / "tokenizer_3")
    return folder

"""Pipelines of the shapes world with untrained parts, on the packaged autoencoder and tokenizer.

They stand for models that are trained: the classes, sizes and text rows are the same. The one with a U-Net has the
packaged U-Net, which knows another text encoder, so its images show next to nothing that was asked for.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from t2ictl.benchmarks.shapes.train.vocabulary import WORDS
from t2ictl.shapes import model_path
from tests.tiny import _seeded
from tests.tiny_tokenizers import LETTER, PRINTABLE, SPACE, WORD

LENGTH, WIDTHS, T5_WIDTH, JOINT_WIDTH = 24, (128, 64), 192, 192
#: In two pieces each, so that words of several tokens occur in both segments.
PIECES = {"triangle": ("tri", "angle"), "dotted": ("dot", "ted")}


def shapes_t5_tokenizer() -> T5Tokenizer:
    """A Unigram tokenizer in which the words of the world are one token, or two."""
    whole = [word for word in WORDS if word not in PIECES]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, SPACE: -4.0}
    scores |= {SPACE + word: WORD for word in whole} | {SPACE + head: WORD for head, _ in PIECES.values()}
    scores |= {tail: WORD for _, tail in PIECES.values()}
    scores |= {char: LETTER for char in PRINTABLE if char not in scores} | {"<extra_id_0>": 0.0}
    return T5Tokenizer(vocab=list(scores.items()), extra_ids=1, model_max_length=LENGTH)


def _clip(cls: Any, tokenizer: Any, width: int, layers: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cls(config)


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(str(model_path() / "vae"), low_cpu_mem_usage=False).float()
    vae.register_to_config(shift_factor=0.0)  # pipelines of SD 3 add it
    return vae


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(model_path() / "tokenizer"))


@functools.cache
def joint_pipe(layers: int = 2) -> StableDiffusion3Pipeline:
    """SD 3 on the shapes autoencoder: 64 places, 24 rows of two CLIPs side by side, then those of T5."""
    t5_tokenizer = shapes_t5_tokenizer()
    with _seeded(0):
        parts = {
            "text_encoder": _clip(CLIPTextModelWithProjection, _tokenizer(), WIDTHS[0], 4),
            "text_encoder_2": _clip(CLIPTextModelWithProjection, _tokenizer(), WIDTHS[1], 3),
            "text_encoder_3": T5EncoderModel(
                T5Config(
                    vocab_size=len(t5_tokenizer),
                    d_model=T5_WIDTH,
                    d_kv=48,
                    d_ff=2 * T5_WIDTH,
                    num_layers=4,
                    num_heads=4,
                    feed_forward_proj="gated-gelu",
                )
            ),
            "transformer": SD3Transformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=layers,
                num_attention_heads=4,
                attention_head_dim=JOINT_WIDTH // 4,
                joint_attention_dim=T5_WIDTH,
                caption_projection_dim=JOINT_WIDTH,
                pooled_projection_dim=sum(WIDTHS),
                pos_embed_max_size=24,
                qk_norm="rms_norm",
            ),
        }
    pipe = StableDiffusion3Pipeline(
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        tokenizer_3=t5_tokenizer,
        vae=_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        **parts,
    )
    for part in (*parts.values(), pipe.vae):
        part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def clip_pipe() -> StableDiffusionPipeline:
    """The packaged model with another text encoder: four layers, not trained."""
    pipe = StableDiffusionPipeline.from_pretrained(str(model_path()), torch_dtype=torch.float32)
    with _seeded(0):
        pipe.text_encoder = _clip(CLIPTextModel, pipe.tokenizer, WIDTHS[0], 4).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""Untrained models in the place of the embedded ``shapes-clip`` and ``shapes-dit``: classes and sizes of these.

Tokenizers know the words of the grammar, the autoencoder is that of ``shapes``, and the rest has random weights.
Queries and keys are sharpened as in ``tests.tiny_transformers``, so that maps are not uniform.
"""

from __future__ import annotations

import functools
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
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

from t2ictl.benchmarks.shapes.train.vocabulary import IN_PIECES, WORDS
from t2ictl.shapes import model_path
from tests.tiny import _seeded
from tests.tiny_transformers import wake

TEXT = 24  # tokens of every text row
WIDTHS = (128, 64)  # of the CLIPs
T5_WIDTH = 192


def save_stand_ins(place: Path) -> None:
    """Write both folders.

    Args:
        place: where they go, each under the name of its model.
    """
    clip_pipe().save_pretrained(place / "shapes-clip")
    joint_pipe().save_pretrained(place / "shapes-dit")


def _quiet(pipe: Any) -> Any:
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def clip_pipe() -> StableDiffusionPipeline:
    """A U-Net of the size of ``shapes`` on a deeper CLIP."""
    with _seeded(0):
        return _quiet(_clip_pipe())


@functools.cache
def joint_pipe(layers: int = 2) -> StableDiffusion3Pipeline:
    """A transformer on two CLIPs and a T5: 64 places, 24 rows of the CLIPs side by side, then those of T5.

    Args:
        layers: blocks of the transformer.
    """
    with _seeded(0):
        return _quiet(_joint_pipe(layers))


def _clip_pipe() -> StableDiffusionPipeline:
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(model_path() / "unet")))
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=untrained_clip(CLIPTextModel, WIDTHS[0], 4),
        tokenizer=_clip_tokenizer(),
        unet=wake(unet),
        scheduler=DDIMScheduler.from_pretrained(str(model_path() / "scheduler")),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _joint_pipe(layers: int) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=48,
        num_attention_heads=4,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=T5_WIDTH,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=24,
        qk_norm="rms_norm",
    )
    vae = _vae()
    vae.register_to_config(shift_factor=0.0)  # the pipeline adds it
    return StableDiffusion3Pipeline(
        transformer=wake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=untrained_clip(CLIPTextModelWithProjection, WIDTHS[0], 4),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=untrained_clip(CLIPTextModelWithProjection, WIDTHS[1], 3),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=untrained_t5(T5_WIDTH, 3),
        tokenizer_3=t5_tokenizer(),
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(str(model_path() / "vae"), low_cpu_mem_usage=False)


def _clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(model_path() / "tokenizer"))


def untrained_clip(kind: Any, width: int, layers: int) -> Any:
    """A CLIP of a class, of 24 rows."""
    tokenizer = _clip_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=TEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5_tokenizer() -> T5Tokenizer:
    """Unigram: a word of the grammar is one token, or two; other words are spelled."""
    whole = [f"▁{word}" for word in WORDS if word not in IN_PIECES]
    pieces = [part for word, (head, tail) in IN_PIECES.items() for part in (f"▁{head}", tail)]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -4.0, **dict.fromkeys(whole, -3.0)}
    scores |= dict.fromkeys(pieces, -4.0) | {each: -9.0 for each in letters if each not in scores}
    return T5Tokenizer(vocab=list(scores.items()), extra_ids=0, model_max_length=TEXT)


def untrained_t5(width: int, layers: int) -> T5EncoderModel:
    """A T5 encoder. Farther than its 24 rows all distances are one, so that longer rows are no news."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=16,
            relative_attention_max_distance=TEXT,
        )
    )


def write_encoders(
    folder: Path, *, widths: tuple[int, int, int] = (16, 8, 32), layers: tuple[int, int, int] = (2, 2, 2)
) -> Path:
    """Write two CLIPs and a T5 encoder with their tokenizers, in the folder layout that training reads."""
    with _seeded(0):
        for number, suffix in enumerate(("", "_2")):
            clip = untrained_clip(CLIPTextModelWithProjection, widths[number], layers[number])
            clip.save_pretrained(folder / f"text_encoder{suffix}")
            _clip_tokenizer().save_pretrained(folder / f"tokenizer{suffix}")
        untrained_t5(widths[2], layers[2]).save_pretrained(folder / "text_encoder_3")
        t5_tokenizer().save_pretrained(folder / "tokenizer_3")
    return folder

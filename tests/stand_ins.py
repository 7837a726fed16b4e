"""Untrained folders in the place of the embedded models ``shapes-clip`` and ``shapes-dit``: classes and sizes of these.

Tokenizers know the words of the grammar, the autoencoder is that of ``shapes``, and the rest has random weights.
Queries and keys are sharpened as in ``tests.tiny_transformers``, so that maps are not uniform.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

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
    with _seeded(0):
        clip_pipe().save_pretrained(place / "shapes-clip")
        dit_pipe().save_pretrained(place / "shapes-dit")


def clip_pipe() -> StableDiffusionPipeline:
    """A U-Net of the size of ``shapes`` on a deeper CLIP."""
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(model_path() / "unet")))
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel, WIDTHS[0], 4),
        tokenizer=_clip_tokenizer(),
        unet=wake(unet),
        scheduler=DDIMScheduler.from_pretrained(str(model_path() / "scheduler")),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def dit_pipe(layers: int = 2) -> StableDiffusion3Pipeline:
    """A transformer on two CLIPs and a T5.

    Args:
        layers: blocks of the transformer.
    """
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
        text_encoder=_clip(CLIPTextModelWithProjection, WIDTHS[0], 4),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection, WIDTHS[1], 3),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(str(model_path() / "vae"), low_cpu_mem_usage=False)


def _clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(model_path() / "tokenizer"))


def _clip(kind: Any, width: int, layers: int) -> Any:
    tokenizer = _clip_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=TEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5_tokenizer() -> T5Tokenizer:
    """Unigram: a word of the grammar is one token, or two; other words are spelled."""
    whole = [f"▁{word}" for word in WORDS if word not in IN_PIECES]
    pieces = [part for word, (head, tail) in IN_PIECES.items() for part in (f"▁{head}", tail)]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -4.0, **dict.fromkeys(whole, -3.0)}
    scores |= dict.fromkeys(pieces, -4.0) | {each: -9.0 for each in letters if each not in scores}
    return T5Tokenizer(vocab=list(scores.items()), extra_ids=0, model_max_length=TEXT)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_t5_tokenizer()),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=2 * T5_WIDTH,
            num_layers=3,
            num_heads=6,
            feed_forward_proj="gated-gelu",
        )
    )

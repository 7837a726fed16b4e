"""Parts of the tiny transformer pipelines: stock text encoders and autoencoders at toy sizes.

Widths differ from one another, and CLIP rows are 16 tokens long instead of 77, so that code which assumes the released
numbers breaks. Weights are random: build them under a seed.

Example:
    >>> t5_encoder().config.d_model, vae(4).config.latent_channels
    (72, 4)
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderDC, AutoencoderKL
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from tests.tiny import BOS, EOS
from tests.tiny_tokenizers import bert_tokenizer, clip_tokenizer, gemma_tokenizer, t5_tokenizer

T5_WIDTH, GEMMA_WIDTH, BERT_WIDTH = 72, 48, 40
CLIP_WIDTHS = (32, 24)  # CLIP-L and CLIP-G: together narrower than T5, as in SD3
CLIP_LENGTH = 16
VAE_CHANNELS = (8, 8, 8)  # a factor of 4; HunyuanDiT, whose pipeline has 8 written into it, takes one level more
DC_CHANNELS = (8, 8, 8, 8, 8)  # a factor of 16


def t5_encoder() -> T5EncoderModel:
    """A T5 encoder with gated units, as T5 v1.1 has them."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=T5_WIDTH,
            d_kv=16,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def clip_encoder(width: int, *, projection: bool = False) -> Any:
    """A CLIP text model; with ``projection`` the class that SD3 uses."""
    vocab = clip_tokenizer().get_vocab()
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=vocab[BOS],
        eos_token_id=vocab[EOS],
        pad_token_id=vocab[EOS],
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def gemma_encoder() -> Gemma2Model:
    """A causal Gemma 2 model with grouped keys and a sliding window in every other layer."""
    tokenizer = gemma_tokenizer()
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=GEMMA_WIDTH,
            intermediate_size=2 * GEMMA_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            initializer_range=0.2,  # the default hardly mixes tokens at this width
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def bert_encoder() -> BertModel:
    """A BERT encoder."""
    return BertModel(
        BertConfig(
            vocab_size=len(bert_tokenizer()),
            hidden_size=BERT_WIDTH,
            intermediate_size=2 * BERT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=80,
            initializer_range=0.2,  # the default hardly mixes tokens at this width
        ),
        add_pooling_layer=False,
    )


def vae(channels: int, widths: tuple[int, ...] = VAE_CHANNELS, **config: Any) -> AutoencoderKL:
    """An image autoencoder of factor 4, or of 2 for each further entry of ``widths``."""
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=channels,
        norm_num_groups=4,
        **config,
    )


def flow_vae(channels: int) -> AutoencoderKL:
    """The kind of SD3, FLUX and Chroma: a shift, and no convolutions around the latents."""
    return vae(channels, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06)


def deep_vae(channels: int) -> AutoencoderDC:
    """SANA's deep compression autoencoder, factor 16 instead of 32."""
    levels = len(DC_CHANNELS)
    kinds = ("ResBlock",) * (levels - 1) + ("EfficientViTBlock",)
    return AutoencoderDC(
        latent_channels=channels,
        attention_head_dim=4,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=DC_CHANNELS,
        decoder_block_out_channels=DC_CHANNELS,
        encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels,
        encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
        scaling_factor=0.4,
    )

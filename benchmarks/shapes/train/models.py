"""The untrained text encoder and denoiser, in the shapes that the package ships."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from t2ictl.benchmarks.shapes.train.loop import stream
from t2ictl.benchmarks.shapes.train.settings import Recipe


def build_scheduler() -> DDIMScheduler:
    """Make the noise schedule of Stable Diffusion 1.x, with velocity prediction.

    Returns:
        A scheduler of 1,000 training steps.

    Example:
        >>> build_scheduler().config.prediction_type
        'v_prediction'
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Make an untrained text encoder.

    Args:
        recipe: width, layers and length.
        tokenizer: its size and special tokens.

    Returns:
        A ``CLIPTextModel``; attention is explicit, which is faster than a fused kernel here.

    Example:
        >>> from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
        >>> build_text_encoder(Recipe(), build_tokenizer(Recipe())).config.hidden_size
        128
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=2 * recipe.text_width,
        projection_dim=recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=4,
        max_position_embeddings=recipe.text_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(recipe.seed, "weights", 1).integers(2**31)))
        return CLIPTextModel(config)


def build_unet(recipe: Recipe) -> UNet2DConditionModel:
    """Make an untrained denoiser with cross-attention at 16x16 and at 8x8.

    Args:
        recipe: ``unet_channels`` and ``unet_heads``.

    Returns:
        A ``UNet2DConditionModel`` for four latent channels.

    Example:
        >>> build_unet(Recipe()).config.sample_size
        16
    """
    levels = len(recipe.unet_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(recipe.seed, "weights", 2).integers(2**31)))
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            block_out_channels=recipe.unet_channels,
            layers_per_block=1,
            norm_num_groups=16,
            cross_attention_dim=recipe.text_width,
            # diffusers reads this, for historical reasons, as the number of heads.
            attention_head_dim=recipe.unet_heads,
        )

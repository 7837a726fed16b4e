"""Tiny real pipelines of the transformer families: stock classes, random weights, toy tokenizers, no download.

``tests.tiny`` does the same for U-Nets, ``tests.tiny_variants`` for image-to-image, inpainting and ControlNet. Sizes
are unusual on purpose: images are 8 x 6 tokens in every family, higher than wide, so that code which swaps rows and
columns or assumes squares breaks. That is 64 x 48 pixels, and 128 x 96 for SANA and HunyuanDiT.

Example:
    >>> pipe = flux()
    >>> run(pipe, "a red circle and a blue square", steps=2).shape
    torch.Size([1, 48, 16])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.tiny import _finish, _seeded, generator
from tests.tiny_parts import (
    BERT_WIDTH,
    CLIP_LENGTH,
    CLIP_WIDTHS,
    GEMMA_WIDTH,
    T5_WIDTH,
    VAE_CHANNELS,
    bert_encoder,
    clip_encoder,
    deep_vae,
    flow_vae,
    gemma_encoder,
    t5_encoder,
    vae,
)
from tests.tiny_tokenizers import bert_tokenizer, clip_tokenizer, gemma_tokenizer, t5_tokenizer

TOKENS = (8, 6)  # image tokens, rows and columns
TEXT = 24  # ``max_sequence_length`` where a call takes it; released defaults are 120 to 512

HEADS: dict[str, int] = {"num_attention_heads": 2, "attention_head_dim": 16}
WIDTH = 32  # heads times their width

# Random projections give nearly uniform maps. With queries and keys times SHARPEN (PixArt twice that), or where they
# are normalized the weights of their norms times SHARPEN_NORM, the entropy of the maps over the text lies between 0.6
# and 0.9 of the uniform one, and maps answer a change of the latents. With values and outputs times LOUDEN another word
# moves the latents of two steps by some percent.
SHARPEN, SHARPEN_NORM, LOUDEN = 2.5, 1.75, 2.0
SHARP = ("to_q", "to_k", "add_q_proj", "add_k_proj")
LOUD = ("to_v", "to_out.0", "add_v_proj", "to_add_out")
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")

# The kinds of schedule that are published with the weights. PixArt's last beta is 0.02: dividing a random prediction
# by a signal of 0.006 gives latents in the hundreds, hence the smaller one here.
PIXART_SCHEDULE: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.008}
SANA_SCHEDULE: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
HUNYUAN_SCHEDULE: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.03,
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
FLUX_SCHEDULE: dict[str, Any] = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


@torch.no_grad()
def wake(model: Any, sharpen: float = SHARPEN) -> Any:
    """Scale attention of ``model`` so that maps are not uniform and words matter (see :data:`SHARPEN`)."""
    for attention in model.modules():
        normalized = getattr(attention, "norm_q", None) is not None
        factors = dict.fromkeys(LOUD, LOUDEN) | dict.fromkeys(SHARP, 1.0 if normalized else sharpen)
        factors |= dict.fromkeys(NORMS, SHARPEN_NORM)
        for name, parameter in attention.named_parameters():
            parameter.mul_(factors.get(name.rpartition(".")[0], 1.0))
    return model


def _pixart(cls: Any, max_length: int, seed: int, dtype: torch.dtype, config: dict[str, Any]) -> Any:
    fields: dict[str, Any] = HEADS | {
        "in_channels": 4,
        "out_channels": 8,  # noise and its variance
        "num_layers": 4,
        "cross_attention_dim": WIDTH,
        "caption_channels": T5_WIDTH,
        "sample_size": 16,
        "patch_size": 2,
        "use_additional_conditions": False,
    }
    with _seeded(seed):
        parts = {
            "text_encoder": t5_encoder(),
            "transformer": wake(PixArtTransformer2DModel(**(fields | config)), 2 * SHARPEN),
            "vae": vae(4),
        }
    schedule = DPMSolverMultistepScheduler(**PIXART_SCHEDULE)
    return _finish(cls(tokenizer=t5_tokenizer(max_length), scheduler=schedule, **parts), dtype)


def pixart_alpha(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """PixArt-Alpha: cross-attention to T5, learned variance; ``config`` goes to the transformer, as in all of them."""
    return _pixart(PixArtAlphaPipeline, 120, seed, dtype, config)


def pixart_sigma(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """PixArt-Sigma: the same transformer class with another pipeline and longer text."""
    return _pixart(PixArtSigmaPipeline, 300, seed, dtype, config)


def sana(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """SANA: linear self-attention, cross-attention to Gemma 2, DPM-Solver on flow sigmas."""
    fields: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": WIDTH,
        "caption_channels": GEMMA_WIDTH,
        "num_layers": 4,
        "patch_size": 1,
        "sample_size": TOKENS[0],
    }
    with _seeded(seed):
        parts = {
            "text_encoder": gemma_encoder(),
            "transformer": wake(SanaTransformer2DModel(**(fields | config))),
            "vae": deep_vae(4),
        }
    schedule = DPMSolverMultistepScheduler(**SANA_SCHEDULE)
    return _finish(SanaPipeline(tokenizer=gemma_tokenizer(), scheduler=schedule, **parts), dtype)


def hunyuan_dit(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """HunyuanDiT: cross-attention to 77 rows of BERT and 256 of T5, long skips, velocity on alphas."""
    fields: dict[str, Any] = HEADS | {
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 16,
        "hidden_size": WIDTH,
        "num_layers": 4,  # an even number: every long skip has its partner
        "cross_attention_dim": BERT_WIDTH,
        "cross_attention_dim_t5": T5_WIDTH,
        "pooled_projection_dim": 24,
    }
    with _seeded(seed):
        parts = {
            "text_encoder": bert_encoder(),
            "text_encoder_2": t5_encoder(),
            "transformer": wake(HunyuanDiT2DModel(**(fields | config))),
            "vae": vae(4, (*VAE_CHANNELS, 8)),
        }
    pipe = HunyuanDiTPipeline(
        tokenizer=bert_tokenizer(),
        tokenizer_2=t5_tokenizer(256),
        scheduler=DDPMScheduler(**HUNYUAN_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    return _finish(pipe, dtype)


def sd3(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """SD3: joint attention of image and text; a text row is 16 tokens of two CLIPs side by side, then T5."""
    fields: dict[str, Any] = HEADS | {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": 4,
        "joint_attention_dim": T5_WIDTH,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": sum(CLIP_WIDTHS),
        "pos_embed_max_size": 12,
    }
    with _seeded(seed):
        parts = {
            "text_encoder": clip_encoder(CLIP_WIDTHS[0], projection=True),
            "text_encoder_2": clip_encoder(CLIP_WIDTHS[1], projection=True),
            "text_encoder_3": t5_encoder(),
            "transformer": wake(SD3Transformer2DModel(**(fields | config))),
            "vae": flow_vae((fields | config)["out_channels"]),
        }
    pipe = StableDiffusion3Pipeline(
        tokenizer=clip_tokenizer(CLIP_LENGTH),
        tokenizer_2=clip_tokenizer(CLIP_LENGTH, "!"),
        tokenizer_3=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **parts,
    )
    return _finish(pipe, dtype)


def sd35(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """SD3.5 medium: normalized queries and keys, and a second, image-only attention in the first two blocks."""
    return sd3(seed=seed, dtype=dtype, **({"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} | config))


def flux(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """FLUX.1-dev: joint and single blocks, embedded guidance, a schedule that is shifted by the image's size."""
    schedule = config.pop("schedule", FLUX_SCHEDULE)
    fields: dict[str, Any] = HEADS | {
        "patch_size": 1,
        "in_channels": 16,  # 2 x 2 cells of four channels
        "num_layers": 3,
        "num_single_layers": 2,
        "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": CLIP_WIDTHS[0],
        "guidance_embeds": True,
        "axes_dims_rope": (4, 8, 4),
    }
    with _seeded(seed):
        parts = {
            "text_encoder": clip_encoder(CLIP_WIDTHS[0]),
            "text_encoder_2": t5_encoder(),
            "transformer": wake(FluxTransformer2DModel(**(fields | config))),
            "vae": flow_vae(4),
        }
    pipe = FluxPipeline(
        tokenizer=clip_tokenizer(CLIP_LENGTH),
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**schedule),
        **parts,
    )
    return _finish(pipe, dtype)


def flux_schnell(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """FLUX.1-schnell: no guidance, no shift."""
    return flux(seed=seed, dtype=dtype, **({"guidance_embeds": False, "schedule": {"shift": 1.0}} | config))


def chroma(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """Chroma: FLUX's blocks, T5 alone, modulation from one small network, guidance by two calls a step."""
    fields: dict[str, Any] = HEADS | {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 3,
        "num_single_layers": 2,
        "joint_attention_dim": T5_WIDTH,
        "axes_dims_rope": (4, 8, 4),
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 32,
        "approximator_layers": 2,
    }
    with _seeded(seed):
        parts = {
            "text_encoder": t5_encoder(),
            "transformer": wake(ChromaTransformer2DModel(**(fields | config))),
            "vae": flow_vae(4),
        }
    schedule = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _finish(ChromaPipeline(tokenizer=t5_tokenizer(), scheduler=schedule, **parts), dtype)


FAMILIES: dict[str, Callable[..., Any]] = {
    build.__name__: build
    for build in (pixart_alpha, pixart_sigma, sana, hunyuan_dit, sd3, sd35, flux, flux_schnell, chroma)
}


def size(pipe: Any) -> tuple[int, int]:
    """Height and width in pixels at which the image has :data:`TOKENS` tokens."""
    token = 16 if type(pipe).__name__.startswith(("Sana", "Hunyuan")) else 8
    return TOKENS[0] * token, TOKENS[1] * token


def image(pipe: Any, seed: int = 0) -> torch.Tensor:
    """A smooth random image, values 0 to 1, shape (1, 3, height, width)."""
    coarse = torch.rand(1, 3, 4, 3, generator=generator(seed))
    return torch.nn.functional.interpolate(coarse, size=size(pipe), mode="bilinear", align_corners=False)


def mask(pipe: Any) -> torch.Tensor:
    """An inpainting mask, shape (1, 1, height, width): the right half is repainted."""
    mask_11YX = torch.zeros(1, 1, *size(pipe))
    mask_11YX[..., size(pipe)[1] // 2 :] = 1.0
    return mask_11YX


def inputs(pipe: Any) -> dict[str, Any]:
    """The images that this kind of pipeline demands besides the prompt."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    given: dict[str, Any] = {
        "image": image(pipe),
        "control_image": image(pipe, seed=1),
        "mask_image": mask(pipe),
        "control_mask": mask(pipe),
        "strength": 0.75,
    }
    return {name: value for name, value in given.items() if name in accepted}


def settings(pipe: Any) -> dict[str, Any]:
    """What every call needs at this size: height, width, a short text, and no rounding to trained shapes."""
    height, width = size(pipe)
    wanted = {
        "height": height,
        "width": width,
        "max_sequence_length": TEXT,
        "use_resolution_binning": False,
        "clean_caption": False,
        "max_area": height * width,  # FLUX Kontext scales to an area, and images to trained shapes
        "_auto_resize": False,
    }
    accepted = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in wanted.items() if name in accepted}


def run(pipe: Any, prompt: Any, *, steps: int = 4, seed: int | None = 0, **call: Any) -> torch.Tensor:
    """Latents of one ordinary call: the stock ``__call__`` with :func:`settings`, :func:`inputs` and a seed.

    Args:
        pipe: pipeline of :data:`FAMILIES` or of ``tests.tiny_variants.VARIANTS``.
        prompt: a text or a list of texts of at most :data:`TEXT` tokens; further ones are cut off.
        steps: number of inference steps.
        seed: seed of the generator and, during the call, of the global random numbers; with ``None`` no generator is
            given and the global ones are used as they are.
        call: further arguments, which win over the defaults.

    Returns:
        latents as the pipeline has them: (B, C, Y, X), or (B, N, 4 C) in the packed families FLUX and Chroma.
    """
    call = settings(pipe) | inputs(pipe) | {"num_inference_steps": steps, "output_type": "latent"} | call
    call["prompt"] = prompt  # by name: the first parameter of FLUX Kontext is the image
    if seed is None:
        return pipe(**call).images
    call.setdefault("generator", generator(seed))
    with _seeded(seed):  # ControlNet of SD3 and HunyuanDiT encode the control image with global random numbers
        return pipe(**call).images

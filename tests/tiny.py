"""Tiny real pipelines: the classes of diffusers and transformers, random weights, no download.

Every part is the stock class at a toy size, so that what holds here holds for the stock code path. The sizes are
unusual on purpose: latents of 16 x 16 cells, a VAE factor of 4 and 16 tokens catch code that assumes 64, 8 or 77.
Weights come from a fixed seed and the global random state is left as it was found.

Example:
    >>> pipe = sd()
    >>> run(pipe, "a red circle and a blue square", steps=2).shape
    torch.Size([1, 4, 16, 16])
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PUNCTUATION = "!,.-'():"
# One token each. Everything else splits: "skateboard" into skate|board, "giraffe" into letters and short pieces.
WORDS = """a an the and or of on in with to at is photo picture small big
red blue green yellow black white orange purple pink brown circle square triangle star cross ring heart
cat dog frog bear lion bird bench hat car apple turtle crown glasses ball book clock bowl suitcase balloon
board""".split()
PIECES = ("skate", "snow")  # word beginnings: "skateboard" and "snowboard" are two tokens

# Stable Diffusion's own numbers.
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
}
SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "lcm": "LCMScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
}

SAMPLE = 16  # latent cells a side
TEXT_WIDTH = 32
VAE_CHANNELS = (8, 8, 8)  # three levels: a factor of 4
CONTROL_CHANNELS = (8, 8, 8)  # as many levels as the VAE, so that the control image lands on the latent grid
# Random projections give nearly uniform maps, hence losses almost without gradient. With queries and keys times 4 the
# entropy of the maps lies between 0.4 and 0.9 of the uniform one and they vary over the image by about their mean;
# times 8 they saturate, and gradients vanish again. With values and outputs times 2 another word moves the predicted
# noise by about a tenth.
SHARPEN, LOUDEN = 4.0, 2.0


@functools.cache
def vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """The toy CLIP vocabulary and its merges: every word of :data:`WORDS` is one token, whatever its neighbors.

    Merges are added word by word on top of what the earlier ones already join, so that no word breaks another.
    """
    symbols = [*LETTERS, *PUNCTUATION, *(f"{char}</w>" for char in LETTERS + PUNCTUATION)]
    merges: list[tuple[str, str]] = []
    for target in [f"{word}</w>" for word in WORDS] + list(PIECES):
        end = target.endswith("</w>")
        parts = list(target.removesuffix("</w>"))
        parts[-1] += "</w>" if end else ""
        for pair in merges:
            parts = _join(parts, pair)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = _join(parts, merges[-1])
    names = dict.fromkeys([*symbols, *(left + right for left, right in merges), BOS, EOS])
    return {name: index for index, name in enumerate(names)}, tuple(merges)


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """``parts`` with every occurrence of the neighbors ``pair`` joined, left to right."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def tokenizer(max_length: int = 16, pad: str = EOS) -> CLIPTokenizer:
    """A fast CLIP tokenizer on the toy vocabulary; ``pad`` is the end token (SD 1.x) or "!" (SD 2, SDXL's second)."""
    vocab, merges = vocabulary()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), pad_token=pad, model_max_length=max_length)


def text_encoder(max_length: int = 16, *, projection: bool = False, layers: int = 3) -> Any:
    """A CLIP text model of width 32; with ``projection`` the class of SDXL's second encoder."""
    vocab, _ = vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=max_length,
        bos_token_id=vocab[BOS],
        eos_token_id=vocab[EOS],
        pad_token_id=vocab[EOS],
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def unet(cross: tuple[bool, ...] = (True, True, True, False), **config: Any) -> UNet2DConditionModel:
    """A U-Net with one level per entry of ``cross``, outermost first; true where the level has cross-attention."""
    down = tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in cross)
    up = tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(cross))
    settings: dict[str, Any] = {
        "sample_size": SAMPLE,
        "block_out_channels": (8, 16, 16, 16)[: len(cross)],
        "layers_per_block": 1,
        "down_block_types": down,
        "up_block_types": up,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,  # the number of heads, by the well-known misnomer
        "norm_num_groups": 4,
    }
    model = UNet2DConditionModel(**(settings | config))
    _wake_attention(model)
    return model


@torch.no_grad()
def _wake_attention(model: torch.nn.Module) -> None:
    """Scale cross-attention so that maps are not uniform and words matter (see :data:`SHARPEN`)."""
    for name, weight in model.named_parameters():
        if ".attn2.to_q" in name or ".attn2.to_k" in name:
            weight.mul_(SHARPEN)
        elif ".attn2.to_v" in name or ".attn2.to_out" in name:
            weight.mul_(LOUDEN)


def vae() -> AutoencoderKL:
    """A two-way image autoencoder with factor 4 and four latent channels."""
    return AutoencoderKL(
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SAMPLE * 4,
    )


def scheduler(name: str, config: Any = None, **overrides: Any) -> Any:
    """The scheduler ``name`` (a key of :data:`SCHEDULERS`), built as users build it: ``from_config``.

    Args:
        name: key of :data:`SCHEDULERS`, such as "euler".
        config: a scheduler's configuration or a pipeline that has one; Stable Diffusion's numbers when not given.
        overrides: fields to replace.
    """
    base = config.scheduler.config if isinstance(config, DiffusionPipeline) else config
    base = dict(SCHEDULE if base is None else base)
    if name == "pndm":
        base["skip_prk_steps"] = True  # as in the published configuration of SD 1.x; the other classes do not know it
    return getattr(diffusers, SCHEDULERS[name]).from_config(base | overrides)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Start the global random numbers at ``seed``, and put them back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _finish(pipe: Any, dtype: torch.dtype) -> Any:
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
            torch.nn.Module.to(part, dtype)  # the pipeline's own ``to`` warns about casts although nothing is lost here
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sd(
    cls: Any, *, seed: int, dtype: torch.dtype, max_length: int, pad: str = EOS, extra: Any = None, **config: Any
) -> Any:
    """A pipeline of the SD family; ``extra`` makes further parts from the U-Net."""
    schedule = config.pop("schedule", {})
    with _seeded(seed):
        parts = {"text_encoder": text_encoder(max_length), "unet": unet(**config), "vae": vae()}
        parts |= extra(parts["unet"]) if extra else {}
    pipe = cls(
        tokenizer=tokenizer(max_length, pad),
        scheduler=DDIMScheduler.from_config(SCHEDULE | schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    return _finish(pipe, dtype)


def _sdxl(cls: Any, *, seed: int, dtype: torch.dtype, max_length: int, extra: Any = None, **config: Any) -> Any:
    """A pipeline of the SDXL family: two encoders side by side, pooled text and sizes added to the time."""
    settings: dict[str, Any] = {
        "cross": (False, True, True),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTH,  # six numbers of size and crop, pooled text
    }
    with _seeded(seed):
        parts = {
            "text_encoder": text_encoder(max_length),
            "text_encoder_2": text_encoder(max_length, projection=True, layers=4),
            "unet": unet(**(settings | config)),
            "vae": vae(),
        }
        parts |= extra(parts["unet"]) if extra else {}
    pipe = cls(
        tokenizer=tokenizer(max_length),
        tokenizer_2=tokenizer(max_length, "!"),
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULE | {"timestep_spacing": "leading"}),
        add_watermarker=False,
        **parts,
    )
    return _finish(pipe, dtype)


def _controlnet(model: UNet2DConditionModel) -> dict[str, Any]:
    """A ControlNet copied from the U-Net, with its zero convolutions filled: an untrained one would do nothing."""
    net = ControlNetModel.from_unet(model, conditioning_embedding_out_channels=CONTROL_CHANNELS)
    zero = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
    for layer in zero:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return {"controlnet": net}


def sd(*, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any) -> Any:
    """SD 1.x: ``StableDiffusionPipeline``, DDIM; ``config`` goes to :func:`unet`."""
    return _sd(StableDiffusionPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)


def sd2(*, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any) -> Any:
    """SD 2.x: predicts the velocity, upcasts attention, linear projections, pads with "!" instead of the end token."""
    config = {"upcast_attention": True, "use_linear_projection": True} | config
    velocity = {"prediction_type": "v_prediction"}
    return _sd(
        StableDiffusionPipeline, seed=seed, dtype=dtype, max_length=max_length, pad="!", schedule=velocity, **config
    )


def sd_img2img(*, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any) -> Any:
    """Image to image with SD 1.x."""
    return _sd(StableDiffusionImg2ImgPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)


def sd_inpaint(
    channels: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any
) -> Any:
    """Inpainting with SD 1.x: ``channels`` 4 (a plain U-Net) or 9 (one that sees mask and masked image)."""
    config = {"in_channels": channels} | config
    return _sd(StableDiffusionInpaintPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)


def sd_controlnet(*, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any) -> Any:
    """SD 1.x with a ControlNet that has an effect."""
    config = {"extra": _controlnet} | config
    return _sd(StableDiffusionControlNetPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)


def sd_lcm(*, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any) -> Any:
    """A latent consistency model: the guidance scale is embedded with the time, and no unconditional rows exist."""
    config = {"time_cond_proj_dim": 8} | config
    pipe = _sd(LatentConsistencyModelPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe


def sdxl(*, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any) -> Any:
    """SDXL: ``StableDiffusionXLPipeline``, Euler; the outermost level has no cross-attention."""
    return _sdxl(StableDiffusionXLPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)


def sdxl_img2img(*, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any) -> Any:
    """Image to image with SDXL."""
    return _sdxl(StableDiffusionXLImg2ImgPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)


def sdxl_inpaint(
    channels: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any
) -> Any:
    """Inpainting with SDXL: ``channels`` 4 or 9, as :func:`sd_inpaint`."""
    config = {"in_channels": channels} | config
    return _sdxl(StableDiffusionXLInpaintPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)


def sdxl_controlnet(*, seed: int = 0, dtype: torch.dtype = torch.float32, max_length: int = 16, **config: Any) -> Any:
    """SDXL with a ControlNet that has an effect."""
    config = {"extra": _controlnet} | config
    return _sdxl(StableDiffusionXLControlNetPipeline, seed=seed, dtype=dtype, max_length=max_length, **config)


def generator(seed: int = 0) -> torch.Generator:
    """A fresh CPU generator at ``seed``."""
    return torch.Generator().manual_seed(seed)


def image(seed: int = 0, side: int = 4 * SAMPLE) -> torch.Tensor:
    """A smooth random image, values 0 to 1, shape (1, 3, side, side): input of image-to-image and ControlNet."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator(seed))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)


def mask(side: int = 4 * SAMPLE) -> torch.Tensor:
    """An inpainting mask, shape (1, 1, side, side): the right half is repainted."""
    mask_YX = torch.zeros(1, 1, side, side)
    mask_YX[..., side // 2 :] = 1.0
    return mask_YX


def inputs(pipe: Any) -> dict[str, Any]:
    """The images that this kind of pipeline demands besides the prompt."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    if "control_image" in accepted or "ControlNet" in type(pipe).__name__:
        return {"image": image()}
    given: dict[str, Any] = {}
    if "mask_image" in accepted:
        given["mask_image"] = mask()
    if "strength" in accepted:
        given |= {"image": image(), "strength": 0.75}
    return given


def run(pipe: Any, prompt: Any, *, steps: int = 4, seed: int | None = 0, **call: Any) -> torch.Tensor:
    """Latents of one ordinary call: the stock ``__call__`` with a seeded generator and the images it demands."""
    call = inputs(pipe) | {"num_inference_steps": steps, "output_type": "latent"} | call
    if seed is not None:
        call.setdefault("generator", generator(seed))
    return pipe(prompt, **call).images

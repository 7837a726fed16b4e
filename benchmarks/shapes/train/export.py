"""The last stage: a diffusers folder that loads with no code of this project."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from t2ictl.benchmarks.shapes.train.models import build_scheduler, build_text_encoder, build_unet
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.vocabulary import save_tokenizer


@torch.no_grad()
def normalize_latents(model: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Normalize every latent channel to mean 0 and deviation 1, inside the autoencoder.

    The affine map is folded into the two 1x1 convolutions next to the latent, so the
    decoded image does not change and the scaling factor of the folder is 1:
    ``z' = (z - mean) / deviation`` after ``quant_conv``, its inverse in ``post_quant_conv``.

    Args:
        model: the trained autoencoder, changed in place.
        latents: posterior means of the training images, shape ``(images, 4, y, x)``.

    Returns:
        The normalized latents, float32.
    """
    values = latents.float()
    mean, deviation = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))
    into, out = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    into.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation.view(1, -1, 1, 1)
    return (values - mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)


def build_pipeline(
    recipe: Recipe, tokenizer: CLIPTokenizer, vae: AutoencoderKL, average: dict[str, torch.Tensor]
) -> StableDiffusionPipeline:
    """Assemble the ordinary pipeline from averaged weights.

    Args:
        recipe: sizes.
        tokenizer: of the package.
        vae: the autoencoder with normalized latents.
        average: a kept average of the denoiser stage.

    Returns:
        A pipeline in float32.
    """
    text, unet = build_text_encoder(recipe, tokenizer), build_unet(recipe)
    for name, model in (("text.", text), ("unet.", unet)):
        weights = {key.removeprefix(name): value for key, value in average.items() if key.startswith(name)}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and all("position_ids" in key for key in missing)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_folder(
    recipe: Recipe,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    average: dict[str, torch.Tensor],
    target: Path,
) -> None:
    """Write the folder in half precision, first beside its place and then in one move.

    The small text encoder stays in single precision: transformers loads weights in the
    precision of the file, and the plain pipeline must come up in float32 throughout.

    Args:
        recipe: sizes.
        tokenizer: of the package.
        vae: the autoencoder with normalized latents; not changed.
        average: a kept average of the denoiser stage.
        target: replaced if it exists.
    """
    half = AutoencoderKL.from_config(vae.config)
    half.load_state_dict(vae.state_dict())
    pipeline = build_pipeline(recipe, tokenizer, half, average).to(torch.float16)
    pipeline.text_encoder.float()

    def write(partial: Path) -> None:
        pipeline.save_pretrained(partial, safe_serialization=True)
        save_tokenizer(tokenizer, partial / "tokenizer")

    replace_folder(target, write)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, clean its configurations, and put it there in one move.

    Args:
        target: replaced if it exists.
        write: fills the folder that it is given.
    """
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    write(partial)
    clean_configs(partial)
    move_to_place(partial, target)


def move_to_place(partial: Path, target: Path) -> None:
    """Move a whole folder to its place; one that is there goes away.

    Args:
        partial: beside the target.
        target: where to.

    Example:
        >>> import tempfile
        >>> here = Path(tempfile.mkdtemp()); (here / "a").mkdir(); (here / "b").mkdir()
        >>> move_to_place(here / "a", here / "b"); [path.name for path in here.iterdir()]
        ['b']
    """
    if target.exists():
        old = target.with_name(f"{target.name}.{os.getpid()}.old")
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)


def clean_configs(folder: Path) -> None:
    """Drop what names a machine, and the training-time choices of precision and attention.

    Args:
        folder: its folders' ``config.json`` are written anew.
    """
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        for key in ("_name_or_path", "dtype", "torch_dtype", "_attn_implementation", "attn_implementation"):
            config.pop(key, None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

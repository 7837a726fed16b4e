"""Export of denoisers on frozen encoders: diffusers folders that load with no code of this project."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)

from t2ictl.benchmarks.shapes.train.export import replace_folder
from t2ictl.benchmarks.shapes.train.frozen.dit import build_transformer
from t2ictl.benchmarks.shapes.train.frozen.encoders import NAMES, TOKENIZERS, load_encoders
from t2ictl.benchmarks.shapes.train.frozen.settings import FrozenRecipe
from t2ictl.benchmarks.shapes.train.frozen.train import ENCODERS
from t2ictl.benchmarks.shapes.train.frozen.unet import build_denoiser
from t2ictl.benchmarks.shapes.train.models import build_scheduler
from t2ictl.benchmarks.shapes.train.scenes import load_autoencoder


def _averaged(model: Any, name: str, average: dict[str, torch.Tensor]) -> Any:
    """Give a model its averaged weights; what belongs to an auxiliary head is left behind."""
    weights = {key.removeprefix(f"{name}."): value for key, value in average.items() if key.startswith(f"{name}.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    buffers = {key for key, _ in model.named_buffers()}
    assert not unexpected and set(missing) <= buffers
    return model.eval()


def build_pipeline(recipe: FrozenRecipe, encoders_folder: Path, average: dict[str, torch.Tensor]) -> DiffusionPipeline:
    """Assemble the stock pipeline from averaged weights, the frozen encoders and the packaged autoencoder.

    Args:
        recipe: names the model, its sizes and the scheduler's shift.
        encoders_folder: of the frozen encoders.
        average: a kept average.

    Returns:
        ``StableDiffusion3Pipeline`` or ``StableDiffusionPipeline`` in float32.
    """
    encoders = load_encoders(encoders_folder, ENCODERS[recipe.model])
    if recipe.model == "dit":
        models, tokenizers, vae = encoders.models, encoders.tokenizers, load_autoencoder()
        # The stock pipeline adds the shift, and takes no None.
        vae.register_to_config(shift_factor=0.0)
        return StableDiffusion3Pipeline(
            transformer=_averaged(build_transformer(recipe, encoders), "transformer", average),
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=recipe.shift),
            vae=vae,
            **dict(zip(NAMES, models, strict=True)),
            **dict(zip(TOKENIZERS, tokenizers, strict=True)),
        )
    return StableDiffusionPipeline(
        vae=load_autoencoder(),
        text_encoder=encoders.models[0].text_model,
        tokenizer=encoders.tokenizers[0],
        unet=_averaged(build_denoiser(recipe, encoders), "unet", average),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_frozen(recipe: FrozenRecipe, encoders_folder: Path, average: dict[str, torch.Tensor], target: Path) -> None:
    """Write the folder: denoiser and autoencoder in half precision, encoders in their own.

    Args:
        recipe: names the model, its sizes and the scheduler's shift.
        encoders_folder: of the frozen encoders; they are copied as they are, but for the CLIP of the U-Net, which
            loses its projection.
        average: a kept average.
        target: replaced if it exists.
    """
    pipeline = build_pipeline(recipe, encoders_folder, average)
    for name in ("transformer", "unet", "vae"):
        if hasattr(pipeline, name):
            getattr(pipeline, name).half()

    def write(partial: Path) -> None:
        pipeline.save_pretrained(partial, safe_serialization=True)
        copied = (*NAMES, *TOKENIZERS) if recipe.model == "dit" else TOKENIZERS[:1]
        for name in copied:
            shutil.rmtree(partial / name)
            shutil.copytree(encoders_folder / name, partial / name)

    replace_folder(target, write)

"""The drawn scenes and their latents, made once and shared by every part that learns after the autoencoder.

A scene costs two milliseconds to invent and three to encode, an update of a small denoiser
half a second: drawn anew at every update they would be a tenth of the whole training.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from t2ictl.benchmarks.shapes.train.data import to_pixels, training_scene
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.errors import BadSetting
from t2ictl.shapes import model_path
from t2ictl.shapes.world import Look, Mark, Placed, Scene

#: Scenes a file; a run that was stopped goes on behind the last whole file.
PART = 2_000


@dataclass(frozen=True, kw_only=True)
class DrawnScenes:
    """Scenes of the training split with the latents of their images.

    Args:
        scenes: ``N`` scenes; scene ``i`` is a function of the recipe and of ``i``.
        latents: float16, shape ``(N, 4, y, x)``, mean 0 and deviation 1 in each channel.
    """

    scenes: tuple[Scene, ...]
    latents: torch.Tensor

    def __len__(self) -> int:
        return len(self.scenes)


def scene_from(plain: dict[str, Any]) -> Scene:
    """Rebuild a scene from plain values.

    Args:
        plain: what ``dataclasses.asdict`` makes of a scene.

    Returns:
        The scene.

    Example:
        >>> scene = Scene(objects=(Placed(look=Look(shape="star", color="red"), x=9.0, y=9.0, radius=7.0),))
        >>> scene_from(dataclasses.asdict(scene)) == scene
        True
    """
    objects = []
    for placed in plain["objects"]:
        look = dict(placed["look"])
        mark = Mark(**look["mark"]) if look["mark"] is not None else None
        objects.append(Placed(**{**placed, "look": Look(**{**look, "mark": mark})}))
    return Scene(objects=tuple(objects), height=plain["height"], width=plain["width"])


@torch.no_grad()
def encode_scenes(scenes: Sequence[Scene], vae: AutoencoderKL) -> torch.Tensor:
    """Draw scenes and encode their images, a hundred at once.

    Args:
        scenes: ``N`` scenes.
        vae: the packaged autoencoder.

    Returns:
        Scaled latents, float16, shape ``(N, 4, y, x)``.
    """
    chunks = [scenes[start : start + 100] for start in range(0, len(scenes), 100)]
    latents = torch.cat([vae.encode(to_pixels(list(chunk))).latent_dist.mean for chunk in chunks])
    return (latents * vae.config.scaling_factor).half().contiguous()


def load_autoencoder() -> AutoencoderKL:
    """Load the packaged autoencoder.

    Returns:
        The autoencoder, float32.

    Example:
        >>> load_autoencoder().config.latent_channels
        4
    """
    return AutoencoderKL.from_pretrained(str(model_path() / "vae"), low_cpu_mem_usage=False).float().eval()


def _write_part(folder: Path, part: int, scenes: Sequence[Scene], vae: AutoencoderKL) -> None:
    """Write one file of scenes and one of latents; the latents come last, so that a pair with them is whole."""
    text = "".join(json.dumps(dataclasses.asdict(scene)) + "\n" for scene in scenes)
    (folder / f"scenes-{part:03d}.jsonl").write_text(text, encoding="utf-8")
    partial = folder / f"latents-{part:03d}.{os.getpid()}.partial"
    save_file({"latents": encode_scenes(scenes, vae)}, partial)
    os.replace(partial, folder / f"latents-{part:03d}.safetensors")


def draw_scenes(recipe: Recipe, folder: Path) -> DrawnScenes:
    """Draw the scenes of a recipe and encode their images, or read them where that was done.

    Args:
        recipe: ``seed``, ``images`` and the shares of kinds of scenes.
        folder: keeps the scenes and latents in files of 2,000.

    Returns:
        The scenes, with latents of the packaged autoencoder.

    Raises:
        BadSetting: the folder holds the scenes of another seed, number or share.
    """
    named = ("seed", "images", "single_share", "pair_share", "marked_share")
    asked = {name: getattr(recipe, name) for name in named}
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "scenes.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != asked:
        raise BadSetting(f"{folder} holds the scenes of another recipe.", "Use another folder for the scenes.")
    record.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    starts = range(0, recipe.images, PART)
    missing = [start for start in starts if not (folder / f"latents-{start // PART:03d}.safetensors").exists()]
    vae = load_autoencoder()
    for start in tqdm(missing, desc="scenes", mininterval=10, disable=not missing):
        scenes = [training_scene(recipe, index) for index in range(start, min(start + PART, recipe.images))]
        _write_part(folder, start // PART, scenes, vae)
    scenes, latents = [], []
    for start in starts:
        lines = (folder / f"scenes-{start // PART:03d}.jsonl").read_text(encoding="utf-8").splitlines()
        scenes += [scene_from(json.loads(line)) for line in lines]
        latents.append(load_file(folder / f"latents-{start // PART:03d}.safetensors")["latents"])
    return DrawnScenes(scenes=tuple(scenes), latents=torch.cat(latents))

"""Memory: what there is, and about how much an image will take, said before it is made.

The figures a latent cell are counted on the real layer shapes (``t2ictl bench speed memory`` and
``... .update``); other widths are scaled. Allocators and kernels take some more: an estimate, not a promise.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from t2ictl import Checkpointing, Request
from t2ictl.errors import BadSetting

__all__ = ["Estimate", "MemoryReport", "ModelFacts", "estimate", "facts_of", "report"]

KIB = 1024
# Bytes in float16: of a row and cell in a forward pass, of a cell kept for backward by the way of checkpointing, of a
# cell in the decoder.
FORWARD = {"sd": 16.3 * KIB, "sdxl": 9.8 * KIB}
SAVED: dict[str, dict[Checkpointing, float]] = {
    "sd": {"off": 82 * KIB, "feed_forward": 54 * KIB, "all": 29 * KIB, "block": 19 * KIB},
    "sdxl": {"off": 234 * KIB, "feed_forward": 119 * KIB, "all": 71 * KIB, "block": 64 * KIB},
}
DECODED = 96 * KIB
# Widths that these figures belong to: the first block of the U-Net, the last but one of the decoder.
UNET_WIDTH, DECODER_WIDTH = 320, 256
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """The memory of the device that images are made on.

    Args:
        device: its name.
        dtype: precision of the weights; empty while none are loaded.
        used: bytes in use: of this program on a GPU, of the process on a CPU.
        free: bytes that are free.
        total: bytes in all.
    """

    device: str
    dtype: str
    used: int
    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model's folder says without loading it.

    Args:
        family: ``"sd"`` or ``"sdxl"``.
        weights: bytes of the weights, in float32.
        unet_width: channels of the first block of the U-Net.
        decoder_width: channels of the decoder where images are large.
        cells: latent cells a side by default.
        factor: pixels a latent cell.
    """

    family: str
    weights: int
    unet_width: int
    decoder_width: int
    cells: int
    factor: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """About how much memory a run takes.

    Args:
        weights: bytes of the model's weights.
        work: bytes of activations at the highest point.
        maps: bytes of the word maps.
    """

    weights: int
    work: int
    maps: int

    @property
    def total(self) -> int:
        """All of it (bytes)."""
        return self.weights + self.work + self.maps


def report(device: str | None = None, dtype: str = "") -> MemoryReport:
    """Report the memory as it is now.

    Args:
        device: of torch; None for CUDA where there is one.
        dtype: precision of what is loaded.

    Returns:
        The report.
    """
    import torch

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        name = torch.cuda.get_device_name(place)
        return MemoryReport(device=name, dtype=dtype, used=torch.cuda.memory_allocated(place), free=free, total=total)
    import psutil

    memory = psutil.virtual_memory()
    used = psutil.Process().memory_info().rss
    return MemoryReport(device="CPU", dtype=dtype, used=used, free=memory.available, total=memory.total)


def facts_of(folder: Path) -> ModelFacts:
    """Read what a model's folder says.

    Args:
        folder: a diffusers folder.

    Returns:
        The facts.

    Raises:
        BadSetting: if a file is missing or says something else than expected.
    """
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
        index = json.loads((folder / "model_index.json").read_text())
        blocks = vae["block_out_channels"]
        return ModelFacts(
            family="sdxl" if "XL" in index["_class_name"] else "sd",
            weights=sum(_weights(part) for part in folder.iterdir() if part.is_dir()),
            unet_width=int(unet["block_out_channels"][0]),
            decoder_width=int(blocks[min(1, len(blocks) - 1)]),
            cells=int(unet["sample_size"]),
            factor=2 ** (len(blocks) - 1),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        RecursionError,
        OverflowError,
        SafetensorError,
    ) as error:
        raise BadSetting(
            f"The model {folder.name!r} does not say how large it is: {error!r}.", "Load it elsewhere."
        ) from None


def _weights(part: Path) -> int:
    """Bytes of one set of weights in float32; folders often hold the same in several formats and precisions."""
    for ending in WEIGHTS:
        files = [path for path in part.iterdir() if path.suffix == ending]
        plain = [path for path in files if not {"fp16", "bf16"} & set(path.name.split("."))]
        if files:
            return sum(_numbers(path) * 4 for path in plain or files)
    return 0


def _numbers(path: Path) -> int:
    """How many numbers a file holds: as its header says, or, in the older format, from its size."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // (2 if {"fp16", "bf16"} & set(path.name.split(".")) else 4)
    with safe_open(path, "numpy") as held:
        return sum(math.prod(held.get_slice(name).get_shape()) for name in held.keys())


def estimate(
    facts: ModelFacts,
    request: Request,
    *,
    moves: bool,
    guided: bool,
    words: int,
    bytes_each: int = 4,
    checkpointing: Checkpointing = "off",
) -> Estimate:
    """Estimate the memory of a run.

    Args:
        facts: of the model.
        request: what is asked for.
        moves: whether a control takes gradients.
        guided: whether the batch has a second row for guidance.
        words: recorded words.
        bytes_each: bytes of a number: 4 in float32, 2 in half precision.
        checkpointing: which layers are computed again in place of being kept for the backward pass.

    Returns:
        The estimate.

    Example:
        >>> sd = ModelFacts(family="sd", weights=4 * 2**30, unet_width=320, decoder_width=256, cells=64, factor=8)
        >>> round(estimate(sd, Request(prompt="a cat"), moves=True, guided=True, words=2, bytes_each=2).work / 2**30, 2)
        0.38
    """
    scale, share = bytes_each / 2, facts.unet_width / UNET_WIDTH
    width = request.width // facts.factor if request.width else facts.cells
    height = request.height // facts.factor if request.height else facts.cells
    cells = width * height
    forward = (2 if guided else 1) * FORWARD[facts.family] * share
    update = (SAVED[facts.family][checkpointing] * share) if moves else 0.0
    decoder = DECODED * facts.decoder_width / DECODER_WIDTH
    work = max(forward, update, decoder) * cells * scale
    maps: Any = 2 * words * request.steps * cells * 4
    return Estimate(weights=int(facts.weights * bytes_each / 4), work=int(work), maps=int(maps))

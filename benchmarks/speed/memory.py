"""How much memory an image takes at its highest point, on the real layer shapes, without weights.

Everything runs on torch's ``meta`` device, where tensors have sizes and no contents; a counter follows which of them
are alive. The editor's estimate before a run is made of these figures::

    t2ictl bench speed memory

What an allocator adds by fragments, and what a kernel takes for itself, is not counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import MODELS, empty_unet, flash_attention, unet_inputs

__all__ = ["LiveBytes", "decoder_peak", "denoiser_peak", "run"]

# The autoencoder of Stable Diffusion 1.x, 2.x and XL (their config.json).
AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, but for those that were there before.

    Example:
        >>> with LiveBytes() as live:
        ...     held = torch.zeros(1024, device="meta")
        ...     del held
        >>> live.peak
        4096
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._tensors: Counter[int] = Counter()  # alive, for each storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and follow what it made."""
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, Tensor):
                self._follow(each, args)
        return made

    def _follow(self, tensor: Tensor, args: Any) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        given = {each.untyped_storage()._cdata for each in args if isinstance(each, Tensor)}
        if key in given and not self._tensors[key]:
            return  # a view of something that was there before, a weight
        if not self._tensors[key]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._tensors[key] += 1
        weakref.finalize(tensor, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            self.now -= size


def denoiser_peak(name: str, rows: int = 2) -> float:
    """Count one evaluation of the denoiser.

    Args:
        name: a key of :data:`t2ictl.benchmarks.speed.models.MODELS`.
        rows: of the batch; two make one image under guidance.

    Returns:
        Bytes a row and latent cell, in float16.
    """
    unet = empty_unet(name)
    latent_BCYX, keywords = unet_inputs(unet, rows)
    time = torch.ones((), device="meta")
    return _peak(lambda: unet(latent_BCYX, time, **keywords)) / (rows * latent_BCYX[0, 0].numel())


def decoder_peak(side: int = 64) -> float:
    """Count the decoding of one image.

    Args:
        side: of the latent (cells).

    Returns:
        Bytes a latent cell, in float16.
    """
    with torch.device("meta"):
        vae = AutoencoderKL(**AUTOENCODER).half().eval()
    latent = torch.zeros(1, 4, side, side, device="meta", dtype=torch.float16)
    return _peak(lambda: vae.decode(latent)) / side**2


def _peak(run: Callable[[], Any]) -> int:
    with torch.no_grad(), flash_attention(), LiveBytes() as live:
        run()
    return live.peak


def run() -> None:
    """Print a row for each model, and two for the decoder."""
    print_table(("at its highest point, float16", "KiB a latent cell"), _rows())


def _rows() -> Iterator[tuple[str, str]]:
    for name in MODELS:
        yield f"{name}, each row of the batch", f"{denoiser_peak(name) / 1024:.1f}"
    for side in (64, 128):
        yield f"decoder, {8 * side} x {8 * side}", f"{decoder_peak(side) / 1024:.1f}"

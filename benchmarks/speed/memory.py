"""How much memory an image takes at its highest point, on the real layer shapes, without weights.

Everything runs on torch's ``meta`` device, where tensors have sizes and no contents; a counter follows which of them
are alive. The editor's estimate before a run is made of these figures::

    python -m t2ictl.benchmarks.speed.memory

What an allocator adds by fragments, and what a kernel takes for itself, is not counted.
"""

from __future__ import annotations

import argparse
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from t2ictl.benchmarks.speed.update import MODELS, _flash_attention, _inputs

__all__ = ["LiveBytes", "decoder_peak", "denoiser_peak", "main"]

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
        name: one of the models of :mod:`t2ictl.benchmarks.speed.update`.
        rows: of the batch; two make one image under guidance.

    Returns:
        Bytes a row and latent cell, in float16.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**MODELS[name]).half().eval()
    sample, keywords = _inputs(unet, rows)
    time = torch.ones((), device="meta")
    return _peak(lambda: unet(sample, time, **keywords)) / (rows * sample.shape[-1] * sample.shape[-2])


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
    with torch.no_grad(), _flash_attention(), LiveBytes() as live:
        run()
    return live.peak


def main() -> int:
    """Print the table.

    Returns:
        Exit status 0.
    """
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    for name in MODELS:
        print(f"{name}: {denoiser_peak(name) / 1024:.1f} KiB a row and latent cell, float16")
    print(f"decoder, 512 x 512: {decoder_peak() / 1024:.1f} KiB a latent cell, float16")
    print(f"decoder, 1024 x 1024: {decoder_peak(128) / 1024:.1f} KiB a latent cell, float16")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

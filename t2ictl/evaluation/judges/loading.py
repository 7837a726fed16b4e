"""Load a model of transformers for a judge, with the processor beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from t2ictl.errors import BadSetting

__all__ = ["batches", "loaded"]


def loaded(kind: Any, model: str, device: str) -> tuple[Any, Any]:
    """Load a model and its processor.

    Args:
        kind: class of transformers.
        model: folder or hub id.
        device: where to put it.

    Returns:
        The model, ready and without gradients, and the processor.

    Raises:
        BadSetting: if they cannot be loaded, or the device is not there.
    """
    import transformers

    try:
        made, processor = kind.from_pretrained(model), transformers.AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise BadSetting(
            f"The judge's model {model!r} cannot be loaded: {str(error).splitlines()[0]}",
            f"Give a folder or hub id of a {kind.__name__} with its processor.",
        ) from None
    try:
        return made.to(device).eval().requires_grad_(False), processor
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts
        raise BadSetting(
            f"The judge cannot be put on {device!r}: {str(error).splitlines()[0]}",
            "`t2ictl doctor` lists the devices; use cpu.",
        ) from None


def batches(images: Sequence[Image.Image], size: int) -> Iterator[Sequence[Image.Image]]:
    """Return images a batch at a time, in RGB."""
    for start in range(0, len(images), size):
        yield [each.convert("RGB") for each in images[start : start + size]]

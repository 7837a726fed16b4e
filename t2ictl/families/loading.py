"""Load a pipeline: the embedded model, a folder, or a model of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available

from t2ictl.errors import BadSetting

__all__ = ["EMBEDDED", "load", "model_name"]

EMBEDDED = "shapes"


def load(name: str = EMBEDDED, *, dtype: torch.dtype = torch.float32, device: str | None = None) -> Any:
    """Load a stock diffusers pipeline.

    Args:
        name: ``"shapes"`` for the embedded model, which needs no network; the path of a diffusers
            folder; or an id on the Hugging Face hub.
        dtype: precision of the weights.
        device: where to put them; None for the first CUDA device, or the CPU where there is none.

    Returns:
        The pipeline, as diffusers makes it. Nothing of this library is in it.

    Raises:
        BadSetting: if there is no such model, with the reason.

    Example:
        >>> type(load("shapes", device="cpu")).__name__
        'StableDiffusionPipeline'
    """
    source = _embedded_path() if name == EMBEDDED else Path(name)
    if source.is_dir():
        if not (source / "model_index.json").is_file():
            raise BadSetting(f"{name!r} holds no diffusers pipeline (no model_index.json).", "Give its top folder.")
        pipe = DiffusionPipeline.from_pretrained(str(source), local_files_only=True, **_options(dtype))
    elif source.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise BadSetting(f"There is no model {name!r}.", "Give 'shapes', a diffusers folder, or a hub id (owner/name).")
    else:
        pipe = _from_hub(name, dtype)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _options(dtype: torch.dtype) -> dict[str, Any]:
    """Options of ``from_pretrained``: without accelerate, weights cannot be loaded lazily, and asking warns."""
    return {"dtype": dtype, "low_cpu_mem_usage": is_accelerate_available()}


def _from_hub(name: str, dtype: torch.dtype) -> Any:
    try:
        return DiffusionPipeline.from_pretrained(name, **_options(dtype))
    except OSError as error:  # not found, no access, or no network: the hub client raises subclasses of it
        reason = str(error).strip().splitlines()[0]
        raise BadSetting(
            f"The model {name!r} is not a folder here and could not be loaded from the hub: {reason}",
            "Check the id and the network, or give the path of a downloaded folder.",
        ) from error


def _embedded_path() -> Path:
    from t2ictl.shapes import model_path

    return model_path()


def model_name(pipe: Any) -> str:
    """Return which model a pipeline was loaded from, for the settings of an image.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        ``"shapes"``, a hub id, or the name of a folder (without its place on this machine);
        empty if the pipeline was not loaded from anything.
    """
    name = str(pipe.config.get("_name_or_path") or "")
    if name and Path(name) == _embedded_path():
        return EMBEDDED
    return Path(name).name if Path(name).is_dir() else name

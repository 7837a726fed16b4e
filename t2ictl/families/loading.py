"""Load a pipeline: an embedded model, a folder, a file of weights, or a model of the hub."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available
from safetensors import safe_open

from t2ictl.errors import BadSetting, T2ictlError, shown
from t2ictl.families.devices import check_device, check_dtype
from t2ictl.families.folders import PICKLED, check_index, check_model
from t2ictl.shapes.embedded import DEFAULT, MODELS, embedded_name, installed_models, model_path

__all__ = ["load", "model_name"]

FILES = (".safetensors", *PICKLED)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
#: In the weights of Stable Diffusion XL alone: its second text encoder.
_XL = "conditioner.embedders."


def load(
    name: str | Path = DEFAULT,
    *,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    run_model_code: bool = False,
) -> Any:
    """Load a stock diffusers pipeline.

    A model may be hostile: its classes are looked at before any module is imported, code that comes with it is not run,
    and of two formats of weights the one without pickles is taken.

    Args:
        name: an embedded model, which needs no network: ``"shapes"``, or another one of
            :func:`t2ictl.shapes.installed_models`; the path of a diffusers folder, or of a ``.safetensors`` file; or
            an id on the Hugging Face hub.
        dtype: precision of the weights.
        device: where to put them; None for the first CUDA device, or the CPU where there is none.
        run_model_code: run code that comes with the model. It can do all that you can; read it first.

    Returns:
        The pipeline, as diffusers makes it. Nothing of this library is in it.

    Raises:
        BadSetting: if there is no such model, device or precision, or the model cannot be loaded; with the folder, the
            part and the reason.

    Example:
        >>> type(load("shapes", device="cpu")).__name__
        'StableDiffusionPipeline'
    """
    precision, place = check_dtype(dtype), check_device(device)
    if not isinstance(name, (str, Path)):
        raise BadSetting(f"There is no model {shown(name)}.", _choices())
    with _named_failures(str(name)):
        source = model_path(name) if isinstance(name, str) and name in MODELS else Path(name)
        if source.is_dir():
            pipe = _from_folder(source, precision, run_model_code=run_model_code)
        elif source.suffix.lower() in FILES:
            pipe = _from_file(source, precision)
        elif isinstance(name, Path) or not _HUB_ID.fullmatch(name) or ".." in name:
            raise BadSetting(f"There is no model {str(name)!r}.", _choices())
        else:
            pipe = _from_hub(name, precision, run_model_code=run_model_code)
        return pipe.to(place)


def _choices() -> str:
    there = ", ".join(map(repr, installed_models()))
    return f"Use {there}, a diffusers folder, a file, or a hub id (owner/name)."


def _options(dtype: torch.dtype) -> dict[str, Any]:
    """Options of ``from_pretrained``: without accelerate, weights cannot be loaded lazily, and asking warns."""
    return {"dtype": dtype, "low_cpu_mem_usage": is_accelerate_available()}


def _from_folder(folder: Path, dtype: torch.dtype, *, run_model_code: bool) -> Any:
    if pickled := check_model(folder, run_model_code=run_model_code):
        _warn_of_pickles(str(folder), ", ".join(pickled))
    more = {"trust_remote_code": True} if run_model_code else {}
    return DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **_options(dtype), **more)


def _from_hub(name: str, dtype: torch.dtype, *, run_model_code: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers passes the hub's client an argument that it has given up
        index = DiffusionPipeline.load_config(name)
    check_index(index, name, run_model_code=run_model_code)
    more = {"trust_remote_code": True} if run_model_code else {}
    return DiffusionPipeline.from_pretrained(name, **_options(dtype), **more)


def _from_file(path: Path, dtype: torch.dtype) -> Any:
    """A pipeline of one file; diffusers tells what the file holds by the names of its weights."""
    if not path.is_file():
        raise BadSetting(f"There is no file {str(path)!r}.", "A file of weights has to be here; none is downloaded.")
    names = ""
    if path.suffix.lower() == ".safetensors":
        with safe_open(path, "pt") as weights:
            names = "\n".join(weights.keys())
    else:
        _warn_of_pickles(str(path), "the file")
    cls = diffusers.StableDiffusionXLPipeline if _XL in names else diffusers.StableDiffusionPipeline
    return cls.from_single_file(str(path), **_options(dtype))


def _warn_of_pickles(model: str, parts: str) -> None:
    warnings.warn(
        f"The model {model!r} has pickled weights ({parts}). They are loaded without running code in them; "
        "safetensors need no such care: pipe.save_pretrained(folder) writes them.",
        stacklevel=4,
    )


@contextmanager
def _named_failures(name: str) -> Iterator[None]:
    """Name a model, its part and the remedy, whatever was raised while it was loaded."""
    try:
        yield
    except T2ictlError:
        raise
    except Exception as error:  # files of a model can be wrong in every way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        part = _part(error)
        is_hub = not os.path.exists(name) and "/" in name
        model = shown(name)
        where = f"the part {part!r} of the model {model}" if part else f"the model {model}"
        raise BadSetting(
            f"{where[0].upper()}{where[1:]} could not be loaded{' from the hub' if is_hub else ''}: "
            f"{lines[0].rstrip('.')[:300]}.",
            "Check the id and the network, or use the path of a downloaded folder."
            if is_hub
            else "Download it again, or look at docs/errors.md.",
        ) from error


def _part(error: BaseException) -> str:
    """Which part of a pipeline was being loaded: diffusers loads each by one function, which knows its name."""
    trace, part = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "load_sub_model":
            part = str(trace.tb_frame.f_locals.get("name", ""))
        trace = trace.tb_next
    return part


def model_name(pipe: Any) -> str:
    """Return which model a pipeline was loaded from, for the settings of an image.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        The name of an embedded model, a hub id, or the name of a folder (without its place on this machine);
        empty if the pipeline was not loaded from anything.
    """
    name = str(pipe.config.get("_name_or_path") or "")
    embedded = embedded_name(Path(name)) if name else None
    return embedded or (Path(name).name if os.path.isdir(name) else name)

"""What a model's folder holds, found out before anything in it is imported or unpickled.

A ``model_index.json`` names the classes of a pipeline's parts, and diffusers imports their modules; a configuration
may name code that is in the folder; old weights are pickles. Here only files are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from t2ictl.errors import BadSetting

__all__ = ["check_index", "check_model"]

#: Where classes of a pipeline may come from. Elsewhere diffusers names a pipeline's own module for them.
LIBRARIES = ("diffusers", "transformers")
OWN_MODULES = {"stable_diffusion": ("StableDiffusionSafetyChecker",)}
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
LARGEST_JSON = 8 << 20
"""Configurations have some thousand bytes; a larger one is not read."""
MOST_FILES = 10_000
_ABOUT_TOKENS = ("config.json", "special_tokens_map.json", "added_tokens.json")  # beside a tokenizer's vocabulary
_CODE = "Remove the code, or choose to run it: load(..., run_model_code=True)."


def check_model(folder: str | Path, *, within: str | Path | None = None, run_model_code: bool = False) -> list[str]:
    """Check a folder of diffusers without loading anything.

    Args:
        folder: the folder.
        within: a folder that no link in the model's may lead out of; None: links may lead anywhere.
        run_model_code: whether code in the folder, and classes of any library, may be run.

    Returns:
        The parts whose weights are pickles alone.

    Raises:
        BadSetting: with folder, part and remedy: no index, or a damaged one; classes that are not of diffusers or
            transformers; code; a part, a configuration or weights that are missing or damaged; a link that leads out.

    Example:
        >>> from t2ictl.shapes import model_path
        >>> check_model(model_path())
        []
    """
    folder = Path(folder)
    files = list(_files(folder))
    if within is not None:
        _check_links(folder, files, Path(within))
    index = _json(folder, folder / "model_index.json")
    parts = check_index(index, str(folder), run_model_code=run_model_code)
    code = next((path for path in files if path.suffix == ".py"), None)
    if code is not None and not run_model_code:
        raise BadSetting(f"The model {str(folder)!r} comes with code: {_within(folder, code)}.", _CODE)
    return [name for name in parts if _is_pickled(folder, name, run_model_code=run_model_code)]


def check_index(index: Mapping[str, Any], model: str, *, run_model_code: bool = False) -> list[str]:
    """Check which classes an index names.

    Args:
        index: what ``model_index.json`` says.
        model: the model's name or folder, for messages.
        run_model_code: whether classes of any library may be used.

    Returns:
        Names of the parts that the pipeline has.

    Raises:
        BadSetting: if the index has another form, or names a class that is not of diffusers or transformers.
    """
    kind = index.get("_class_name")
    if not run_model_code and not (isinstance(kind, str) and _is_class(kind)):
        raise BadSetting(f"The model {model!r} names {kind!r:.60} as its pipeline.", _CODE)
    parts = []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, (list, tuple)):
            continue
        if len(value) != 2 or not name.isidentifier():
            raise BadSetting(
                f"The model {model!r} has a part {name[:60]!r} of another form in its model_index.json.",
                "A part has a library and a class; download the model again.",
            )
        if value[0] is None:
            continue
        library, cls = (str(each) for each in value)
        is_known = (library in LIBRARIES and _is_class(cls)) or cls in OWN_MODULES.get(library, ())
        if not is_known and not run_model_code:
            raise BadSetting(
                f"The part {name!r} of the model {model!r} is of the class {f'{library}.{cls}'[:80]!r}.",
                "Only classes of diffusers and transformers are loaded; others by load(..., run_model_code=True).",
            )
        parts.append(name)
    return parts


def _is_class(name: str) -> bool:
    return name.isidentifier() and name[0].isupper()


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, and links, which are not followed; a bounded number."""
    count = 0
    for top, folders, names in os.walk(folder):
        for name in (*names, *(each for each in folders if os.path.islink(os.path.join(top, each)))):
            count += 1
            if count > MOST_FILES:
                raise BadSetting(f"The folder {str(folder)!r} holds over {MOST_FILES} files.", "Name a model's own.")
            yield Path(top) / name


def _check_links(folder: Path, files: list[Path], within: Path) -> None:
    top = within.resolve()
    for path in (folder, *files):
        try:
            is_inside = path.resolve().is_relative_to(top)
        except (OSError, RuntimeError):  # a link in a circle
            is_inside = False
        if not is_inside:
            raise BadSetting(
                f"The link {_within(folder, path)!r} in the model {str(folder)!r} leads out of {str(within)!r}.",
                "Copy the files into the folder.",
            )


def _within(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _json(folder: Path, path: Path) -> dict[str, Any]:
    """The JSON object in a file of the folder."""
    part = _within(folder, path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has over {LARGEST_JSON} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        raise BadSetting(
            f"The file {part!r} of the model {str(folder)!r} cannot be read: {reason[:200]}.",
            "Name the top folder of a diffusers model; one that is damaged has to be downloaded again.",
        ) from None
    if not isinstance(data, dict):
        raise BadSetting(f"The file {part!r} of the model {str(folder)!r} is no JSON object.", "Download it again.")
    return data


def _is_pickled(folder: Path, name: str, *, run_model_code: bool) -> bool:
    """Check one part, and return whether its weights are pickles alone."""
    home = folder / name
    if not home.is_dir():
        raise BadSetting(f"The part {name!r} of the model {str(folder)!r} is not there.", "Download the model again.")
    inside = sorted(path for path in home.iterdir() if path.is_file())
    for path in inside:
        if path.name.endswith("config.json") and "auto_map" in _json(folder, path) and not run_model_code:
            raise BadSetting(f"The part {name!r} of the model {str(folder)!r} names code in an auto_map.", _CODE)
    says = [path for path in inside if not (name.startswith("tokenizer") and path.name.endswith(_ABOUT_TOKENS))]
    if not says:  # transformers makes a tokenizer without words of it
        raise BadSetting(f"The part {name!r} of the model {str(folder)!r} holds nothing.", "Download the model again.")
    weights = [path for path in inside if path.suffix == ".safetensors"]
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise BadSetting(
                f"The weights {_within(folder, path)!r} of the model {str(folder)!r} are damaged: {error}.",
                "Download the file again; a small one may be a pointer of Git LFS.",
            ) from None
    return not weights and any(path.suffix in PICKLED for path in inside)

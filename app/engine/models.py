"""Models: which there are, why one cannot be used, and the one that is loaded. Only the worker loads.

The page offers folders that were found below allowed ones; it never opens a path that was typed.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import t2ictl
from t2ictl.errors import BadSetting
from t2ictl.shapes.embedded import DEFAULT, MODELS, installed_models, model_path

__all__ = ["EMBEDDED", "FoundModel", "ModelManager", "find_models"]

EMBEDDED = DEFAULT
ABOUT = "the test bench of this project"
FAMILIES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x or 2.x",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
}
#: Folders of models lie at most this far below an allowed folder; what lies deeper is not found.
DEPTH = 3
#: Folders are listed again after this long (seconds).
LOOK_AGAIN = 2.0
LARGEST_INDEX = 1_000_000  # bytes of a model_index.json; a real one has two thousand


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model that can be chosen, or one that is there and cannot.

    Args:
        name: what is shown.
        source: what :func:`t2ictl.load` takes.
        family: what kind of model it is.
        folder: where it is.
        why_not: why it cannot be used; empty if it can.
        note: what its user should know, a sentence; empty if nothing.
    """

    name: str
    source: str
    family: str
    folder: Path
    why_not: str = ""
    note: str = ""


def find_models(roots: Sequence[Path]) -> list[FoundModel]:
    """List the embedded models that are installed, and the diffusers folders below some folders.

    Args:
        roots: where to look. A link that leads out of its root is not followed.

    Returns:
        The embedded models first, then folders by name; those that cannot be used say why: they are of a kind that the
        editor does not know, are damaged, come with code or with classes of other libraries, or hold a link that leads
        out of the root.

    Example:
        >>> find_models([])[0].source
        'shapes'
    """
    found = [_embedded(name) for name in installed_models()]
    for root in roots:
        top = root.resolve()
        for index in sorted(_indices(top, DEPTH)):
            folder = index.parent.resolve()
            if folder.is_relative_to(top):
                found.append(_described(folder, top))
    return found


def _embedded(name: str) -> FoundModel:
    about = ABOUT if name == EMBEDDED else f"{ABOUT}: {MODELS[name].about}"
    why_not = "" if (kind := MODELS[name].pipeline) in FAMILIES else _unsupported(kind)
    return FoundModel(name=f"{name} (embedded)", source=name, family=about, folder=model_path(name), why_not=why_not)


def _unsupported(kind: str) -> str:
    return f"{kind} is not supported yet."


def _indices(folder: Path, depth: int) -> Iterator[Path]:
    """Every ``model_index.json``; folders of a model are not searched for further ones."""
    index = folder / "model_index.json"
    try:
        if index.is_file():
            yield index
            return
        inner = [path for path in folder.iterdir() if path.is_dir()] if depth else []
    except OSError:
        return  # not ours to read, so not ours to offer
    for path in inner:
        yield from _indices(path, depth - 1)


def _described(folder: Path, root: Path) -> FoundModel:
    name = folder.relative_to(root).as_posix() if folder != root else folder.name
    found = functools.partial(FoundModel, name=name, source=str(folder), folder=folder)
    index = folder / "model_index.json"
    try:
        if index.stat().st_size > LARGEST_INDEX:
            raise ValueError("it is too large")
        kind = str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return found(family="unknown", why_not=f"model_index.json: {error}")
    if kind not in FAMILIES:
        return found(family=kind, why_not=_unsupported(kind))
    try:
        pickled = _checked(folder, root, _state(folder))
    except BadSetting as error:
        return found(family=FAMILIES[kind], why_not=error.cause)
    note = f"Pickled weights, loaded without the code in them: {', '.join(pickled)}." if pickled else ""
    return found(family=FAMILIES[kind], note=note)


@functools.lru_cache(maxsize=256)
def _checked(folder: Path, root: Path, state: tuple[tuple[str, int, int], ...]) -> tuple[str, ...]:
    """Parts with pickled weights alone; a folder is looked through again when one of its files is another one."""
    return tuple(t2ictl.check_model(folder, within=root))


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every file of a model; a link counts by what it leads to."""
    found = []
    for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
        try:
            about = path.stat()
        except OSError:
            about = path.lstat()
        found.append((str(path), about.st_mtime_ns, about.st_size))
    return tuple(found)


class ModelManager:
    """The one model that is loaded.

    Two do not fit where one does, so the old one is let go before the new one is loaded.

    Args:
        roots: where models may lie.
        device: of torch; None for CUDA where there is one.
        dtype: name of the precision of the weights.
    """

    def __init__(self, roots: Sequence[Path] = (), device: str | None = None, dtype: str = "float32") -> None:
        self._roots, self._device, self.dtype = tuple(roots), device, dtype
        self._source: str | None = None
        self._pipe: Any = None
        self._listed: tuple[float, list[FoundModel]] = (-math.inf, [])

    @property
    def device(self) -> str | None:
        """Where models are put; None for CUDA where there is one."""
        return self._device

    @property
    def loaded(self) -> str | None:
        """Which model is loaded: its source, or None."""
        return self._source

    def models(self) -> list[FoundModel]:
        """List the models that there are now, or were a moment ago: a page asks several times at every click."""
        when, found = self._listed
        if time.monotonic() - when > LOOK_AGAIN:
            found = find_models(self._roots)
            self._listed = (time.monotonic(), found)
        return list(found)

    def check(self, source: str) -> FoundModel:
        """Find a model that was asked for.

        Args:
            source: of a found model.

        Returns:
            The model.

        Raises:
            BadSetting: if there is none below the allowed folders, or it cannot be used.
        """
        for model in self.models():
            if model.source == source:
                if model.why_not:
                    raise BadSetting(f"The model {model.name!r} cannot be used: {model.why_not}", "Choose another one.")
                return model
        raise BadSetting(
            f"There is no model {source!r} in the allowed folders.", "Start the editor with --models FOLDER above it."
        )

    def use(self, source: str) -> Any:
        """Return a model, loading it if it is not the one that is loaded. For the worker.

        Args:
            source: of a found model.

        Returns:
            The pipeline, without a progress bar of its own.

        Raises:
            BadSetting: if it may not or cannot be loaded; then none is loaded.
        """
        import torch

        if self._source != source:
            self._listed = (-math.inf, [])  # what a page saw a moment ago may be another folder now
        model = self.check(source)
        if self._source != model.source:
            self.unload()
            pipe = t2ictl.load(model.source, device=self._device, dtype=getattr(torch, self.dtype))
            pipe.set_progress_bar_config(disable=True)
            self._pipe, self._source = pipe, model.source
            # Libraries and model stay: no collection need go through their half a million objects. The one that follows
            # has nothing left to look at, after which collections come as often as for a small program.
            gc.freeze()
            gc.collect()
        return self._pipe

    def unload(self) -> None:
        """Let the model go, and give its memory back. For the worker."""
        import torch

        self._pipe = self._source = None
        gc.unfreeze()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

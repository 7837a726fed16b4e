"""ImageCache of many conditions over the same noise: in batches, and kept so that a run goes on where it was stopped.

Legend: ``B`` image, ``K`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.errors import Cancelled
from t2ictl.families.text_states import Encode, PromptEmbeds
from t2ictl.generation import Request, provenance
from t2ictl.guidance.text_objectives import TextEdit
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import Recording
from t2ictl.processors.token_flow.readings import Row, stacked
from t2ictl.session.cost import Cost
from t2ictl.session.session import controlled
from t2ictl.settings.store import Store

__all__ = ["Cell", "ImageCache", "fingerprint"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One image to make.

    Args:
        condition: name of its condition.
        row: what the denoiser gets.
        seed: of its noise, that of the first latents and that of every step.
    """

    condition: str
    row: Row
    seed: int


class _Given(Control):
    """Puts given rows in the place of the prompt's; it is there for one call."""

    name = "given_rows"
    wants_effect = False  # the rows of the prompt itself are one of the conditions
    paper = ""
    needs = frozenset({"rows"})
    has_losses = False
    needs_words = False

    def __init__(self, rows: Sequence[Row], dtype: torch.dtype) -> None:
        self._states_BKC, self._pooled_BC, self._weight_BK = stacked(rows, dtype)

    def plan(self, context: PlanContext) -> Plan:
        """Rewrite the rows of all images."""

        def rewrite(states: PromptEmbeds, encode: Encode) -> PromptEmbeds:
            device = states.embeds.device
            pooled_BC = None if self._pooled_BC is None else self._pooled_BC.to(device)
            return PromptEmbeds(embeds=self._states_BKC.to(device), pooled=pooled_BC)

        return Plan(text=TextEdit(prompts=context.prompts, rewrite=rewrite, weight=self._weight_BK))


class ImageCache:
    """Makes the images of one prompt.

    All images of a seed begin with the same noise, and a stochastic scheduler adds the same noise at every
    step: every image has a generator of its own. Batches have one size, the last one is filled up, so that no
    image depends on how many others there were.

    Args:
        pipe: the pipeline.
        prompt: its text.
        request: steps, size, guidance, negative prompt; its prompt and seed are not used.
        folder: where images are kept; None: nowhere.
        batch: images of one call.
        on_batch: gets the number of images done and of all; returns False to stop.
    """

    def __init__(
        self,
        pipe: Any,
        prompt: str,
        request: Request,
        *,
        folder: Path | None = None,
        batch: int = 8,
        on_batch: Callable[[int, int], bool | None] | None = None,
    ) -> None:
        self._pipe, self._prompt, self._batch = pipe, prompt, batch
        self._store = None if folder is None else Store(folder)
        self._request = replace(request, prompt=prompt, images_per_prompt=1)
        self._on_batch = on_batch
        self._made: dict[str, Image.Image] = {}
        self._base = _digest({"prompt": prompt, **_asked(self._request), **fingerprint(pipe)})
        self.cost, self.reused = Cost(), 0

    def of(self, cells: Sequence[Cell]) -> list[Image.Image]:
        """Make images, or take those that are there already.

        Args:
            cells: what to make, in any order; equal rows of a seed are made once.

        Returns:
            One image a cell, in their order.

        Raises:
            Cancelled: if ``on_batch`` returned False; what was made is kept.
        """
        keys = [self.key(cell) for cell in cells]
        todo = {key: cell for key, cell in zip(keys, cells, strict=True) if key not in self._made}
        for key in list(todo):
            # One that was damaged from outside is made again.
            kept = None if self._store is None else self._store.read_image(key)
            if kept is not None:
                self._made[key] = kept
                self.reused += 1
                del todo[key]
        waiting = list(todo.items())
        with _quiet(self._pipe):
            for start in range(0, len(waiting), self._batch):
                self._make(waiting[start : start + self._batch])
                done = min(start + self._batch, len(waiting))
                if self._on_batch is not None and self._on_batch(done, len(waiting)) is False:
                    raise Cancelled(f"Stopped after {done} of {len(waiting)} images.")
        return [self._made[key] for key in keys]

    def key(self, cell: Cell) -> str:
        """Name an image by all that makes it: model, settings, rows and seed; not by its condition's name."""
        digest = hashlib.sha256(f"{self._base} {cell.seed} {cell.row.unseen}".encode())
        for tensor in (cell.row.states, cell.row.pooled):
            if tensor is not None:
                digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def recorded(self, cell: Cell, recording: Recording) -> tuple[Image.Image, AttentionRecord]:
        """Make one image with the maps of its words."""
        with _quiet(self._pipe), self._session([cell], record=recording) as session:
            image = self._pipe(**self._arguments([cell])).images[0]
        self.cost.add(session.cost)
        return image, session.record

    def _make(self, part: Sequence[tuple[str, Cell]]) -> None:
        cells = [cell for _, cell in part]
        full = [*cells, *[cells[-1]] * (self._batch - len(cells))]
        with self._session(full) as session:
            images = self._pipe(**self._arguments(full)).images
        self.cost.add(session.cost)
        for (key, cell), image in zip(part, images, strict=False):
            self._made[key] = image
            if self._store is not None:
                self._store.write_image(key, image, {"schema": 1, "cell": [cell.condition, cell.seed]})

    def _session(self, cells: Sequence[Cell], record: bool | Recording = False) -> Any:
        given = _Given([cell.row for cell in cells], self._pipe.unet.dtype)
        return controlled(self._pipe, [given], record=record, parser=self._request.parser)

    def _arguments(self, cells: Sequence[Cell]) -> dict[str, Any]:
        request = replace(self._request, prompt=(self._prompt,) * len(cells))
        own = [torch.Generator("cpu").manual_seed(cell.seed) for cell in cells]
        return {**request.arguments(), "generator": own}


def fingerprint(pipe: Any) -> dict[str, Any]:
    """Identify a pipeline: class, scheduler, precision, and a sample of the denoiser's weights.

    Args:
        pipe: the pipeline.

    Returns:
        Plain JSON data.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(pipe.unet.named_parameters()):
        if parameter.is_meta:  # sequential offloading keeps it elsewhere
            continue
        sample = parameter.detach().flatten()[:8].to("cpu", torch.float32).numpy().tobytes()
        digest.update(name.encode() + sample)
    scales = [str(module.scaling) for module in pipe.unet.modules() if hasattr(module, "scaling")]
    made = provenance(pipe, "grammar")
    return {"pipeline": made["pipeline"], "weights": digest.hexdigest()[:16], "adapters": scales}


def _asked(request: Request) -> dict[str, Any]:
    names = ("negative_prompt", "steps", "width", "height", "guidance_scale")
    return {name: getattr(request, name) for name in names}


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar: one bar over all images says more."""
    had = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(**{**(had or {}), "disable": True})
    try:
        yield
    finally:
        if had is None:
            vars(pipe).pop("_progress_bar_config", None)
        else:
            pipe.set_progress_bar_config(**had)

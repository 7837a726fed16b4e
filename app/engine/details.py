"""What can be seen of an image beside itself: attention maps, losses and cost, in one file.

The worker writes the file once; a page, which is run again at every click, asks the record in it.

Legend: ``B`` image, ``T`` prompt token, ``S`` step, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from t2ictl import AttentionRecord, Generation, Prompt
from t2ictl.errors import NotRecorded

__all__ = ["CachedRecord", "Details", "Loss", "details_of"]

_PROMPTS = TypeAdapter(tuple[Prompt, ...])
#: What a record has beside its maps.
_FACTS = ("columns", "heads", "steps")

_Question = tuple[str, int, str | None, int | None]


class CachedRecord(AttentionRecord):
    """A record that is complete: each map is made once, however often a page asks for it."""

    @cached_property
    def _made(self) -> dict[_Question, Tensor]:
        return {}

    def map(self, word: str, *, image: int = 0, block: str | None = None, step: int | None = None) -> Tensor:
        question = (word, image, block, step)
        if question not in self._made:
            self._made[question] = super().map(word, image=image, block=block, step=step)
        return self._made[question]

    def nearest(self, block: str | None, step: int | None) -> dict[str, Any]:
        """Return which maps stand for those of a block and step: all layers and the mean where there are none.

        Args:
            block: a block of layers.
            step: from 0.

        Returns:
            ``block`` and ``step``, as :meth:`map` takes them.
        """
        is_there = step is not None and step < self.single_steps
        return {"block": block if block in self.maps else None, "step": step if is_there else None}

    def peak(self, words: Collection[str], block: str | None = None, step: int | None = None) -> float:
        """Return the largest value of the maps of some words: the top of a scale that they share.

        Args:
            words: the words; those that were not recorded count for nothing.
            block: as for :meth:`nearest`.
            step: as for :meth:`nearest`.

        Returns:
            The value; 0 if no word was recorded.
        """
        which = self.nearest(block, step)
        return max((float(self.map(word, **which).max()) for word in self.names() if word in words), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The losses of one pass of the inner loop.

    Args:
        step: the denoising step it belongs to, from 0.
        iteration: 0 for the first pass at this step.
        total: the weighted sum, before the move.
        terms: its parts.
        length: length of the move.
        skipped: whether nothing moved because a number was not finite.
        moved: what moved: ``"latents"`` or ``"tokens"``.
    """

    step: int
    iteration: int
    total: float
    terms: Mapping[str, float]
    length: float
    skipped: bool
    moved: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """Attention maps, losses and cost of an image.

    Args:
        record: the attention maps of this image alone, or None if no word was recorded.
        losses: one entry for each pass of the inner loop.
        cost: forward and backward passes, seconds, peak memory.
    """

    record: CachedRecord | None
    losses: tuple[Loss, ...]
    cost: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Return all of it as one compressed archive of arrays; maps in half precision."""
        texts: dict[str, Any] = {"losses": [vars(each) for each in self.losses], "cost": dict(self.cost)}
        arrays: dict[str, Any] = {}
        if self.record is not None:
            prompts = _PROMPTS.dump_python(self.record.prompts, mode="json")
            facts = {name: getattr(self.record, name) for name in _FACTS}
            texts["record"] = {"prompts": prompts, **facts, "blocks": list(self.record.maps)}
            for number, maps_SBTYX in enumerate(self.record.maps.values()):
                arrays[f"maps{number}"] = maps_SBTYX.half().cpu().numpy()
        held = io.BytesIO()
        np.savez_compressed(held, texts=np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8), **arrays)
        return held.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Details:
        """Read back what :meth:`to_bytes` wrote.

        Args:
            content: the archive.

        Returns:
            The details.

        Raises:
            NotRecorded: if it is damaged.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as held:
                texts = json.loads(held["texts"].tobytes())
                facts = texts.pop("record", None)
                record = None if facts is None else _record(facts, held)
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise NotRecorded(f"The maps cannot be read: {error}.", "Generate the image again.") from error
        return cls(record=record, losses=tuple(Loss(**each) for each in texts["losses"]), cost=texts["cost"])


def _record(facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> CachedRecord:
    return CachedRecord(
        prompts=_PROMPTS.validate_python(facts["prompts"]),
        columns=tuple(facts["columns"]),
        heads=facts["heads"],
        maps={name: torch.from_numpy(arrays[f"maps{number}"]) for number, name in enumerate(facts["blocks"])},
        steps=facts["steps"],
    )


def details_of(made: Generation, image: int = 0) -> Details:
    """Collect what pages show of a generation.

    Args:
        made: the generation.
        image: which of its images.

    Returns:
        Its details.
    """
    losses = [
        Loss(
            step=each.step.index,
            iteration=each.iteration,
            total=float(each.total[image]),
            terms={name: float(value[image]) for name, value in each.terms.items()},
            length=float(each.length[image]),
            skipped=bool(each.skipped[image]),
            moved=each.moved,
        )
        for each in made.trace
    ]
    record = None
    if made.record is not None and made.record.names(image):
        record = CachedRecord(
            prompts=made.record.prompts[image : image + 1],
            maps={name: maps_SBTYX[:, image : image + 1] for name, maps_SBTYX in made.record.maps.items()},
            **{name: getattr(made.record, name) for name in _FACTS},
        )
    return Details(record=record, losses=tuple(losses), cost=made.cost.to_dict())

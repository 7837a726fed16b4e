"""What can be seen of an image beside itself: word maps, losses and cost, as plain arrays in one file.

A page is run again at every click and may not hold tensors; so the worker turns a record into this once.

Legend: ``N`` word, ``S`` step, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t2ictl import AttentionRecord, Generation
from t2ictl.errors import NotRecorded

__all__ = ["ALL", "Details", "Loss", "Maps", "Ranked", "details_of"]

#: Name of the mean over all layers.
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A word at a place of the image.

    Args:
        word: the word.
        mass: share of the place's attention that goes to it, in [0, 1].
        lift: that share over the word's mean over the image.
    """

    word: str
    mass: float
    lift: float


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The maps of an image's words.

    Args:
        words: in the order of the prompt.
        merged: words that a control merged, each with the phrase whose map it shows.
        by_place: for each group of layers ``maps_NSYX``; index 0 along ``S`` is the mean over steps. The first group is
            the mean over all layers.
    """

    words: tuple[str, ...]
    by_place: Mapping[str, np.ndarray]
    merged: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps there are single maps of; 0 if there is only the mean."""
        return int(self.by_place[ALL].shape[1]) - 1

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the groups of layers, the mean over all first."""
        return tuple(self.by_place)

    def map(self, word: str, place: str = ALL, step: int | None = None) -> np.ndarray:
        """Give the map of a word.

        Args:
            word: one of ``words``.
            place: one of ``places``.
            step: from 0; None for the mean over all.

        Returns:
            ``map_YX``, float32: shares of attention in [0, 1].

        Raises:
            NotRecorded: if there is no such word, place or step.
        """
        if word not in self.words or place not in self.by_place:
            raise NotRecorded(f"There is no map of {word!r} at {place!r}.", f"Words: {', '.join(self.words)}.")
        return self._all(place, step)[self.words.index(word)]

    def _all(self, place: str, step: int | None) -> np.ndarray:
        if step is not None and not 0 <= step < self.steps:
            raise NotRecorded(f"There is no step {step}.", f"{self.steps} were recorded.")
        maps_NYX = self.by_place[place][:, 0 if step is None else step + 1]
        return np.asarray(maps_NYX, dtype=np.float32)

    def peaks(self, place: str = ALL, step: int | None = None) -> dict[str, float]:
        """Give the largest value of each word's map.

        Args:
            place: one of ``places``.
            step: from 0; None for the mean over all.

        Returns:
            The peak by word; the largest of them is the top of the scale that all words share.
        """
        maps_NYX = self._all(place, step)
        return {word: float(map_YX.max()) for word, map_YX in zip(self.words, maps_NYX, strict=True)}

    def at(self, x: float, y: float, place: str = ALL, step: int | None = None) -> tuple[Ranked, ...]:
        """Point at a place of the image and get its words, the one that acts there most first.

        Args:
            x: from the left edge, fraction of the width, in [0, 1].
            y: from the upper edge, fraction of the height, in [0, 1].
            place: one of ``places``.
            step: from 0; None for the mean over all.

        Returns:
            All words by falling mass.

        Raises:
            NotRecorded: if the place lies outside of the image.
        """
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise NotRecorded(f"The place ({x:g}, {y:g}) is outside of the image.", "Point inside of it.")
        maps_NYX = self._all(place, step)
        height, width = maps_NYX.shape[1:]
        row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
        found = []
        for word, map_YX in zip(self.words, maps_NYX, strict=True):
            mass, mean = float(map_YX[row, column]), float(map_YX.mean())
            found.append(Ranked(word=word, mass=mass, lift=mass / mean if mean > 0 else 0.0))
        return tuple(sorted(found, key=lambda each: -each.mass))

    def overlap(self, place: str = ALL, step: int | None = None) -> np.ndarray:
        """Say how much the maps of each two words share places, whatever attention each has in all.

        ``sum(min(a, b))`` of maps that sum to 1: 1 for the same places, 0 for none in common.

        Args:
            place: one of ``places``.
            step: from 0; None for the mean over all.

        Returns:
            ``overlap_NN``, symmetric, 1 on the diagonal.
        """
        maps_NP = self._all(place, step).reshape(len(self.words), -1).astype(np.float64)
        sums_N = maps_NP.sum(axis=1, keepdims=True)
        shares_NP = np.divide(maps_NP, sums_N, out=np.full_like(maps_NP, 1 / maps_NP.shape[1]), where=sums_N > 0)
        return np.stack([np.minimum(row_P, shares_NP).sum(axis=1) for row_P in shares_NP])


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
    """Maps, losses and cost of an image.

    Args:
        maps: the word maps, or None if nothing was recorded.
        losses: one entry for each pass of the inner loop.
        cost: forward and backward passes, seconds, peak memory.
    """

    maps: Maps | None
    losses: tuple[Loss, ...]
    cost: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Write all of it as one compressed archive of arrays; maps in half precision."""
        maps = self.maps or Maps(words=(), by_place={})
        texts = {
            "words": maps.words,
            "merged": dict(maps.merged),
            "places": list(maps.by_place),
            "losses": [vars(each) for each in self.losses],
            "cost": dict(self.cost),
        }
        arrays: dict[str, Any] = {
            f"maps{number}": value.astype(np.float16) for number, value in enumerate(maps.by_place.values())
        }
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
                by_place = {name: held[f"maps{number}"] for number, name in enumerate(texts["places"])}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise NotRecorded(f"The maps cannot be read: {error}.", "Generate the image again.") from error
        maps = Maps(words=tuple(texts["words"]), by_place=by_place, merged=texts["merged"]) if by_place else None
        return cls(maps=maps, losses=tuple(Loss(**each) for each in texts["losses"]), cost=texts["cost"])


def details_of(made: Generation, image: int = 0) -> Details:
    """Take from a generation what pages show.

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
    return Details(
        maps=None if made.record is None else _maps(made.record, image), losses=tuple(losses), cost=made.cost.to_dict()
    )


def _maps(record: AttentionRecord, image: int) -> Maps | None:
    words = record.names(image)
    if not words:
        return None
    prompt = record.prompts[image]
    merged = {word: span.merged for word in words if (span := prompt.find(word)).merged}
    places: dict[str, str | None] = {ALL: None, **{name: name for name in record.maps}}
    by_place = {
        name: np.stack([_with_mean(record.kept(word, image=image, place=place).numpy()) for word in words])
        for name, place in places.items()
    }
    return Maps(words=tuple(words), by_place=by_place, merged=merged)


def _with_mean(maps_SYX: np.ndarray) -> np.ndarray:
    """The mean over steps, and the steps if more than that was kept."""
    mean_1YX = maps_SYX.mean(axis=0, keepdims=True)
    return np.concatenate([mean_1YX, maps_SYX]) if len(maps_SYX) > 1 else mean_1YX

"""What a story shows, read off its images exactly, and how well its subjects stay the same.

A story has a portrait of each subject and some scenes that name all of them, on the embedded model. Subjects are told
apart by their shape; color, texture and size are left open by every prompt, so a subject is the same if it has those of
its portrait. Readings are plain data that a run stores; all measures follow from them, so that none needs a new run.

A subject whose portrait does not show it is ``unclear``: it is left out of the measures of identity, and counted. A
subject that is missing from a scene is not the same there, nor swapped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from t2ictl.shapes import Found, expect, find_objects, judge

__all__ = [
    "MEASURES",
    "Appearance",
    "Outcome",
    "SceneReading",
    "StoryReading",
    "consistency",
    "outcomes",
    "read_portrait",
    "read_scene",
    "story_measures",
]

ImageField = Image.Image | np.ndarray

#: What :func:`story_measures` gives, and how a table calls it.
MEASURES = {
    "same": "same (color, texture)",
    "same_color": "same color",
    "same_texture": "same texture",
    "same_size": "same size",
    "same_there": "same, of those there",
    "color_there": "same color, of those there",
    "swap": "swap",
    "missing": "missing",
    "broken": "missing, malformed one there",
    "fused": "fused",
    "extra": "extra",
    "pairs": "color alike in scene pairs",
    "pairs_there": "the same, of those there",
    "unclear": "unclear portraits",
}


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """What every prompt leaves open, as one image shows it.

    Args:
        color: one of the colors of the world.
        texture: one of its textures.
        size: one of its sizes.
    """

    color: str
    texture: str
    size: str


@dataclass(frozen=True, kw_only=True)
class SceneReading:
    """What one scene shows.

    Args:
        subjects: each subject's appearance, in the order of the story; None where it is missing.
        failure: the judge's name of what is wrong, or None.
        extra: objects above the number that the prompt names; 0 if there are not more.
        broken: for each subject, whether it is missing, and a malformed object of its shape is there: one of two
            colors, mostly.
    """

    subjects: tuple[Appearance | None, ...]
    failure: str | None
    extra: int
    broken: tuple[bool, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoryReading:
    """What all images of a story show.

    Args:
        portraits: each subject's appearance in its portrait; None where that is unclear.
        scenes: one reading a scene.
    """

    portraits: tuple[Appearance | None, ...]
    scenes: tuple[SceneReading, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the reading as plain JSON data."""
        return {
            "portraits": [_plain(each) for each in self.portraits],
            "scenes": [
                {
                    "subjects": [_plain(each) for each in scene.subjects],
                    "failure": scene.failure,
                    "extra": scene.extra,
                    "broken": list(scene.broken),
                }
                for scene in self.scenes
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StoryReading:
        """Read it back."""
        scenes = tuple(
            SceneReading(
                subjects=_appearances(scene["subjects"]),
                failure=scene["failure"],
                extra=scene["extra"],
                broken=tuple(scene["broken"]),
            )
            for scene in data["scenes"]
        )
        return cls(portraits=_appearances(data["portraits"]), scenes=scenes)


def _plain(seen: Appearance | None) -> list[str] | None:
    return None if seen is None else [seen.color, seen.texture, seen.size]


def _appearances(data: Sequence[Sequence[str] | None]) -> tuple[Appearance | None, ...]:
    return tuple(None if each is None else Appearance(color=each[0], texture=each[1], size=each[2]) for each in data)


def _appearance(found: Found) -> Appearance:
    return Appearance(color=found.color, texture=found.texture, size=found.size)


def read_portrait(image: ImageField, shape: str) -> Appearance | None:
    """Read a portrait: it has to show one well-formed object of the shape, and nothing else.

    Args:
        image: the image.
        shape: the subject.

    Returns:
        What the subject looks like; None if the portrait is unclear.

    Example:
        >>> read_portrait(np.full((64, 64, 3), 238, np.uint8), "star") is None
        True
    """
    found = find_objects(image)
    is_clear = len(found) == 1 and found[0].shape == shape and found[0].is_well_formed
    return _appearance(found[0]) if is_clear else None


def read_scene(image: ImageField, prompt: str, shapes: Sequence[str]) -> SceneReading:
    """Read a scene.

    Args:
        image: the image.
        prompt: its prompt, in the closed grammar.
        shapes: the subjects, in the order of the story.

    Returns:
        The reading. Of several well-formed objects of one shape the largest is the subject; the others are extra.

    Raises:
        BadSetting: if the prompt is outside of the grammar.

    Example:
        >>> read_scene(np.full((64, 64, 3), 238, np.uint8), "a star and a ring", ("ring", "star")).failure
        'missing'
    """
    verdict = judge(image, prompt)
    largest: dict[str, Appearance] = {}
    for found in verdict.found:  # largest first
        if found.is_well_formed:
            largest.setdefault(found.shape, _appearance(found))
    shown = {found.shape for found in verdict.found}
    return SceneReading(
        subjects=tuple(largest.get(shape) for shape in shapes),
        failure=verdict.failure,
        extra=max(0, len(verdict.found) - len(expect(prompt).objects)),
        broken=tuple(shape in shown and shape not in largest for shape in shapes),
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One subject in one scene.

    Args:
        subject: number of the subject.
        scene: number of the scene.
        missing: the scene has no well-formed object of its shape.
        unclear: its portrait does not show it; all that follows is then None.
        color: it has the color of its portrait.
        texture: the same of the texture.
        size: the same of the size.
        swap: it does not have the color of its own portrait, but that of another subject's.
    """

    subject: int
    scene: int
    missing: bool
    unclear: bool
    color: bool | None = None
    texture: bool | None = None
    size: bool | None = None
    swap: bool | None = None

    @property
    def same(self) -> bool | None:
        """Whether it has color and texture of its portrait."""
        return None if self.unclear else bool(self.color and self.texture)


def outcomes(reading: StoryReading) -> tuple[Outcome, ...]:
    """Compare every subject of every scene with its portrait.

    Args:
        reading: of a story.

    Returns:
        One outcome a scene and subject.

    Example:
        >>> red, blue = (Appearance(color=color, texture="plain", size="small") for color in ("red", "blue"))
        >>> scene = SceneReading(subjects=(blue, None), failure="missing", extra=0)
        >>> [each.swap for each in outcomes(StoryReading(portraits=(red, blue), scenes=(scene,)))]
        [True, False]
    """
    found = []
    for number, scene in enumerate(reading.scenes):
        for subject, (own, seen) in enumerate(zip(reading.portraits, scene.subjects, strict=True)):
            others = [each for place, each in enumerate(reading.portraits) if place != subject and each is not None]
            found.append(_outcome(subject, number, own, seen, {each.color for each in others}))
    return tuple(found)


def _outcome(subject: int, scene: int, own: Appearance | None, seen: Appearance | None, others: set[str]) -> Outcome:
    if own is None:
        return Outcome(subject=subject, scene=scene, missing=seen is None, unclear=True)
    alike = {
        field: seen is not None and getattr(seen, field) == getattr(own, field)
        for field in ("color", "texture", "size")
    }
    swap = seen is not None and not alike["color"] and seen.color in others
    return Outcome(subject=subject, scene=scene, missing=seen is None, unclear=False, swap=swap, **alike)


def consistency(reading: StoryReading, *, only_there: bool = False) -> float:
    """Return the share of pairs of scenes in which a subject has the same color, whatever its portrait.

    Args:
        reading: of a story.
        only_there: leave out pairs in one of which the subject is missing; otherwise these are not alike.

    Returns:
        The mean over all pairs and subjects; NaN if there is none.

    Example:
        >>> red, blue = (Appearance(color=color, texture="plain", size="small") for color in ("red", "blue"))
        >>> scenes = [SceneReading(subjects=(each,), failure=None, extra=0) for each in (red, blue, blue)]
        >>> round(consistency(StoryReading(portraits=(red,), scenes=tuple(scenes))), 2)
        0.33
    """
    alike = []
    for one, other in itertools.combinations(reading.scenes, 2):
        for first, second in zip(one.subjects, other.subjects, strict=True):
            if first is not None and second is not None:
                alike.append(first.color == second.color)
            elif not only_there:
                alike.append(False)
    return _mean(alike)


def _mean(values: Sequence[bool | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def story_measures(reading: StoryReading) -> dict[str, float]:
    """Return all measures of a story: shares of its subjects in scenes, of its scenes, or of its portraits.

    Args:
        reading: of a story.

    Returns:
        The share for each of :data:`MEASURES`; NaN where nothing takes part.

    Example:
        >>> red = Appearance(color="red", texture="plain", size="small")
        >>> scene = SceneReading(subjects=(red, None), failure="fused", extra=0)
        >>> measures = story_measures(StoryReading(portraits=(red, red), scenes=(scene,)))
        >>> measures["same"], measures["same_there"], measures["fused"]
        (0.5, 1.0, 1.0)
    """
    every = outcomes(reading)
    there = [each for each in every if not each.missing]
    return {
        "same": _mean([each.same for each in every]),
        "same_color": _mean([each.color for each in every]),
        "same_texture": _mean([each.texture for each in every]),
        "same_size": _mean([each.size for each in every]),
        "same_there": _mean([each.same for each in there]),
        "color_there": _mean([each.color for each in there]),
        "swap": _mean([each.swap for each in every]),
        "missing": _mean([each.missing for each in every]),
        "broken": _mean([each for scene in reading.scenes for each in scene.broken]),
        "fused": _mean([scene.failure == "fused" for scene in reading.scenes]),
        "extra": _mean([scene.extra > 0 for scene in reading.scenes]),
        "pairs": consistency(reading),
        "pairs_there": consistency(reading, only_there=True),
        "unclear": _mean([each is None for each in reading.portraits]),
    }

"""Scenes of a story: prompts that name its subjects, and where these are. All that can be wrong is said before work.

Legend: ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from t2ictl.controls.layouts import MASK_CELLS, Mask, Region, opened_mask
from t2ictl.errors import BadSetting, ShapeMismatch
from t2ictl.maps.masks import box_mask
from t2ictl.processors.isolation_reposition.subjects import Subject, named_spans, subject_spans
from t2ictl.prompts.prompt import Prompt
from t2ictl.settings.fields import setting, settings_class

__all__ = ["Scene", "check_story"]

Box = tuple[float, float, float, float]
Size = tuple[int, int]


def _sized(value: Any) -> Any:
    """Read a mask (file, image, array, nested lists) together with its size; its own JSON form stays as it is."""
    if isinstance(value, (list, tuple)) and len(value) == 2 and np.ndim(value[0]) == 1 and np.ndim(value[1]) == 2:
        return value
    value = opened_mask(value)
    shape = np.shape(value)
    if len(shape) != 2:
        raise BadSetting(f"A mask of shape {shape} cannot be used.", "Give rows and columns.")
    return shape, value


SizedMask = Annotated[tuple[Size, Mask], BeforeValidator(_sized)]


@settings_class
class Scene:
    """One image of a story.

    Args:
        prompt: it names its subjects.
        subjects: names of those who are in it; empty for all that the prompt names.
        boxes: where some of them are, by name: left, top, right and bottom edge as fractions.
        masks: where others are, by name: image file, image, array or nested list of the size of the image, above
            one half inside. A subject with neither is found.
        seed: of its noise; None for one that follows from the story's.

    Raises:
        BadSetting: without a prompt, or if a subject has a box and a mask.

    Example:
        >>> Scene(prompt="a cat and a dog", boxes={"cat": (0, 0, 0.5, 1)}).region("cat").box
        (0.0, 0.0, 0.5, 1.0)
    """

    prompt: str = setting(default="", help="it names its subjects")
    subjects: tuple[str, ...] = setting(default=(), help="who is in it; empty: all that the prompt names")
    boxes: dict[str, Box] = setting(default={}, help="where they are: x0, y0, x1, y1 (fractions) by name")
    masks: dict[str, SizedMask] = setting(default={}, help="where they are: mask of the image's size by name")
    seed: int | None = setting(default=None, help="seed of its noise; empty: follows from the story's", low=0)

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise BadSetting("A scene has no prompt.", "Say what the image shall show.")
        both = sorted({*self.boxes} & {*self.masks})
        if both:
            raise BadSetting(f"In {self.prompt!r} {both[0]!r} has a box and a mask.", "Give one of them.")

    def region(self, name: str) -> Region | None:
        """Return the region of a subject, or None if there is none.

        Args:
            name: the subject.

        Returns:
            The region.
        """
        if name in self.boxes:
            return Region(word=name, box=self.boxes[name])
        return Region(word=name, mask=self.masks[name][1]) if name in self.masks else None


def check_story(
    subjects: Sequence[Subject], scenes: Sequence[Scene], size: Size, parse: Callable[[str], Prompt]
) -> tuple[tuple[str, ...], ...]:
    """Find out who is in each scene, and refuse what cannot be told.

    Args:
        subjects: of the story.
        scenes: of the story.
        size: height and width of the images (pixels).
        parse: reads a prompt as the pipeline does.

    Returns:
        Names of the subjects of each scene.

    Raises:
        BadSetting: without subjects or scenes; if two subjects share name or prompt; if a scene names a subject that
            the story has not, or none; if a box lies outside of the image, or two regions overlap.
        SpanNotFound: if a subject is not in the prompt of its portrait, or of a scene that it is said to be in.
        ShapeMismatch: if a mask has not the size of the image.
    """
    if not subjects or not scenes:
        raise BadSetting(f"The story has no {'scenes' if subjects else 'subjects'}.", "Give at least one.")
    names = [subject.name for subject in subjects]
    portraits = {subject.prompt.strip(): subject.name for subject in subjects}
    if len({*names}) < len(names) or len(portraits) < len(names):
        raise BadSetting(f"Two of the subjects {names} have the same name, or the same prompt.", "Tell them apart.")
    for subject in subjects:
        parse(subject.prompt).find(subject.name)
    return tuple(
        _check_scene(scene, f"Scene {number} ({scene.prompt!r})", names, portraits, size, parse(scene.prompt))
        for number, scene in enumerate(scenes, start=1)
    )


def _check_scene(
    scene: Scene, title: str, names: Sequence[str], portraits: dict[str, str], size: Size, prompt: Prompt
) -> tuple[str, ...]:
    if scene.prompt.strip() in portraits:
        owner = portraits[scene.prompt.strip()]
        raise BadSetting(f"{title} has the prompt of the portrait of {owner!r}.", "Word one of them another way.")
    unknown = [name for name in (*scene.subjects, *scene.boxes, *scene.masks) if name not in names]
    if unknown:
        raise BadSetting(f"{title} names the subject {unknown[0]!r}, which the story has not.", f"It has: {names}.")
    there = scene.subjects or tuple(named_spans(prompt, names))
    if not there:
        raise BadSetting(f"{title} names no subject of the story.", f"Put one of {names} into its prompt.")
    subject_spans(prompt, there, names)
    strange = [name for name in (*scene.boxes, *scene.masks) if name not in there]
    if strange:
        raise BadSetting(f"{title} gives {strange[0]!r} a place, and it is not in it.", f"In it are: {list(there)}.")
    _check_places(scene, title, size)
    return tuple(there)


def _check_places(scene: Scene, title: str, size: Size) -> None:
    for name, box in scene.boxes.items():
        try:
            box_mask(box, 1, 1)
        except BadSetting as error:
            raise BadSetting(f"{title}, {name!r}: {error.cause}", error.remedy) from None
    for name, (found, _) in scene.masks.items():
        if tuple(found) != tuple(size):
            raise ShapeMismatch(
                f"{title}: the mask of {name!r} is {found[1]} x {found[0]}, the image {size[1]} x {size[0]}.",
                "Give a mask of the size of the image (pixels).",
            )
    for one, other in itertools.combinations([*scene.boxes, *scene.masks], 2):
        if _overlap(scene, one, other):
            raise BadSetting(f"{title}: the regions of {one!r} and {other!r} overlap.", "Move them apart.")


def _overlap(scene: Scene, one: str, other: str) -> bool:
    """Boxes are compared exactly, a mask at the cells that it is kept at."""
    if one in scene.boxes and other in scene.boxes:
        (left, top, right, bottom), (west, north, east, south) = scene.boxes[one], scene.boxes[other]
        return max(left, west) < min(right, east) and max(top, north) < min(bottom, south)
    first, second = (scene.region(name) for name in (one, other))
    assert first is not None and second is not None
    cells_YX, others_YX = (region.cells(MASK_CELLS, MASK_CELLS) for region in (first, second))
    return bool((cells_YX & others_YX).any())

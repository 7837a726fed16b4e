"""Arms of a story run: ways to make all images of a story.

An arm is any function of a pipeline, a story, a number of steps and a guidance that gives the images: one call of the
pipeline under controls (:class:`ControlledArm`), or ``t2ictl.story`` (:class:`StoryArm`). What an arm
did to a story is kept with its ``settings``, where it has such, so that a changed arm does not go on in an old folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

import t2ictl
from t2ictl import Control, Scene, Subject, controlled
from t2ictl.benchmarks.studies.stories.key_gather import KeyGather
from t2ictl.benchmarks.studies.stories.suite import Story
from t2ictl.errors import BadSetting
from t2ictl.processors.isolation_reposition.control import IsolationReposition
from t2ictl.settings.yaml_files import read_yaml

__all__ = [
    "ARMS",
    "Arm",
    "ControlledArm",
    "SpelledArm",
    "StoryArm",
    "StoryImages",
    "arm_settings",
    "arms_of",
    "noise",
    "story_subjects",
]


@dataclass(frozen=True, kw_only=True)
class StoryImages:
    """The images of one story.

    Args:
        portraits: one a subject.
        scenes: one a scene.
    """

    portraits: tuple[Image.Image, ...]
    scenes: tuple[Image.Image, ...]


class Arm(Protocol):
    """A way to make the images of a story."""

    def __call__(self, pipe: Any, story: Story, steps: int, guidance: float) -> StoryImages:
        """Make all images from the story's own noise."""


def noise(story: Story) -> list[torch.Generator]:
    """Return the generators of a story's images, portraits first: on the CPU, so the noise is that of any device.

    Args:
        story: the story.

    Returns:
        One generator an image, with the story's seeds.
    """
    return [torch.Generator("cpu").manual_seed(seed) for seed in story.seeds]


def story_subjects(story: Story) -> tuple[Subject, ...]:
    """Return the subjects of a story as controls want them: where they are is learned from their words.

    Args:
        story: the story.

    Returns:
        One subject a portrait.
    """
    return tuple(
        Subject(name=name, prompt=prompt) for name, prompt in zip(story.subjects, story.portraits, strict=True)
    )


@dataclass(frozen=True)
class ControlledArm:
    """One call of the pipeline for the whole story, portraits and scenes in one batch.

    Args:
        controls: gives the controls of a story.
        settings: what they are, as plain JSON data.
    """

    controls: Callable[[Story], tuple[Control, ...]]
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, pipe: Any, story: Story, steps: int, guidance: float) -> StoryImages:
        """Make the images."""
        call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": noise(story)}
        with controlled(pipe, list(self.controls(story))):
            images = pipe(list(story.prompts), **t2ictl.own_arguments(pipe), **call).images
        count = len(story.portraits)
        return StoryImages(portraits=tuple(images[:count]), scenes=tuple(images[count:]))


@dataclass(frozen=True)
class StoryArm:
    """The method, by ``t2ictl.story``.

    Args:
        fields: its settings, as plain JSON data.
        options: of the story: how subjects are found.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What is kept with each story."""
        return {"control": IsolationReposition.name, **self.fields, **self.options}

    def __call__(self, pipe: Any, story: Story, steps: int, guidance: float) -> StoryImages:
        """Make the images from the story's own noise."""
        scenes = [
            Scene(prompt=prompt, seed=seed)
            for prompt, seed in zip(story.scenes, story.seeds[len(story.subjects) :], strict=True)
        ]
        made = t2ictl.story(
            pipe,
            story_subjects(story),
            scenes,
            control=IsolationReposition(**self.fields),
            **self.options,
            seed=story.seeds[0],
            steps=steps,
            guidance_scale=guidance,
        )
        portraits = tuple(made.portraits[name] for name in story.subjects)
        return StoryImages(portraits=portraits, scenes=tuple(made.scenes))


@dataclass(frozen=True)
class SpelledArm:
    """The plain model, told in every scene what the portraits' prompts say: what one can do without any control."""

    settings: dict[str, Any] = field(default_factory=lambda: {"in_full": True})

    def __call__(self, pipe: Any, story: Story, steps: int, guidance: float) -> StoryImages:
        """Make the images."""
        phrases = dict(zip(story.subjects, story.portraits, strict=True))
        scenes = tuple(
            re.sub("|".join(rf"\ba {name}\b" for name in phrases), lambda found: phrases[found[0][2:]], scene)
            for scene in story.scenes
        )
        return ControlledArm(lambda _: ())(pipe, replace(story, scenes=scenes), steps, guidance)


def _gather(story: Story) -> tuple[Control, ...]:
    return (KeyGather(story_subjects(story)),)


REHEARSED = {"places": "rehearsal"}
#: Arms by label. ``isolation`` keeps subjects apart and reads no portrait; ``resample`` is all of the published method;
#: ``...-untold`` leaves out its second half, the words of the portrait in cross-attention. ``tuned`` is the best of
#: those that were tried on tuning stories, ``spliced`` the one that left most subjects there. ``read-only`` is no
#: method but a question: subjects read their portrait and next to nothing else, at every self-attention and step.
ARMS: dict[str, Arm] = {
    "plain": ControlledArm(lambda story: ()),
    "in_full": SpelledArm(),
    "isolation": StoryArm({"reposition": "off", "cross": 0.0}),
    "resample": StoryArm(),
    "resample-untold": StoryArm({"cross": 0.0}),
    "resample-rehearsed": StoryArm(options=REHEARSED),
    "latent": StoryArm({"reposition": "latent"}, REHEARSED),
    "latent-untold": StoryArm({"reposition": "latent", "cross": 0.0}, REHEARSED),
    "read-only": StoryArm({"ref_layers": ["self"], "ref_dropout": 0.0, "ref_strength": 10.0, "cross": 0.0}),
    "spliced": StoryArm({"reposition": "off", "isolation": 0.0, "subject_text": "inserted", "cross": 1.0}),
    "tuned": StoryArm({"reposition": "off", "isolation": 0.5, "subject_text": "in_full", "cross": 1.0}),
    "gather": ControlledArm(_gather, {"control": KeyGather.name, "dropout": 0.5, "memory": 0.5, "first": 1}),
}


def arms_of(path: Path) -> dict[str, Arm]:
    """Read arms from a YAML file, for a search of settings.

    Args:
        path: a mapping from labels to ``{control: fields of the method, options: of the story}``.

    Returns:
        Arms by label.

    Raises:
        BadSetting: if the file is no such mapping, or a label is that of an arm that is there already.
    """
    data = read_yaml(path, "file of arms")
    parts = {"control", "options"}
    if not isinstance(data, dict) or not all(isinstance(each, dict) and not {*each} - parts for each in data.values()):
        raise BadSetting(f"{path.name} holds no arms.", "Write label: {control: {...}, options: {...}}.")
    taken = sorted({*data} & {*ARMS})
    if taken:
        raise BadSetting(f"The arm {taken[0]!r} is there already.", "Give it another label.")
    return {str(label): StoryArm(each.get("control") or {}, each.get("options") or {}) for label, each in data.items()}


def arm_settings(arm: Arm) -> dict[str, Any]:
    """Return what is kept of an arm with each of its stories.

    Args:
        arm: any arm.

    Returns:
        Its ``settings``; empty where it has none.
    """
    return dict(getattr(arm, "settings", {}))

"""What makes the images of a story: calls of the pipeline, one after the other, and what they tell each other."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.layouts import Region
from t2ictl.controls.registry import control_to_dict
from t2ictl.errors import BadSetting, Cancelled
from t2ictl.generation import provenance
from t2ictl.processors.isolation_reposition.control import IsolationReposition
from t2ictl.processors.isolation_reposition.reference_bank import ReferenceBank
from t2ictl.processors.isolation_reposition.story.locator import SubjectLocator
from t2ictl.processors.isolation_reposition.story.result import Story, StoryImage
from t2ictl.processors.isolation_reposition.story.settings import StorySettings
from t2ictl.processors.isolation_reposition.story_context import StoryContext
from t2ictl.processors.isolation_reposition.subjects import Subject
from t2ictl.session.cost import Cost
from t2ictl.session.session import controlled
from t2ictl.settings.images import open_image

__all__ = ["Detector", "StoryGenerator"]

#: Gives for an image and the names in it where each is: a box (fractions), a mask, or None if it was not found.
Detector = Callable[[Image.Image, Sequence[str]], Mapping[str, Any]]


class _Within(Control):
    """The method in one of the calls of a story."""

    needs = IsolationReposition.needs
    name = IsolationReposition.name
    paper = IsolationReposition.paper
    has_losses = False

    def __init__(self, control: IsolationReposition, story_context: StoryContext) -> None:
        self._control, self._telling = control, story_context

    def plan(self, context: PlanContext) -> Plan:
        """The plan of the method, which knows of the other calls."""
        return self._control.plan_within(context, self._telling)


@dataclass
class StoryGenerator:
    """Makes the images of one story.

    Args:
        pipe: the pipeline.
        wanted: the story.
        method: settings of the method.
        others: further controls.
        detector: finds subjects in images, or None.
        subjects_by_scene: names of the subjects of each scene.
        on_image: gets each image as soon as it is made.
        finished: images of an earlier run; those of this very story are not made again.
    """

    pipe: Any
    wanted: StorySettings
    method: IsolationReposition
    others: tuple[Control, ...]
    detector: Detector | None
    subjects_by_scene: tuple[tuple[str, ...], ...]
    on_image: Callable[[StoryImage], Any] | None = None
    finished: Sequence[StoryImage] = ()
    cost: Cost = field(default_factory=Cost)
    generations: dict[str, float] = field(default_factory=dict)
    portraits: dict[str, Image.Image] = field(default_factory=dict)
    places: dict[str, dict[str, Region]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = {
            "story": {**self.wanted.to_dict(), "control": control_to_dict(self.method)},
            "controls": [control_to_dict(each) for each in self.others],
            **provenance(self.pipe, self.wanted.parser),
        }
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as it is read back
        self._there = {each.name: each for each in self.finished if each.belongs_to(self.settings)}
        self.places |= {name: dict(each.places) for name, each in self._there.items()}

    def tell(self) -> Story:
        """Make all images that are not there yet."""
        is_latent = self.method.reposition == "latent"
        subjects = self._pictured() if is_latent else self.wanted.subjects
        regions = self._regions(is_latent)
        made = self._composed(subjects, regions) if is_latent else self._read(regions)
        made |= {number: self._there[f"scene-{number + 1}"].image for number in self._scenes_there}
        for subject in self.wanted.subjects:
            if subject.name not in self.portraits:
                self.portraits[subject.name] = self._there[self._portrait_name(subject)].image
        return Story(
            portraits={subject.name: self.portraits[subject.name] for subject in subjects},
            scenes=[made[number] for number in range(len(self.wanted.scenes))],
            captions=tuple(scene.prompt for scene in self.wanted.scenes),
            places=dict(sorted(self.places.items())),
            subjects_by_scene=self.subjects_by_scene,
            settings=self.settings,
            cost=self.cost,
            generations=self.generations,
        )

    @property
    def _scenes_there(self) -> list[int]:
        return [number for number in range(len(self.wanted.scenes)) if f"scene-{number + 1}" in self._there]

    @property
    def _scenes_open(self) -> list[int]:
        return [number for number in range(len(self.wanted.scenes)) if f"scene-{number + 1}" not in self._there]

    def _deliver(self, name: str, image: Image.Image) -> None:
        if self.on_image is not None and name not in self._there:
            places = self.places.get(name, {})
            self.on_image(StoryImage(name=name, image=image, settings=self.settings, places=places))

    # -- reading portraits ------------------------------------------------------------------

    def _read(self, regions: Sequence[tuple[Region, ...]]) -> dict[int, Image.Image]:
        """Portraits and scenes in as few calls as fit; later ones read the portraits that the first made."""
        wanted, made = self.wanted, dict[int, Image.Image]()
        bank = ReferenceBank(int(wanted.memory_mb * 2**20))
        scenes = self._scenes_open
        is_whole = not scenes and all(self._portrait_name(subject) in self._there for subject in wanted.subjects)
        subjects = [] if is_whole else list(wanted.subjects)  # what scenes read of them is in no image
        is_one_call = len(subjects) + len(scenes) <= wanted.batch
        while subjects or scenes:
            again = bank.is_full  # nothing is kept: every call shows all portraits, and one scene at least
            shown = list(wanted.subjects) if again else subjects[: wanted.batch]
            subjects = [] if again else subjects[wanted.batch :]
            room = 0 if subjects else max(int(again), wanted.batch - len(shown))
            told, scenes = scenes[:room], scenes[room:]
            images = self._call_with_portraits(shown, told, regions, None if is_one_call else bank)
            made |= dict(zip(told, images[len(shown) :], strict=True))
            if bank.is_full and scenes:
                self._warn_full()
        return made

    def _call_with_portraits(
        self,
        shown: Sequence[Subject],
        told: Sequence[int],
        regions: Sequence[tuple[Region, ...]],
        bank: ReferenceBank | None,
    ) -> list[Image.Image]:
        wanted = self.wanted
        known = {subject.name for subject in shown} | (set() if bank is None else bank.subjects)
        control = replace(
            self.method,
            subjects=tuple(subject for subject in wanted.subjects if subject.name in known),
            concepts=(*((subject.name,) for subject in shown), *(self.subjects_by_scene[number] for number in told)),
            layout=(*(() for _ in shown), *(regions[number] for number in told)) if any(regions) else (),
        )
        names = (*(f"portrait|{subject.name}" for subject in shown), *(f"scene|{number}" for number in told))
        prompts = [*(subject.prompt for subject in shown), *(wanted.scenes[number].prompt for number in told)]
        seeds = [*map(self._portrait_seed, shown), *map(self._scene_seed, told)]
        story_context = StoryContext(names=names, bank=bank)
        images = self._call([_Within(control, story_context)], prompts, seeds)
        self._note_places(story_context, dict(enumerate(told, start=len(shown))))
        for place, subject in enumerate(shown):
            self._note(self._portrait_name(subject), subject.name, story_context, place, 0)
        self._count("portraits", len(shown))
        self._count("scenes", len(told))
        for subject, image in zip(shown, images, strict=False):
            if subject.name not in self.portraits:
                self.portraits[subject.name] = image
                self._deliver(self._portrait_name(subject), image)
        for number, image in zip(told, images[len(shown) :], strict=True):
            self._deliver(f"scene-{number + 1}", image)
        return images

    def _warn_full(self) -> None:
        warnings.warn(
            f"What is kept of the portraits needs more than memory_mb={self.wanted.memory_mb:g}: every call makes them "
            "again. Raise memory_mb, or batch.",
            UserWarning,
            stacklevel=5,
        )

    # -- composites -------------------------------------------------------------------------

    def _pictured(self) -> tuple[Subject, ...]:
        """The subjects, each with an image and a region in it."""
        found: dict[str, Region] = {}
        for subject in self.wanted.subjects:
            if (known := self._there.get(self._portrait_name(subject))) is not None and subject.image is None:
                self.portraits[subject.name] = known.image
                found |= known.places
        bare = [each for each in self.wanted.subjects if each.image is None and each.name not in self.portraits]
        for part in _parts(bare, self.wanted.batch):
            lookout = SubjectLocator([(subject.name,) for subject in part], self.method.ema)
            prompts = [subject.prompt for subject in part]
            images = self._call([lookout], prompts, [self._portrait_seed(subject) for subject in part])
            self._count("portraits", len(part))
            for number, (subject, image) in enumerate(zip(part, images, strict=True)):
                self.portraits[subject.name] = image
                found[subject.name] = lookout.region(number, 0)
        for subject in self.wanted.subjects:
            if subject.image is not None:
                self.portraits[subject.name] = open_image(subject.image)
        return tuple(self._with_image(subject, found.get(subject.name)) for subject in self.wanted.subjects)

    def _with_image(self, subject: Subject, found: Region | None) -> Subject:
        image = self.portraits[subject.name]
        region = subject.region or self._detected(image, [subject.name]).get(subject.name) or found
        if region is None:
            raise BadSetting(f"The detector did not find {subject.name!r} in its given_image.", "Give its box or mask.")
        given_image: Any = subject.image or image  # a field of this type takes both
        self.places[self._portrait_name(subject)] = {subject.name: region}
        self._deliver(self._portrait_name(subject), image)
        return replace(subject, image=given_image, box=region.box, mask=region.mask)

    def _composed(self, subjects: tuple[Subject, ...], regions: Sequence[tuple[Region, ...]]) -> dict[int, Image.Image]:
        """Each scene beside the composite that it reads; scenes of one prompt lie in different calls."""
        made: dict[int, Image.Image] = {}
        while waiting := [number for number in self._scenes_open if number not in made]:
            told: dict[str, int] = {}
            for number in waiting:
                if len(told) < self.wanted.batch // 2:
                    told.setdefault(self.wanted.scenes[number].prompt, number)
            numbers = list(told.values())
            twice = [number for number in numbers for _ in range(2)]
            control = replace(
                self.method,
                subjects=subjects,
                concepts=tuple(self.subjects_by_scene[number] for number in twice),
                layout=tuple(regions[number] for number in twice),
            )
            names = tuple(f"{what}|{number}" for number in numbers for what in ("composite", "scene"))
            prompts = [self.wanted.scenes[number].prompt for number in twice]
            story_context = StoryContext(names=names)
            images = self._call([_Within(control, story_context)], prompts, [*map(self._scene_seed, twice)])
            self._note_places(story_context, {2 * place + 1: number for place, number in enumerate(numbers)})
            self._count("composites", len(numbers))
            self._count("scenes", len(numbers))
            made |= dict(zip(numbers, images[1::2], strict=True))
            for number in numbers:
                self._deliver(f"scene-{number + 1}", made[number])
        return made

    # -- places -----------------------------------------------------------------------------

    def _regions(self, is_latent: bool) -> list[tuple[Region, ...]]:
        """The regions of each scene: given, rehearsed, or left to be found while it is made."""
        given = [
            {name: region for name in names if (region := scene.region(name)) is not None}
            for scene, names in zip(self.wanted.scenes, self.subjects_by_scene, strict=True)
        ]
        open_ = [number for number in self._scenes_open if len(given[number]) < len(self.subjects_by_scene[number])]
        if open_ and (is_latent or self.wanted.places == "rehearsal"):
            for part in _parts(open_, self.wanted.batch):
                for number, found in zip(part, self._rehearsed(part), strict=True):
                    given[number] = {**found, **given[number]}
        return [tuple(each.values()) for each in given]

    def _rehearsed(self, part: Sequence[int]) -> list[dict[str, Region]]:
        """Where the subjects are in a plain run of the same noise."""
        wanted = self.wanted
        lookout = SubjectLocator([self.subjects_by_scene[number] for number in part], self.method.ema)
        share = 1.0 if self.detector is not None else wanted.rehearsal
        prompts = [wanted.scenes[number].prompt for number in part]
        images = self._call([lookout], prompts, [self._scene_seed(number) for number in part], share)
        evaluations = self.pipe.num_timesteps
        self._count("rehearsals", len(part) * math.ceil(share * evaluations) / evaluations)
        found = []
        for place, number in enumerate(part):
            names = self.subjects_by_scene[number]
            looked = {name: lookout.region(place, each) for each, name in enumerate(names)}
            found.append({**looked, **(self._detected(images[place], names) if images else {})})
        return found

    def _detected(self, image: Image.Image, names: Sequence[str]) -> dict[str, Region]:
        """What the detector finds, if there is one."""
        if self.detector is None:
            return {}
        found = self.detector(image, names)
        return {
            name: Region(word=name, box=tuple(place))
            if len(place) == 4 and not hasattr(place[0], "__len__")
            else Region(word=name, mask=place)
            for name, place in found.items()
            if place is not None
        }

    def _note_places(self, story_context: StoryContext, scenes: Mapping[int, int]) -> None:
        """Keep where the subjects of scenes are, by their image in the call."""
        for image, number in scenes.items():
            for place, name in enumerate(self.subjects_by_scene[number]):
                self._note(f"scene-{number + 1}", name, story_context, image, place)

    def _note(self, given_image: str, name: str, story_context: StoryContext, image: int, place: int) -> None:
        region = None if story_context.places is None else story_context.places.region(image, place)
        own = self.places.setdefault(given_image, {})
        if region is not None:
            own[name] = region

    # -- calls ------------------------------------------------------------------------------

    def _call(
        self, controls: Sequence[Control], prompts: Sequence[str], seeds: Sequence[int], share: float = 1.0
    ) -> list[Image.Image]:
        """One call of the pipeline; without images if it ends early."""
        wanted = self.wanted
        arguments = wanted.request(prompts).arguments()
        arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if share < 1:
            arguments["callback_on_step_end"] = functools.partial(_stop, share)
        images: list[Image.Image] = []
        with (
            contextlib.suppress(Cancelled),
            controlled(self.pipe, [*controls, *self.others], parser=wanted.parser) as session,
        ):
            images = list(self.pipe(**arguments).images)
        self.cost.add(session.cost)
        return images

    def _count(self, what: str, number: float) -> None:
        if number:
            self.generations[what] = round(self.generations.get(what, 0) + number, 6)

    def _number(self, subject: Subject) -> int:
        """Number of a subject in the story, from 1."""
        return [each.name for each in self.wanted.subjects].index(subject.name) + 1

    def _portrait_name(self, subject: Subject) -> str:
        return f"portrait-{self._number(subject)}"

    def _portrait_seed(self, subject: Subject) -> int:
        return self.wanted.seed + self._number(subject) - 1

    def _scene_seed(self, number: int) -> int:
        own = self.wanted.scenes[number].seed
        return self.wanted.seed + len(self.wanted.subjects) + number if own is None else own


def _stop(share: float, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if index + 1 >= math.ceil(share * pipe.num_timesteps):
        raise Cancelled(f"{index + 1} steps are done.")  # a rehearsal has come as far as it shall
    return tensors


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]

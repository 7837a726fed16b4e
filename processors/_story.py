"""Stories: several pictures in which the same subjects stay themselves, told with isolation and reposition attention.

The portraits of the subjects are made once, and the scenes read them. What fits into one call is one call; what does
not is cut into several, and what layers saw of the portraits is kept for the later ones.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from t2ictl.adapters import find_adapter, parse
from t2ictl.controls import Control, Plan, PlanContext, control_to_dict
from t2ictl.cost import Cost
from t2ictl.errors import BadSetting, Cancelled
from t2ictl.generation import provenance
from t2ictl.layouts import Region
from t2ictl.lookouts import Lookout
from t2ictl.picture_fields import open_picture
from t2ictl.processors.isolation_reposition import IsolationReposition
from t2ictl.reference_bank import ReferenceBank, Telling
from t2ictl.scenes import Scene, check_story
from t2ictl.sessions import controlled
from t2ictl.stories import Story
from t2ictl.story_settings import StorySettings
from t2ictl.subjects import Subject

__all__ = ["Detector", "check", "story"]

#: Gives for a picture and the names in it where each is: a box (fractions), a mask, or None if it was not found.
Detector = Callable[[Image.Image, Sequence[str]], Mapping[str, Any]]


def story(
    pipe: Any,
    subjects: Sequence[Subject],
    scenes: Sequence[Scene],
    *,
    control: IsolationReposition | None = None,
    controls: Sequence[Control] = (),
    detector: Detector | None = None,
    **settings: Any,
) -> Story:
    """Tell a story: make its pictures so that the subjects stay apart, and stay themselves.

    With ``reposition="resample"`` this takes S + T generations for S subjects and T scenes, a rehearsal of the scenes
    its share of T more. With ``"latent"`` it takes S + 2T, or S + 3T with whole rehearsals: each scene reads one
    composite with every subject where it wants it. A subject that has an ``image`` needs no portrait in latent mode.

    Args:
        pipe: a diffusers pipeline.
        subjects: who is in the story.
        scenes: its pictures.
        control: settings of the method; its subjects, concepts and layout are filled in here.
        controls: other controls that act on all pictures.
        detector: gives where subjects are in a picture, in the place of their words' maps: in rehearsals, and, in
            latent mode, in portraits.
        **settings: further fields of :class:`StorySettings`: ``seed``, ``steps``, ``guidance_scale``, ``places``, ...

    Returns:
        The story.

    Raises:
        BadSetting: if the story cannot be told as it stands; nothing has been made then.
        SpanNotFound: if a subject is not in the prompt of its portrait, or of a scene that it is said to be in.
        ShapeMismatch: if a mask has not the size of the picture.

    Example:
        >>> import t2ictl
        >>> from t2ictl.scenes import Scene
        >>> cast = [Subject(name="circle", prompt="a red circle"), Subject(name="square", prompt="a blue square")]
        >>> told = t2ictl.story(t2ictl.load("shapes"), cast, [Scene(prompt="a circle and a square")], steps=2)
        >>> len(told.scenes), dict(told.generations)
        (1, {'portraits': 2, 'scenes': 1})
    """
    wanted = StorySettings(subjects=tuple(subjects), scenes=tuple(scenes), **settings)
    method = IsolationReposition() if control is None else control
    there = check(pipe, wanted, method, detector)
    return _Teller(pipe, wanted, method, tuple(controls), detector, there).tell()


def check(
    pipe: Any, wanted: StorySettings, method: IsolationReposition, detector: Detector | None = None
) -> tuple[tuple[str, ...], ...]:
    """Find out who is in each scene, and whether the story can be told; nothing is made.

    Args:
        pipe: a diffusers pipeline.
        wanted: the story.
        method: settings of the method.
        detector: if there is one.

    Returns:
        Names of the subjects of each scene.

    Raises:
        BadSetting, SpanNotFound, ShapeMismatch: as :func:`story`.
    """
    if method.subjects or method.concepts or method.layout:
        raise BadSetting("The control has subjects, concepts or a layout of its own.", "The story's are used.")
    adapter = find_adapter(pipe)
    size = tuple(given or own for given, own in zip((wanted.height, wanted.width), adapter.native_size, strict=True))
    read = functools.partial(parse, pipe, parser=wanted.parser)
    there = check_story(wanted.subjects, wanted.scenes, (size[0], size[1]), read)
    if method.reposition == "latent":
        _check_pictures(wanted.subjects, detector)
    return there


def _check_pictures(subjects: Sequence[Subject], detector: Detector | None) -> None:
    for subject in subjects:
        if subject.image is not None and subject.region is None and detector is None:
            raise BadSetting(
                f"With reposition='latent' the picture of {subject.name!r} is cut out, and nothing says where it is.",
                "Give Subject(box=...) or Subject(mask=...), or a detector.",
            )


class _Within(Control):
    """The method in one of the calls of a story."""

    families = IsolationReposition.families
    name = IsolationReposition.name
    paper = IsolationReposition.paper
    has_losses = False

    def __init__(self, control: IsolationReposition, telling: Telling) -> None:
        self._control, self._telling = control, telling

    def plan(self, context: PlanContext) -> Plan:
        """The plan of the method, which knows of the other calls."""
        return self._control.plan_within(context, self._telling)


@dataclass
class _Teller:
    """Makes the pictures of one story."""

    pipe: Any
    wanted: StorySettings
    method: IsolationReposition
    others: tuple[Control, ...]
    detector: Detector | None
    there: tuple[tuple[str, ...], ...]
    cost: Cost = field(default_factory=Cost)
    generations: dict[str, float] = field(default_factory=dict)
    portraits: dict[str, Image.Image] = field(default_factory=dict)
    places: dict[str, dict[str, Region]] = field(default_factory=dict)

    def tell(self) -> Story:
        """Make all pictures."""
        is_latent = self.method.reposition == "latent"
        subjects = self._pictured() if is_latent else self.wanted.subjects
        regions = self._regions(is_latent)
        pictures = self._composed(subjects, regions) if is_latent else self._read(regions)
        settings = {
            "story": {**self.wanted.to_dict(), "control": control_to_dict(self.method)},
            "controls": [control_to_dict(each) for each in self.others],
            **provenance(self.pipe, self.wanted.parser),
        }
        return Story(
            portraits={subject.name: self.portraits[subject.name] for subject in subjects},
            scenes=pictures,
            captions=tuple(scene.prompt for scene in self.wanted.scenes),
            places=dict(sorted(self.places.items())),
            there=self.there,
            settings=settings,
            cost=self.cost,
            generations=self.generations,
        )

    # -- reading portraits ------------------------------------------------------------------

    def _read(self, regions: Sequence[tuple[Region, ...]]) -> list[Image.Image]:
        """Portraits and scenes in as few calls as fit; later ones read the portraits that the first made."""
        wanted, made = self.wanted, []
        bank = ReferenceBank(int(wanted.memory_mb * 2**20))
        subjects, scenes = list(wanted.subjects), list(range(len(wanted.scenes)))
        is_one_call = len(subjects) + len(scenes) <= wanted.batch
        while subjects or scenes:
            if bank.is_full:
                subjects = list(wanted.subjects)
            room = max(1, wanted.batch - len(subjects)) if bank.is_full else wanted.batch - len(subjects)
            shown, subjects = (subjects, []) if bank.is_full else (subjects[: wanted.batch], subjects[wanted.batch :])
            told, scenes = (scenes[:room], scenes[room:]) if not subjects and room > 0 else ([], scenes)
            pictures = self._call_with_portraits(shown, told, regions, None if is_one_call else bank)
            made += pictures[len(shown) :]
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
            concepts=(*((subject.name,) for subject in shown), *(self.there[number] for number in told)),
            layout=(*(() for _ in shown), *(regions[number] for number in told)) if any(regions) else (),
        )
        names = (*(f"portrait|{subject.name}" for subject in shown), *(f"scene|{number}" for number in told))
        prompts = [*(subject.prompt for subject in shown), *(wanted.scenes[number].prompt for number in told)]
        seeds = [*map(self._portrait_seed, shown), *map(self._scene_seed, told)]
        telling = Telling(names=names, bank=bank)
        images = self._call([_Within(control, telling)], prompts, seeds)
        self._note_places(telling, dict(enumerate(told, start=len(shown))))
        for place, subject in enumerate(shown):
            self._note(f"portrait-{self._number(subject)}", subject.name, telling, place, 0)
        self._count("portraits", len(shown))
        self._count("scenes", len(told))
        for subject, image in zip(shown, images, strict=False):
            self.portraits.setdefault(subject.name, image)
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
        """The subjects, each with a picture and a region in it."""
        bare = [subject for subject in self.wanted.subjects if subject.image is None]
        found: dict[str, Region] = {}
        for part in _parts(bare, self.wanted.batch):
            lookout = Lookout([(subject.name,) for subject in part], self.method.memory)
            prompts = [subject.prompt for subject in part]
            images = self._call([lookout], prompts, [self._portrait_seed(subject) for subject in part])
            self._count("portraits", len(part))
            for number, (subject, image) in enumerate(zip(part, images, strict=True)):
                self.portraits[subject.name] = image
                found[subject.name] = lookout.region(number, 0)
        for subject in self.wanted.subjects:
            if subject.image is not None:
                self.portraits[subject.name] = open_picture(subject.image)
        return tuple(self._with_picture(subject, found.get(subject.name)) for subject in self.wanted.subjects)

    def _with_picture(self, subject: Subject, found: Region | None) -> Subject:
        image = self.portraits[subject.name]
        region = subject.region or self._detected(image, [subject.name]).get(subject.name) or found
        if region is None:
            raise BadSetting(f"The detector did not find {subject.name!r} in its picture.", "Give its box or mask.")
        picture: Any = subject.image or image  # a field of this type takes both
        self.places[f"portrait-{self._number(subject)}"] = {subject.name: region}
        return replace(subject, image=picture, box=region.box, mask=region.mask)

    def _composed(self, subjects: tuple[Subject, ...], regions: Sequence[tuple[Region, ...]]) -> list[Image.Image]:
        """Each scene beside the composite that it reads; scenes of one prompt lie in different calls."""
        made: dict[int, Image.Image] = {}
        while len(made) < len(self.wanted.scenes):
            told: dict[str, int] = {}
            for number, scene in enumerate(self.wanted.scenes):
                if number not in made and len(told) < self.wanted.batch // 2:
                    told.setdefault(scene.prompt, number)
            numbers = list(told.values())
            twice = [number for number in numbers for _ in range(2)]
            control = replace(
                self.method,
                subjects=subjects,
                concepts=tuple(self.there[number] for number in twice),
                layout=tuple(regions[number] for number in twice),
            )
            names = tuple(f"{what}|{number}" for number in numbers for what in ("composite", "scene"))
            prompts = [self.wanted.scenes[number].prompt for number in twice]
            telling = Telling(names=names)
            images = self._call([_Within(control, telling)], prompts, [*map(self._scene_seed, twice)])
            self._note_places(telling, {2 * place + 1: number for place, number in enumerate(numbers)})
            self._count("composites", len(numbers))
            self._count("scenes", len(numbers))
            made |= dict(zip(numbers, images[1::2], strict=True))
        return [made[number] for number in range(len(self.wanted.scenes))]

    # -- places -----------------------------------------------------------------------------

    def _regions(self, is_latent: bool) -> list[tuple[Region, ...]]:
        """The regions of each scene: given, rehearsed, or left to be found while it is made."""
        given = [
            {name: region for name in names if (region := scene.region(name)) is not None}
            for scene, names in zip(self.wanted.scenes, self.there, strict=True)
        ]
        open_ = [number for number, names in enumerate(self.there) if len(given[number]) < len(names)]
        if open_ and (is_latent or self.wanted.places == "rehearsal"):
            for part in _parts(open_, self.wanted.batch):
                for number, found in zip(part, self._rehearsed(part), strict=True):
                    given[number] = {**found, **given[number]}
        return [tuple(each.values()) for each in given]

    def _rehearsed(self, part: Sequence[int]) -> list[dict[str, Region]]:
        """Where the subjects are in a plain run of the same noise."""
        wanted = self.wanted
        lookout = Lookout([self.there[number] for number in part], self.method.memory)
        share = 1.0 if self.detector is not None else wanted.rehearsal
        prompts = [wanted.scenes[number].prompt for number in part]
        images = self._call([lookout], prompts, [self._scene_seed(number) for number in part], share)
        evaluations = self.pipe.num_timesteps
        self._count("rehearsals", len(part) * math.ceil(share * evaluations) / evaluations)
        found = []
        for place, number in enumerate(part):
            names = self.there[number]
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

    def _note_places(self, telling: Telling, scenes: Mapping[int, int]) -> None:
        """Keep where the subjects of scenes are, by their picture in the call."""
        for image, number in scenes.items():
            for place, name in enumerate(self.there[number]):
                self._note(f"scene-{number + 1}", name, telling, image, place)

    def _note(self, picture: str, name: str, telling: Telling, image: int, place: int) -> None:
        region = None if telling.places is None else telling.places.region(image, place)
        own = self.places.setdefault(picture, {})
        if region is not None:
            own[name] = region

    # -- calls ------------------------------------------------------------------------------

    def _call(
        self, controls: Sequence[Control], prompts: Sequence[str], seeds: Sequence[int], share: float = 1.0
    ) -> list[Image.Image]:
        """One call of the pipeline; without pictures if it ends early."""
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
        self.cost.forwards += session.cost.forwards
        self.cost.extra_forwards += session.cost.extra_forwards
        self.cost.backwards += session.cost.backwards
        self.cost.seconds += session.cost.seconds
        self.cost.peak_bytes = max(self.cost.peak_bytes, session.cost.peak_bytes)
        return images

    def _count(self, what: str, number: float) -> None:
        if number:
            self.generations[what] = round(self.generations.get(what, 0) + number, 6)

    def _number(self, subject: Subject) -> int:
        """Number of a subject in the story, from 1."""
        return [each.name for each in self.wanted.subjects].index(subject.name) + 1

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

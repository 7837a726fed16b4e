"""Subjects of several pictures: who they are, where they are, and which picture of a batch shows them alone.

Legend: ``B`` picture, ``N`` subject, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2ictl.concepts import ConceptMaps, Concepts, chosen_concepts
from t2ictl.controls import PlanContext
from t2ictl.errors import BadSetting, SpanNotFound
from t2ictl.fields import setting, settings_class
from t2ictl.lanes import Lanes
from t2ictl.layouts import Layout, Mask, Region
from t2ictl.masks import binarize, box_mask, resize_mask
from t2ictl.per_prompt import per_prompt
from t2ictl.picture_fields import Picture
from t2ictl.spans import Prompt, Span

__all__ = ["Cast", "Places", "Regions", "Subject"]

Regions = tuple[Region, ...] | tuple[tuple[Region, ...], ...]


@settings_class
class Subject:
    """Someone, or something, that shall look the same in several pictures.

    Args:
        name: the word or phrase by which prompts call it.
        prompt: the prompt of the picture that shows it alone (its portrait).
        image: a picture that shows it, in the place of a portrait that is generated: file, PIL image or array.
        box: where it is in its portrait, edges as fractions; or
        mask: the same as a picture file, image, array or nested list; neither: where its word looks.

    Raises:
        BadSetting: without name or prompt, or with box and mask.

    Example:
        >>> Subject(name="cat", prompt="a photo of a cat").box is None
        True
    """

    name: str = setting(default="", help="the word or phrase by which prompts call it")
    prompt: str = setting(default="", help="prompt of the picture that shows it alone")
    image: Picture | None = setting(default=None, help="a picture that shows it; empty: it is generated")
    box: tuple[float, float, float, float] | None = setting(default=None, help="where it is there: x0, y0, x1, y1")
    mask: Mask | None = setting(default=None, help="where it is there: picture file or array")

    def __post_init__(self) -> None:
        if not self.name or not self.prompt:
            raise BadSetting(f"The subject {self.name!r} is not clear.", "Give a name and the prompt of its portrait.")
        if self.box is not None and self.mask is not None:
            raise BadSetting(f"The subject {self.name!r} has a box and a mask.", "Give one of them.")
        if self.box is not None:
            box_mask(self.box, 1, 1)  # raises for edges in the wrong order

    @property
    def region(self) -> Region | None:
        """Where it is in its portrait, if that was said."""
        if self.box is None and self.mask is None:
            return None
        return Region(word=self.name, box=self.box, mask=self.mask)


@dataclass(frozen=True)
class Cast:
    """Who is in which picture of a batch.

    Args:
        rows: the subjects of each picture; of a portrait the one that it shows.
        regions: for each of them the region that the user gave, or None.
        portraits: for each picture and subject the picture of the batch in which it is read, or None.
        who: for each picture and subject the one with a portrait that it is, or None.
        composites: the pictures that are not scenes of their own, but show the subjects of one where it wants them.
        absent: names of subjects whose portraits an earlier call showed; these count as pictures behind the batch's.
        shown: the pictures that are portraits.
    """

    rows: tuple[tuple[Span, ...], ...]
    regions: tuple[tuple[Region | None, ...], ...]
    portraits: tuple[tuple[int | None, ...], ...]
    who: tuple[tuple[Subject | None, ...], ...]
    composites: tuple[int, ...] = ()
    absent: tuple[str, ...] = ()
    shown: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        subjects: Sequence[Subject],
        concepts: Concepts,
        layout: Regions,
        context: PlanContext,
        *,
        control: str,
        composed: bool = False,
        absent: Sequence[str] = (),
    ) -> Cast:
        """Find the subjects in the prompts of a call.

        A picture whose prompt is that of a subject is its portrait. Of several pictures of one prompt the n-th reads
        the n-th portrait.

        Args:
            subjects: those with portraits.
            concepts: all that are kept apart in a scene; empty for the subjects that it names, or, without any
                subjects, all its objects.
            layout: regions, for all prompts or one list for each.
            context: the pipeline call.
            control: name of the control, for messages.
            composed: the first picture of each prompt is the composite that its other pictures read, and there are no
                portraits in the call.
            absent: names of subjects whose portraits an earlier call showed.

        Returns:
            The cast.

        Raises:
            SpanNotFound: if a named word is not in its prompt.
            BadSetting: if two subjects share name or prompt, a portrait or a composite is missing from the call, or a
                list is not one for each prompt.
        """
        _check_names(subjects)
        present = () if composed else [subject for subject in subjects if subject.name not in absent]
        shown = {subject.prompt.strip(): subject for subject in present}
        _check_portraits(shown, context)
        prompts = context.row_prompts
        if subjects:
            names = _names(subjects, shown, concepts, context)
            rows = [
                context.prompts[lane.prompt].find_all(names[lane.prompt]) for lane in context.lanes.only("cond").lanes
            ]
        else:
            rows = list(chosen_concepts(concepts, context, control=control))
        regions = [list(each) for each in _regions(layout, rows, context)]
        places: dict[str, list[int]] = {subject.name: [] for subject in subjects}
        places |= {name: [len(prompts) + number] for number, name in enumerate(absent)}
        for image, prompt in enumerate(prompts):
            if prompt.text.strip() in shown:
                subject = shown[prompt.text.strip()]
                places[subject.name].append(image)
                is_own = bool(layout) and not isinstance(layout[0], Region)  # a flat layout speaks of scenes
                regions[image] = [subject.region or (regions[image][0] if is_own else None)]
        who = [
            tuple(_subject_of(span, prompt, subjects) for span in own)
            for own, prompt in zip(rows, prompts, strict=True)
        ]
        texts = [prompt.text for prompt in prompts]
        first = [texts.index(text) for text in texts]
        if composed:
            portraits = [tuple(_other(image, first[image], each) for each in own) for image, own in enumerate(who)]
            composites = tuple(dict.fromkeys(each for own in portraits for each in own if each is not None))
        else:
            portraits, composites = _read_by(who, texts, shown, places), ()
        found = cls(
            rows=tuple(rows),
            regions=tuple(map(tuple, regions)),
            portraits=tuple(portraits),
            who=tuple(who),
            composites=composites,
            absent=tuple(absent),
            shown=tuple(image for image, text in enumerate(texts) if text.strip() in shown),
        )
        if composed:
            _check_composed(found, first, texts)
        return found

    @property
    def scenes(self) -> tuple[int, ...]:
        """The pictures in which somebody is kept apart or reads a portrait."""
        both = enumerate(zip(self.rows, self.portraits, strict=True))
        return tuple(
            image
            for image, (own, shown) in both
            if len(own) > 1 or image in self.composites or any(each is not None for each in shown)
        )


def _other(image: int, composite: int, subject: Subject | None) -> int | None:
    """The composite in which a picture reads a subject; it does not read itself."""
    return None if subject is None or composite == image else composite


def _read_by(
    who: Sequence[Sequence[Subject | None]],
    texts: Sequence[str],
    shown: Mapping[str, Subject],
    places: Mapping[str, Sequence[int]],
) -> list[tuple[int | None, ...]]:
    """The portrait that each subject of each picture reads: the n-th for the n-th picture of a prompt."""
    found = []
    for image, own in enumerate(who):
        is_portrait, copy = texts[image].strip() in shown, texts[:image].count(texts[image])
        among = [None if each is None or is_portrait else places[each.name] for each in own]
        found.append(tuple(None if each is None else each[copy % len(each)] for each in among))
    return found


def _check_names(subjects: Sequence[Subject]) -> None:
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names) or len({subject.prompt.strip() for subject in subjects}) < len(names):
        raise BadSetting(
            f"Two of the subjects {names} have the same name, or the same prompt.", "Give each its own portrait."
        )


def _check_portraits(shown: dict[str, Subject], context: PlanContext) -> None:
    texts = [prompt.text.strip() for prompt in context.prompts]
    for text, subject in shown.items():
        if text not in texts:
            raise BadSetting(
                f"The portrait of {subject.name!r}, {subject.prompt!r}, is none of the prompts of this call: {texts}.",
                "Put the prompts of the portraits into the list of prompts.",
            )


def _check_composed(cast: Cast, first: Sequence[int], texts: Sequence[str]) -> None:
    """A composite needs a picture of its own in the batch, and for each subject a picture and both places."""
    for image, own in enumerate(cast.who):
        for subject, region in zip(own, cast.regions[image], strict=True):
            if subject is None:
                continue
            if first.count(first[image]) == 1:
                raise BadSetting(
                    f"The prompt {texts[image]!r} is in the call once.",
                    "With reposition='latent' give it twice: its first picture is the composite that the others read.",
                )
            if subject.image is None or subject.region is None or region is None:
                missing = "picture" if subject.image is None else "place in it" if region is not None else "region"
                raise BadSetting(
                    f"With reposition='latent' the subject {subject.name!r} of {texts[image]!r} has no {missing}.",
                    "Give Subject(image=..., box=... or mask=...), and a region for it in layout=; "
                    "t2ictl.story does all of it.",
                )


def _names(
    subjects: Sequence[Subject], shown: dict[str, Subject], concepts: Concepts, context: PlanContext
) -> tuple[tuple[str, ...], ...]:
    """Whom each prompt is about: a portrait its subject, a scene the concepts, or else the subjects that it names."""
    given = per_prompt(concepts, len(context.prompts), setting="concepts", things="words")
    return tuple(
        (shown[prompt.text.strip()].name,) if prompt.text.strip() in shown else own or _named(prompt, subjects)
        for prompt, own in zip(context.prompts, given, strict=True)
    )


def _named(prompt: Prompt, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Names of the subjects that a prompt holds; a "hat" inside a "red hat" is not another subject."""
    spans = {subject.name: span for subject in subjects if (span := _found(prompt, subject.name)) is not None}
    return tuple(
        name
        for name, span in spans.items()
        if not any(set(span.tokens) < set(other.tokens) for other in spans.values())
    )


def _found(prompt: Prompt, words: str) -> Span | None:
    try:
        return prompt.find(words)
    except SpanNotFound:
        return None


def _subject_of(span: Span, prompt: Prompt, subjects: Sequence[Subject]) -> Subject | None:
    """The subject that a concept of a prompt is: the one whose name shares most tokens with it and adds fewest."""
    best: Subject | None = None
    score = (0, 0)
    for subject in subjects:
        found = _found(prompt, subject.name)
        shared = 0 if found is None else len(set(found.tokens) & set(span.tokens))
        if found is not None and shared and (best is None or (shared, -len(found.tokens)) > score):
            best, score = subject, (shared, -len(found.tokens))
    return best


def _regions(layout: Regions, rows: Sequence[Sequence[Span]], context: PlanContext) -> list[tuple[Region | None, ...]]:
    """The region of each subject of each picture."""
    given = per_prompt(layout, len(context.prompts), setting="layout", things="regions")
    if all(isinstance(each, Region) for each in layout):
        # One word need not be in all prompts, but it has to be in one of them.
        return list(Layout.of(given[0] if given else (), context, rows).regions)
    alone = Lanes.of_batch(prompts=1, images_per_prompt=1, guided=False)
    found = []
    for image, lane in enumerate(context.lanes.only("cond").lanes):
        here = replace(context, prompts=(context.prompts[lane.prompt],), lanes=alone)
        found.append(Layout.of(given[lane.prompt], here, [rows[image]]).regions[0])
    return found


class Places:
    """Where the subjects of each picture are: given regions, or those that their words look at.

    Maps are averaged over the evaluations, each new one with the weight ``1 - memory``. A cell belongs to the subject
    whose map, over its own mean, is largest there, if it lies above that map's Otsu threshold.

    Args:
        cast: who is in which picture.
        maps: concept maps of the subjects.
        memory: weight of the maps before, in [0, 1).
    """

    def __init__(self, cast: Cast, maps: ConceptMaps, memory: float) -> None:
        self.cast, self.maps = cast, maps
        self.version = 0
        self._memory = memory
        self._held_BNYX: Tensor | None = None
        self._seen_BNYX: Tensor | None = None

    @property
    def needs_maps(self) -> bool:
        """Whether some subject has no given region."""
        return any(region is None for own in self.cast.regions for region in own)

    def take(self, maps_BYXT: Tensor) -> None:
        """Learn from the maps of an evaluation."""
        maps_BNYX = self.maps(maps_BYXT.detach())
        held = self._held_BNYX
        self._held_BNYX = held = maps_BNYX if held is None else torch.lerp(maps_BNYX, held, self._memory)
        share_BNYX = held / held.mean(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(held.dtype).tiny)
        is_largest_BNYX = share_BNYX == share_BNYX.amax(dim=1, keepdim=True)
        self._seen_BNYX = (binarize(held) & is_largest_BNYX).float().cpu()  # the one wait for the device in a step
        self.version += 1

    def found(self, image: int, number: int) -> Tensor:
        """Give where the maps show a subject.

        Args:
            image: the picture.
            number: the subject.

        Returns:
            ``mask_YX``, boolean, with at least one true cell: where it is nowhere the strongest, the cell of the
            largest value that is nobody else's.
        """
        assert self._held_BNYX is not None and self._seen_BNYX is not None, "no evaluation yet"
        seen_NYX = self._seen_BNYX[image] > 0
        if seen_NYX[number].any():
            return seen_NYX[number]
        free_YX = ~seen_NYX.any(dim=0)
        most_YX = self._held_BNYX[image, number].cpu().masked_fill(~free_YX, -1)
        return most_YX == most_YX.max()

    def coverage(self, image: int, size: tuple[int, int]) -> Tensor:
        """Give the share of each cell of a map that each subject of a picture covers.

        Args:
            image: the picture.
            size: height and width of the map.

        Returns:
            ``coverage_NYX``; zero for a subject of which nothing is known yet.
        """
        regions = self.cast.regions[image]
        coverage = torch.zeros(len(regions), *size)
        for number, region in enumerate(regions):
            if region is not None:
                coverage[number] = region.cells(*size)
        free_YX = 1 - coverage.amax(dim=0) if regions else coverage  # what was given is nobody else's
        for number, region in enumerate(regions):
            if region is None and self._seen_BNYX is not None:
                coverage[number] = resize_mask(self._seen_BNYX[image, number], *size) * free_YX
        return coverage

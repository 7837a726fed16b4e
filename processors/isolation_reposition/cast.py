"""Who is in which image of a batch, and which of its images shows them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from t2ictl.attention.batch import BatchLayout
from t2ictl.controls.base import PlanContext
from t2ictl.controls.concepts import Concepts, chosen_concepts
from t2ictl.controls.layouts import Layout, Region
from t2ictl.errors import BadSetting
from t2ictl.processors.isolation_reposition.subjects import Subject, named_spans, subject_spans
from t2ictl.prompts.per_prompt import per_prompt
from t2ictl.prompts.prompt import Prompt, Span

__all__ = ["SubjectAssignment", "Regions"]

Regions = tuple[Region, ...] | tuple[tuple[Region, ...], ...]


@dataclass(frozen=True)
class SubjectAssignment:
    """Who is in which image of a batch.

    Args:
        rows: the subjects of each image; of a portrait the one that it shows.
        regions: for each of them the region that the user gave, or None.
        portraits: for each image and subject the image of the batch in which it is read, or None.
        subjects: for each image and subject the one with a portrait that it is, or None.
        composites: the images that are not scenes of their own, but show the subjects of one where it wants them.
        cached_subjects: names of subjects whose portraits an earlier call showed; these count as images behind the
            batch's.
        shown: the images that are portraits.
    """

    rows: tuple[tuple[Span, ...], ...]
    regions: tuple[tuple[Region | None, ...], ...]
    portraits: tuple[tuple[int | None, ...], ...]
    subjects: tuple[tuple[Subject | None, ...], ...]
    composites: tuple[int, ...] = ()
    cached_subjects: tuple[str, ...] = ()
    shown: tuple[int, ...] = ()

    @classmethod
    def from_context(
        cls,
        subjects: Sequence[Subject],
        concepts: Concepts,
        layout: Regions,
        context: PlanContext,
        *,
        control: str,
        composed: bool = False,
        cached_subjects: Sequence[str] = (),
    ) -> SubjectAssignment:
        """Find the subjects in the prompts of a call.

        An image whose prompt is that of a subject is its portrait. Of several images of one prompt the n-th reads
        the n-th portrait.

        Args:
            subjects: those with portraits.
            concepts: all that are kept apart in a scene; empty for the subjects that it names, or all its objects.
            layout: regions, for all prompts or one list for each.
            context: the pipeline call.
            control: name of the control, for messages.
            composed: the first image of each prompt is the composite that its others read; no portraits are made.
            cached_subjects: names of subjects whose portraits an earlier call showed.

        Raises:
            SpanNotFound: if a named word is not in its prompt.
            BadSetting: for subjects alike, a missing portrait or composite, or a list of another length.
        """
        _check_names(subjects)
        present = () if composed else [subject for subject in subjects if subject.name not in cached_subjects]
        shown = {subject.prompt.strip(): subject for subject in present}
        _check_portraits(shown, context)
        prompts = context.row_prompts
        texts = [prompt.text for prompt in prompts]
        showing = {image: shown[text.strip()] for image, text in enumerate(texts) if text.strip() in shown}
        rows = _rows(subjects, shown, concepts, context, control)
        who = [
            tuple(_subject_of(span, prompt, subjects) for span in own)
            for own, prompt in zip(rows, prompts, strict=True)
        ]
        first = [texts.index(text) for text in texts]
        portraits = (
            [tuple(_other(image, first[image], each) for each in own) for image, own in enumerate(who)]
            if composed
            else _read_by(who, texts, showing, _places(len(prompts), cached_subjects, showing))
        )
        composites = dict.fromkeys(each for own in portraits for each in own if each is not None) if composed else ()
        found = cls(
            rows=tuple(rows),
            regions=_all_regions(layout, rows, context, showing),
            portraits=tuple(portraits),
            subjects=tuple(who),
            composites=tuple(composites),
            cached_subjects=tuple(cached_subjects),
            shown=tuple(showing),
        )
        if composed:
            _check_composed(found, first, texts)
        return found

    @property
    def scenes(self) -> tuple[int, ...]:
        """The images in which somebody is kept apart or reads a portrait."""
        both = enumerate(zip(self.rows, self.portraits, strict=True))
        return tuple(
            image
            for image, (own, shown) in both
            if len(own) > 1 or image in self.composites or any(each is not None for each in shown)
        )


def _other(image: int, composite: int, subject: Subject | None) -> int | None:
    """The composite in which an image reads a subject; it does not read itself."""
    return None if subject is None or composite == image else composite


def _read_by(
    who: Sequence[Sequence[Subject | None]],
    texts: Sequence[str],
    showing: Mapping[int, Subject],
    places: Mapping[str, Sequence[int]],
) -> list[tuple[int | None, ...]]:
    """The portrait that each subject of each image reads: the n-th for the n-th image of a prompt."""
    found = []
    for image, own in enumerate(who):
        copy = texts[:image].count(texts[image])
        among = [None if each is None or image in showing else places[each.name] for each in own]
        found.append(tuple(None if each is None else each[copy % len(each)] for each in among))
    return found


def _rows(
    subjects: Sequence[Subject], shown: dict[str, Subject], concepts: Concepts, context: PlanContext, control: str
) -> list[tuple[Span, ...]]:
    """Whom each image is about, as words of its prompt."""
    if not subjects:
        return list(chosen_concepts(concepts, context, control=control))
    names = _names(subjects, shown, concepts, context)
    batch = context.batch.only("cond").rows
    known = [subject.name for subject in subjects]
    return [subject_spans(context.prompts[row.prompt], names[row.prompt], known) for row in batch]


def _places(images: int, cached_subjects: Sequence[str], showing: dict[int, Subject]) -> dict[str, list[int]]:
    """The images that show each subject; those of an earlier call are counted on behind those of this one."""
    places = {name: [images + number] for number, name in enumerate(cached_subjects)}
    for image, subject in showing.items():
        places.setdefault(subject.name, []).append(image)
    return places


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


def _check_composed(assignment: SubjectAssignment, first: Sequence[int], texts: Sequence[str]) -> None:
    """A composite needs an image of its own in the batch, and for each subject an image and both places."""
    for image, own in enumerate(assignment.subjects):
        for subject, region in zip(own, assignment.regions[image], strict=True):
            if subject is None:
                continue
            if first.count(first[image]) == 1:
                raise BadSetting(
                    f"The prompt {texts[image]!r} is in the call once.",
                    "With reposition='latent' give it twice: its first image is the composite that the others read.",
                )
            if subject.image is None or subject.region is None or region is None:
                missing = "image" if subject.image is None else "place in it" if region is not None else "region"
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
        (shown[prompt.text.strip()].name,)
        if prompt.text.strip() in shown
        else own or tuple(named_spans(prompt, [subject.name for subject in subjects]))
        for prompt, own in zip(context.prompts, given, strict=True)
    )


def _subject_of(span: Span, prompt: Prompt, subjects: Sequence[Subject]) -> Subject | None:
    """The subject that a concept of a prompt is: the one whose name shares most tokens with it and adds fewest."""
    places = named_spans(prompt, [subject.name for subject in subjects])
    best: Subject | None = None
    score = (0, 0)
    for subject in subjects:
        found = places.get(subject.name)
        shared = 0 if found is None else len(set(found.tokens) & set(span.tokens))
        if found is not None and shared and (best is None or (shared, -len(found.tokens)) > score):
            best, score = subject, (shared, -len(found.tokens))
    return best


def _all_regions(
    layout: Regions, rows: Sequence[Sequence[Span]], context: PlanContext, showing: Mapping[int, Subject]
) -> tuple[tuple[Region | None, ...], ...]:
    """The region of each subject of each image; of a portrait what its subject says, or else its own list."""
    regions = list(_regions(layout, rows, context))
    is_own = bool(layout) and not isinstance(layout[0], Region)  # a flat layout speaks of scenes
    for image, subject in showing.items():
        regions[image] = (subject.region or (regions[image][0] if is_own else None),)
    return tuple(regions)


def _regions(layout: Regions, rows: Sequence[Sequence[Span]], context: PlanContext) -> list[tuple[Region | None, ...]]:
    """The region of each subject of each image."""
    given = per_prompt(layout, len(context.prompts), setting="layout", things="regions")
    if all(isinstance(each, Region) for each in layout):
        # One word need not be in all prompts, but it has to be in one of them.
        return list(Layout.from_regions(given[0] if given else (), context, rows).regions)
    alone = BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=False)
    found = []
    for image, row in enumerate(context.batch.only("cond").rows):
        here = replace(context, prompts=(context.prompts[row.prompt],), batch=alone)
        found.append(Layout.from_regions(given[row.prompt], here, [rows[image]]).regions[0])
    return found

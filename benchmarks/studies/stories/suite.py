"""The stories that are told: who is in them, their prompts, and the noise of every image.

There are only 15 pairs and 20 triples of six shapes. A longer suite repeats them, with other seeds, other orders of
the words and other sides; so stories of one pair are not quite independent, and an interval over stories speaks of
other noise and wording for these subjects, not of other subjects. Every story is one unit of resampling.

There are two kinds. In an open story no prompt names a color: a subject is what its portrait happens to show, and
nothing but that image says so; tuning and report are drawn apart, and differ in their seeds. In a told story the
prompt of a portrait names color and texture, as character sheets do, and scenes name the subject alone; the looks
together are a combination of the split.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t2ictl.errors import BadSetting
from t2ictl.evaluation.statistics.resampling import seed_of
from t2ictl.shapes.captions import wanted_from
from t2ictl.shapes.world import COLORS, SHAPES, TEXTURES, Look, split_of

__all__ = ["KINDS", "SCENES", "Story", "stories"]

Split = Literal["tune", "report"]
Kind = Literal["open", "subject_text"]
KINDS: tuple[Kind, ...] = ("open", "subject_text")
SCENES = 4
SPLITS: tuple[Split, ...] = ("tune", "report")
#: Seeds of a kind, a split and a number of subjects begin here; a story takes the next ten.
KIND_SEEDS, SPLIT_SEEDS, SUBJECT_SEEDS, STORY_SEEDS = 10_000_000, 1_000_000, 100_000, 10
MOST_STORIES = SUBJECT_SEEDS // STORY_SEEDS


@dataclass(frozen=True, kw_only=True)
class Story:
    """One story.

    Args:
        key: its name, the same in every run.
        subjects: words of the subjects.
        portraits: the prompt of each subject's portrait.
        scenes: prompts that name all subjects.
        seeds: of the noise of each image, portraits first.

    Example:
        >>> stories("tune", 2, 1)[0].portraits[0].startswith("a ")
        True
    """

    key: str
    subjects: tuple[str, ...]
    portraits: tuple[str, ...]
    scenes: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, portraits first."""
        return (*self.portraits, *self.scenes)


def stories(split: Split, subjects: int, count: int, kind: Kind = "open") -> tuple[Story, ...]:
    """List the first stories of a suite; a longer list begins with the shorter one.

    Args:
        split: ``"tune"`` or ``"report"``.
        subjects: two or three.
        count: how many.
        kind: ``"open"``, or ``"subject_text"``: portraits' prompts name color and texture.

    Returns:
        The stories.

    Raises:
        BadSetting: for another split or number.

    Example:
        >>> stories("tune", 2, 60)[:3] == stories("tune", 2, 3)
        True
    """
    if split not in SPLITS or kind not in KINDS or subjects not in (2, 3) or not 0 <= count <= MOST_STORIES:
        raise BadSetting(
            f"There is no suite of {count} {kind} stories of {subjects} subjects in the split {split!r}.",
            f"Use {' or '.join(KINDS)}, {' or '.join(SPLITS)}, 2 or 3 subjects, and up to {MOST_STORIES} stories.",
        )
    generator = np.random.default_rng([subjects, *seed_of(split if kind == "open" else f"{kind} {split}", 0)])
    chosen = list(itertools.combinations(SHAPES, subjects))
    first = KIND_SEEDS * KINDS.index(kind) + SPLIT_SEEDS * (1 + SPLITS.index(split)) + SUBJECT_SEEDS * subjects
    found: list[Story] = []
    while len(found) < count:
        for place in generator.permutation(len(chosen)):
            names = tuple(chosen[int(place)][int(each)] for each in generator.permutation(subjects))
            told = _pair_scenes(names, generator) if subjects == 2 else _triple_scenes(names, generator)
            start = first + STORY_SEEDS * len(found)
            found.append(
                Story(
                    key=f"{'' if kind == 'open' else f'{kind}-'}{split}-{subjects}-{len(found):04d}",
                    subjects=names,
                    portraits=_portraits(names, split, kind, generator),
                    scenes=told,
                    seeds=tuple(range(start, start + subjects + SCENES)),
                )
            )
    return tuple(found[:count])


def _portraits(names: tuple[str, ...], split: Split, kind: Kind, generator: np.random.Generator) -> tuple[str, ...]:
    """Prompts of the portraits; told ones have different colors."""
    if kind == "open":
        return tuple(f"a {name}" for name in names)
    while True:
        colors = generator.permutation(COLORS)[: len(names)]
        looks = [
            Look(shape=name, color=str(color), texture=str(generator.choice(TEXTURES)))
            for name, color in zip(names, colors, strict=True)
        ]
        if split_of(looks) == split:
            return tuple(wanted_from(look).phrase for look in looks)


def _pair_scenes(names: tuple[str, ...], generator: np.random.Generator) -> tuple[str, ...]:
    """Both orders, one beside the other, one above the other; who is where is drawn."""
    one, other = names
    beside, above = (names if generator.integers(2) else (other, one) for _ in range(2))
    side, height = generator.choice(["left of", "right of"]), generator.choice(["above", "below"])
    return (
        f"a {one} and a {other}",
        f"a {other} and a {one}",
        f"a {beside[0]} {side} a {beside[1]}",
        f"a {above[0]} {height} a {above[1]}",
    )


def _triple_scenes(names: tuple[str, ...], generator: np.random.Generator) -> tuple[str, ...]:
    """Four of the six orders."""
    orders = list(itertools.permutations(names))
    kept = [orders[int(place)] for place in generator.permutation(len(orders))[:SCENES]]
    return tuple(f"a {one}, a {two} and a {three}" for one, two, three in kept)

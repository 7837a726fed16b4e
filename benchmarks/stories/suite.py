"""The stories that are told: who is in them, their prompts, and the noise of every picture.

There are only 15 pairs and 20 triples of six shapes. A longer suite repeats them, with other seeds, other orders of
the words and other sides; so stories of one pair are not quite independent, and an interval over stories speaks of
other noise and wording for these subjects, not of other subjects. Every story is one unit of resampling.

No prompt names a color, so the split of the world by colors and shapes does not apply. Tuning and report are apart by
their seeds, and drawn apart.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t2ictl.benchmarks.statistics.resampling import seed_of
from t2ictl.errors import BadSetting
from t2ictl.shapes.world import SHAPES

__all__ = ["SCENES", "Story", "stories"]

Split = Literal["tune", "report"]
SCENES = 4
SPLITS: tuple[Split, ...] = ("tune", "report")
#: Seeds of a split and number of subjects begin here; a story takes the next ten.
SPLIT_SEEDS, SUBJECT_SEEDS, STORY_SEEDS = 1_000_000, 100_000, 10
MOST_STORIES = SUBJECT_SEEDS // STORY_SEEDS


@dataclass(frozen=True, kw_only=True)
class Story:
    """One story.

    Args:
        key: its name, the same in every run.
        subjects: words of the subjects.
        portraits: the prompt of each subject's portrait.
        scenes: prompts that name all subjects.
        seeds: of the noise of each picture, portraits first.

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


def stories(split: Split, subjects: int, count: int) -> tuple[Story, ...]:
    """List the first stories of a suite; a longer list begins with the shorter one.

    Args:
        split: ``"tune"`` or ``"report"``.
        subjects: two or three.
        count: how many.

    Returns:
        The stories.

    Raises:
        BadSetting: for another split or number.

    Example:
        >>> stories("tune", 2, 60)[:3] == stories("tune", 2, 3)
        True
    """
    if split not in SPLITS or subjects not in (2, 3) or not 0 <= count <= MOST_STORIES:
        raise BadSetting(
            f"There is no suite of {count} stories of {subjects} subjects in the split {split!r}.",
            f"Use {' or '.join(SPLITS)}, 2 or 3 subjects, and up to {MOST_STORIES} stories.",
        )
    generator = np.random.default_rng([subjects, *seed_of(split, 0)])
    chosen = list(itertools.combinations(SHAPES, subjects))
    first = SPLIT_SEEDS * (1 + SPLITS.index(split)) + SUBJECT_SEEDS * subjects
    found: list[Story] = []
    while len(found) < count:
        for place in generator.permutation(len(chosen)):
            names = tuple(chosen[int(place)][int(each)] for each in generator.permutation(subjects))
            told = _pair_scenes(names, generator) if subjects == 2 else _triple_scenes(names, generator)
            start = first + STORY_SEEDS * len(found)
            found.append(
                Story(
                    key=f"{split}-{subjects}-{len(found):04d}",
                    subjects=names,
                    portraits=tuple(f"a {name}" for name in names),
                    scenes=told,
                    seeds=tuple(range(start, start + subjects + SCENES)),
                )
            )
    return tuple(found[:count])


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

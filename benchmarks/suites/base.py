"""Suites of prompts: what is asked, and a judge that says what came out.

A suite is one entry of :data:`SUITES`: it yields items by kind and judges images. Published sets are suites, too;
their prompts come from files that the user has, and their images are not judged while they are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from t2ictl.errors import BadSetting

__all__ = ["Item", "Judgement", "SUITES", "Suite", "find_suite"]

Split = Literal["tune", "report"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt of a suite.

    Args:
        id: unique in the suite over all kinds and splits.
        category: the kind it belongs to; tables have one line for each.
        prompt: the text.
    """

    id: str
    category: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge says of one image.

    Args:
        outcomes: separate yes-or-no outcomes by name; never one number.
        failure: the kind of failure, or None.

    Example:
        >>> Judgement(outcomes={"has_all": True, "is_bound": False}).is_strict
        False
    """

    outcomes: dict[str, bool]
    failure: str | None = None

    @property
    def is_strict(self) -> bool:
        """Whether all is as asked: the judge's own word for it, or every outcome."""
        return self.outcomes.get("is_strict", all(self.outcomes.values()))


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Prompts and their judge.

    Args:
        kinds: gives the names of the categories.
        items: gives the first prompts of a category and split: category, split, how many.
        judge: says what an image of a prompt shows; None where images are judged later, by a learned judge.
        instrument: gives an id that changes when prompts, judge or the embedded model that is named change.
    """

    kinds: Callable[[], tuple[str, ...]]
    items: Callable[[str, Split, int], tuple[Item, ...]]
    judge: Callable[[Image.Image, str], Judgement] | None
    instrument: Callable[[str], str]


def _shapes_kinds() -> tuple[str, ...]:
    from t2ictl.shapes.prompts import KINDS

    return tuple(KINDS)


def _shapes_items(kind: str, split: Split, count: int) -> tuple[Item, ...]:
    from t2ictl.shapes import suite

    found: Any = suite(kind, split, count)  # type: ignore[arg-type]  # it checks the kind itself
    # A longer suite begins with the shorter one, so a number stays with its prompt.
    return tuple(
        Item(id=f"{split}-{kind}-{number:04d}", category=kind, prompt=each.prompt) for number, each in enumerate(found)
    )


def _judge_shapes(image: Image.Image, prompt: str) -> Judgement:
    from t2ictl.shapes import judge

    verdict = judge(image, prompt)
    return Judgement(outcomes=verdict.outcomes(), failure=verdict.failure)


def _shapes_instrument(model: str) -> str:
    from t2ictl.shapes import MODELS, instrument_id

    return instrument_id(model if model in MODELS else None)


def _everyday_items(kind: str, split: Split, count: int) -> tuple[Item, ...]:
    """The same prompts for both splits: they are for looking, and neither for tuning nor for figures to publish."""
    from t2ictl.benchmarks.suites.everyday import PROMPTS

    if kind not in PROMPTS:
        raise BadSetting(f"There is no category {kind!r} in everyday.", f"Categories: {', '.join(PROMPTS)}.")
    there = PROMPTS[kind]
    if count > len(there):
        raise BadSetting(f"There are only {len(there)} {kind} prompts in everyday.", f"Ask for {len(there)}.")
    return tuple(
        Item(id=f"everyday-{kind}-{number:02d}", category=kind, prompt=prompt)
        for number, prompt in enumerate(there[:count])
    )


def _everyday_kinds() -> tuple[str, ...]:
    from t2ictl.benchmarks.suites.everyday import PROMPTS

    return tuple(PROMPTS)


def _digest(name: str, prompts: Sequence[str]) -> str:
    return f"{name} {hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]}, not judged"


def _everyday_instrument(model: str) -> str:
    from t2ictl.benchmarks.suites.everyday import PROMPTS

    return _digest("everyday", [prompt for prompts in PROMPTS.values() for prompt in prompts])


SUITES: dict[str, Suite] = {
    "shapes": Suite(kinds=_shapes_kinds, items=_shapes_items, judge=_judge_shapes, instrument=_shapes_instrument),
    "everyday": Suite(kinds=_everyday_kinds, items=_everyday_items, judge=None, instrument=_everyday_instrument),
}


def find_suite(name: str, data: str | None = None) -> Suite:
    """Find a suite by name: one of ours, or a published set whose files the user has.

    Args:
        name: a key of :data:`SUITES`, or a name of :data:`t2ictl.benchmarks.suites.published.sets.SETS`.
        data: the folder with the files of published sets.

    Returns:
        The suite.

    Raises:
        BadSetting: if there is none of that name, or a published set without its folder.

    Example:
        >>> find_suite("shapes").items("pair", "tune", 1)[0].id
        'tune-pair-0000'
    """
    from t2ictl.benchmarks.suites.published.sets import SETS

    if name in SUITES:
        return SUITES[name]
    if name not in SETS:
        raise BadSetting(f"There is no suite {name!r}.", f"Suites: {', '.join((*SUITES, *SETS))}.")
    if data is None:
        raise BadSetting(f"The suite {name} is read from files.", "Say where they are: --data FOLDER.")
    return _published(name, data)


def _published(name: str, data: str) -> Suite:
    """A published set; tuning prompts are those of its training set, where it has one."""
    from t2ictl.benchmarks.suites.published.sets import SETS, read_set

    def read(split: Split) -> dict[str, list[Item]]:
        """Read the prompts of a split, by category."""
        source = f"{name}_train" if split == "tune" else name
        if source not in SETS:
            raise BadSetting(
                f"The suite {name} has no tuning prompts.", "Use --split report, and tune on other prompts."
            )
        found: dict[str, list[Item]] = {}
        for each in read_set(source, Path(data)):
            item = Item(id=f"{split}-{each.id}", category=each.category, prompt=each.prompt)
            found.setdefault(each.category, []).append(item)
        return found

    def items(kind: str, split: Split, count: int) -> tuple[Item, ...]:
        there = read(split).get(kind, [])
        if count > len(there):
            raise BadSetting(f"There are only {len(there)} {kind} prompts in {name}.", f"Ask for {len(there)}.")
        return tuple(there[:count])

    def digest(model: str) -> str:
        return _digest(name, [each.prompt for each in read_set(name, Path(data))])

    return Suite(kinds=lambda: tuple(read("report")), items=items, judge=None, instrument=digest)

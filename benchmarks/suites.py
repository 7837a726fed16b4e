"""Suites of prompts: what is asked, and a judge that says what came out.

A suite is one entry of :data:`SUITES`: it yields items by kind and judges pictures. A further
suite, such as a published prompt file, is a further entry and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from t2ictl.errors import BadSetting

__all__ = ["Item", "Judgement", "SUITES", "Suite", "find_suite"]

Split = Literal["tune", "report"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt of a suite.

    Args:
        id: unique in the suite over all kinds and splits; fit for a file name.
        category: the kind it belongs to; tables have one line for each.
        prompt: the text.
    """

    id: str
    category: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge says of one picture.

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
        judge: says what a picture of a prompt shows.
        instrument: gives an id that changes when prompts, judge or what is measured with them change.
    """

    kinds: Callable[[], tuple[str, ...]]
    items: Callable[[str, Split, int], tuple[Item, ...]]
    judge: Callable[[Image.Image, str], Judgement]
    instrument: Callable[[], str]


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


def _shapes_instrument() -> str:
    from t2ictl.shapes import instrument_id

    return instrument_id()


SUITES: dict[str, Suite] = {
    "shapes": Suite(kinds=_shapes_kinds, items=_shapes_items, judge=_judge_shapes, instrument=_shapes_instrument),
}


def find_suite(name: str) -> Suite:
    """Find a suite by name.

    Args:
        name: a key of :data:`SUITES`.

    Returns:
        The suite.

    Raises:
        BadSetting: if there is none of that name.

    Example:
        >>> find_suite("shapes").items("pair", "tune", 1)[0].id
        'tune-pair-0000'
    """
    if name not in SUITES:
        raise BadSetting(f"There is no suite {name!r}.", f"Suites: {', '.join(sorted(SUITES))}.")
    return SUITES[name]

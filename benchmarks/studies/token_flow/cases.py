"""The prompts of the study, each with its items, and the conditions whose images are judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from t2ictl.processors.token_flow.conditions import Conditions, Intervention
from t2ictl.processors.token_flow.items import Item, ResolvedItem
from t2ictl.shapes.captions import POLYSEME, REDUNDANT, SENSE_NEXT_TO, Expectation, Wanted
from t2ictl.shapes.prompts import HeldOut, Kind, all_prompts, suite
from t2ictl.shapes.world import COLORS

__all__ = ["PARTS", "Case", "Part", "cases", "conditions_of"]

Part = Literal["pairs", "bolt", "round", "planted", "no leak"]
PARTS: tuple[Part, ...] = ("pairs", "bolt", "round", "planted", "no leak")
# The neighbor of the other kind, for comparison.
SWAP = {"circle": "square", "square": "circle", "ring": "triangle", "triangle": "ring"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt of a part.

    Args:
        prompt: its text.
        items: target of the leak first, source second; of the part "round" the phrase that is called round.
        note: what cases are grouped by: whether the target stands before or after the source, or its noun.
    """

    prompt: str
    items: tuple[Item, ...]
    note: str = ""


def cases(part: Part, split: HeldOut, count: int) -> tuple[Case, ...]:
    """List the prompts of a part.

    Args:
        part: which.
        split: tuning or report prompts.
        count: at most so many.

    Returns:
        The cases, always the same ones.
    """
    if part == "round":
        asked = _all("round", split)
        return tuple(case for each in asked for case in _round(each))[:count]
    if part in ("bolt", "planted"):
        found = [_bolt(each) for each in _all("bolt", split)]
        return tuple(case for case in found if part == "bolt" or case.note == "after")[:count]
    pairs = suite("pair", split, count, 0)
    if part == "pairs":
        return tuple(_pair(each) for each in pairs)
    # Half bolts, whose sense is open enough to vary, half colors; the source is a word that means nothing.
    bolts = [_bolt(each) for each in _all("bolt", split)]
    after = [_meaningless(case) for case in bolts if case.note == "after"][: count // 2]
    return (*after, *(_meaningless(_pair(each)) for each in pairs))[:count]


def _all(kind: Kind, split: HeldOut) -> tuple[Expectation, ...]:
    """All prompts of a kind, in an order that favors none."""
    return suite(kind, split, len(all_prompts(kind, split)), 0)


def _phrase(wanted: Wanted) -> str:
    return wanted.phrase.removeprefix("a ")


def _pair(asked: Expectation) -> Case:
    """Two objects; the second is asked whether it took the color of the first, and the other way round."""
    one, other = asked.objects
    free = next(color for color in COLORS if color not in (one.color, other.color))
    items = [
        Item(
            words=_phrase(own),
            senses={_phrase(beside): f"{beside.color} {own.shape}"},
            swap=f"{free} {own.shape}",
        )
        for own, beside in ((other, one), (one, other))
    ]
    return Case(prompt=asked.prompt, items=tuple(items), note="after")


def _bolt(asked: Expectation) -> Case:
    bolt = next(number for number, each in enumerate(asked.objects) if each.noun == POLYSEME)
    beside = asked.objects[1 - bolt].shape
    items = (Item(words=POLYSEME, senses={beside: SENSE_NEXT_TO[beside]}), Item(words=beside, swap=SWAP[beside]))
    return Case(prompt=asked.prompt, items=items, note="after" if bolt == 1 else "before")


def _meaningless(case: Case) -> Case:
    """The same question, with the word "and" as the source."""
    target = case.items[0]
    seen = next(iter(target.senses.values()))
    target = Item(words=target.words, senses={"and": seen})
    return Case(prompt=case.prompt, items=(target, Item(words="and", question=case.items[1].asked)), note=case.note)


def _round(asked: Expectation) -> Iterator[Case]:
    """A phrase that is called round; the first one, if both are."""
    named = next((each for each in asked.objects if each.is_round), None)
    if named is not None:
        words = _phrase(named)
        question = words.replace(f"{REDUNDANT} ", "")
        yield Case(prompt=asked.prompt, items=(Item(words=words, question=question),), note=named.shape)


def conditions_of(part: Part, make: Conditions, items: tuple[ResolvedItem, ...]) -> list[Intervention]:
    """List what is made of every prompt of a part.

    Args:
        part: which.
        make: makes conditions of the prompt.
        items: its items.

    Returns:
        The conditions; their names are the same for all prompts.
    """
    if part == "round":
        return _token_conditions(make, items[0])
    target, source = items
    found = [make.whole(), _named(make.cut(target, source), "cut")]
    if part in ("planted", "no leak"):
        return found
    found += [_named(make.swap(source), "swap")]
    for role, item in (("target", target), ("source", source)):
        found += [_named(make.keep("keep", item.rows), f"keep {role}"), _named(make.isolate(item), f"iso {role}")]
    # Repairs as a user would set them, for all items at once, since who leaks is not known before.
    both = [(target, (source,)), (source, (target,))]
    found += [make.repair(f"repair {how}", both, how=how) for how in ("masked", "pairwise", "alone")]
    if part == "pairs":
        found += [_named(make.cut(source, target), "cut back"), _named(make.swap(target), "swap back")]
    return found


def _token_conditions(make: Conditions, item: ResolvedItem) -> list[Intervention]:
    """Each token of "round COLOR SHAPE" kept alone and taken out."""
    found = [make.whole(), make.nothing(), make.keep("keep item", item.rows)]
    for name, token in zip((REDUNDANT, "color", "shape"), item.rows, strict=True):
        found.append(make.keep(f"keep {name}", (token,)))
        for operator in ("clean_pad", "encoder_mask", "drop"):
            found.append(make.remove(f"drop {name}, {operator}", (token,), operator))
    return found


def _named(condition: Intervention, name: str) -> Intervention:
    return replace(condition, name=name, kind=name.partition(" ")[0])

"""Prompt suites made from the world; tuning and report suites cannot overlap.

Which suite a combination may appear in is decided by the hash that also decides what is
seen in training (:func:`t2ictl.shapes.world.split_of`), so the suites are apart by
construction. All prompts of a kind are listed, so how many there are is known exactly.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from t2ictl.errors import BadSetting
from t2ictl.shapes.captions import (
    NAMED_SIZES,
    NAMED_TEXTURES,
    POLYSEME,
    RELATIONS,
    ROUND_SHAPES,
    SENSE_NEXT_TO,
    Expectation,
    Wanted,
    resolve,
)
from t2ictl.shapes.world import COLORS, MARKS, OWNERS, SHAPES, UNNAMED_SIZE, UNNAMED_TEXTURE, Look, Mark, split_of

Kind = Literal["single", "pair", "triple", "texture", "size", "attributes", "relation", "mark", "bolt", "round", "open"]
HeldOut = Literal["tune", "report"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_STREAM = {"tune": 1, "report": 2}
#: What an object may be said to have, as keyword arguments.
_DRESSES: dict[str, tuple[dict[str, Any], ...]] = {
    "texture": tuple({"texture": texture} for texture in NAMED_TEXTURES),
    "size": tuple({"size": size} for size in NAMED_SIZES),
}
# Each object has either a texture or a size, so that pairs stay readable.
_DRESSES["attributes"] = _DRESSES["texture"] + _DRESSES["size"]

Objects = tuple[Wanted, ...]


def _bare(count: int) -> Iterator[Objects]:
    """List objects of different shapes and different colors, and nothing else said."""
    for shapes in itertools.permutations(SHAPES, count):
        for colors in itertools.permutations(COLORS, count):
            yield tuple(Wanted(shape=shape, color=color) for shape, color in zip(shapes, colors, strict=True))


def _marked(objects: Objects) -> Iterator[Objects]:
    """Return at least one of two owners a mark; no color comes twice."""
    if any(wanted.shape not in OWNERS for wanted in objects):
        return
    free = [color for color in COLORS if color not in {wanted.color for wanted in objects}]
    marks = [None, *(Mark(kind=kind, color=color) for kind in MARKS for color in free)]
    for one, other in itertools.product(marks, repeat=2):
        if one != other and (one is None or other is None or one.color != other.color):
            yield replace(objects[0], mark=one), replace(objects[1], mark=other)


def _variants(kind: Kind, objects: Objects) -> Iterator[Objects]:
    """Describe bare objects as a kind of prompt does; nothing where that kind cannot say them."""
    shapes = [wanted.shape for wanted in objects]
    if kind in ("single", "pair", "triple", "relation"):
        yield objects
    elif kind in _DRESSES:
        for chosen in itertools.product(_DRESSES[kind], repeat=len(objects)):
            yield tuple(replace(wanted, **dress) for wanted, dress in zip(objects, chosen, strict=True))
    elif kind == "mark":
        yield from _marked(objects)
    elif kind == "bolt":
        for index, shape in enumerate(shapes):
            if SENSE_NEXT_TO.get(shapes[1 - index]) == shape:
                said = list(objects)
                said[index] = replace(said[index], shape=POLYSEME)
                yield resolve(said)
    elif kind == "round":
        if set(shapes) & set(ROUND_SHAPES):
            yield tuple(replace(wanted, is_round=wanted.shape in ROUND_SHAPES) for wanted in objects)
    else:
        for left_open in ((0,), (1,), (0, 1)):
            yield tuple(replace(wanted, color=None) if i in left_open else wanted for i, wanted in enumerate(objects))


def _looks_of(objects: Objects) -> tuple[Look, ...]:
    """Return the looks that a request names, for the hash.

    A color that is left open becomes the first one that no other object has, in the order of the
    shapes, so that a request always falls into the same split, in either order.
    """
    free = [color for color in COLORS if color not in {wanted.color for wanted in objects}]
    left_open = sorted(wanted.shape for wanted in objects if wanted.color is None)
    return tuple(
        Look(
            shape=wanted.shape,
            color=wanted.color or free[left_open.index(wanted.shape)],
            texture=wanted.texture or UNNAMED_TEXTURE,
            size=wanted.size or UNNAMED_SIZE,
            mark=wanted.mark,
        )
        for wanted in objects
    )


@functools.cache
def all_prompts(kind: Kind, split: HeldOut) -> tuple[Expectation, ...]:
    """List every prompt of a kind and a split.

    The two orders of a pair are two prompts. Pairs and triples are split by their colors and
    shapes alone, so a held-out pair is held out in every dress.

    Args:
        kind: see :func:`suite`.
        split: ``"tune"`` or ``"report"``.

    Returns:
        Different expectations, always in the same order.

    Raises:
        BadSetting: an unknown kind or split.

    Example:
        >>> {kind: len(all_prompts(kind, "report")) for kind in ("single", "pair", "relation")}
        {'single': 13, 'pair': 274, 'relation': 1096}
    """
    if kind not in KINDS or split not in _STREAM:
        raise BadSetting(f"There is no suite {kind!r} of split {split!r}.", f"Kinds: {', '.join(KINDS)}.")
    count = {"single": 1, "texture": 1, "size": 1, "triple": 3}.get(kind, 2)
    relations = RELATIONS if kind == "relation" else (None,)
    asked: dict[Expectation, None] = {}
    for bare in _bare(count):
        for objects in _variants(kind, bare):
            if split_of(_looks_of(objects)) == split:
                asked.update(dict.fromkeys(Expectation(objects=objects, relation=relation) for relation in relations))
    return tuple(asked)


def suite(kind: Kind, split: HeldOut, count: int, seed: int = 0) -> tuple[Expectation, ...]:
    """Choose different prompts.

    Args:
        kind: ``"single"``, ``"pair"`` and ``"triple"`` name colors; ``"texture"`` and ``"size"``
            are single objects with that attribute; the rest are pairs: ``"attributes"`` with a
            texture or a size each, ``"relation"`` with a relation, ``"mark"`` with at least one
            sub-object, ``"bolt"`` with the planted polyseme and a neighbor that chooses its sense,
            ``"round"`` with the redundant word wherever it is true, ``"open"`` with one or both
            colors left open.
        split: tuning prompts for choosing settings, report prompts for the final figures.
        count: how many, at most ``len(all_prompts(kind, split))``.
        seed: which of them, and their order.

    Returns:
        ``count`` expectations; ``.prompt`` is the text.

    Raises:
        BadSetting: an unknown kind or split, or more different prompts than there are.

    Example:
        >>> [item.prompt for item in suite("pair", "tune", 2)] == [item.prompt for item in suite("pair", "tune", 2)]
        True
    """
    prompts = all_prompts(kind, split)
    if count > len(prompts):
        raise BadSetting(
            f"There are only {len(prompts)} {kind} prompts in split {split!r}.", f"Ask for {len(prompts)}."
        )
    order = np.random.default_rng([seed, KINDS.index(kind), _STREAM[split]]).permutation(len(prompts))
    return tuple(prompts[index] for index in order[:count])

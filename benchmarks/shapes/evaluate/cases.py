"""Drawn images whose verdict is known: true ones of every kind, and one mistake of every kind.

The judge is validated on them. A mistake is made by drawing a scene and asking for something
else, or by drawing it wrongly; all other things in image and prompt are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from t2ictl.shapes.captions import POLYSEME, RELATIONS, ROUND_SHAPES, SENSES, Expectation, expectation_of, sense_of
from t2ictl.shapes.draw import render_array
from t2ictl.shapes.sampling import place, sample_scene
from t2ictl.shapes.world import COLORS, MARKS, OWNERS, SHAPES, SIZES, TEXTURES, Look, Mark, Scene, relation_between


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image, what is asked for, and how that must be judged.

    Args:
        image: bytes of shape ``(Y, X, 3)``.
        asked: what is asked for.
        failure: one of :data:`t2ictl.shapes.verdict.FAILURES`, or None for a true image.

    Example:
        >>> Case(image=np.zeros((2, 2, 3), np.uint8), asked=Expectation(objects=()), failure="missing").failure
        'missing'
    """

    image: np.ndarray
    asked: Expectation
    failure: str | None = None


Maker = Callable[[np.random.Generator], Case]


def pick(words: Iterable[str], generator: np.random.Generator) -> str:
    """Choose one word, each equally likely.

    Args:
        words: at least one.
        generator: the only source of randomness.

    Returns:
        One of them.

    Example:
        >>> pick(["red"], np.random.default_rng(0))
        'red'
    """
    return str(generator.choice(list(words)))


def ask(asked: Expectation, index: int, **changes: Any) -> Expectation:
    """Ask something else of one object.

    Args:
        asked: what is asked so far.
        index: of the object.
        changes: fields of :class:`t2ictl.shapes.captions.Wanted`.

    Returns:
        The changed request.

    Example:
        >>> from t2ictl.shapes.captions import expect
        >>> ask(expect("a red star and a ring"), 1, color="blue").prompt
        'a red star and a blue ring'
    """
    objects = list(asked.objects)
    objects[index] = replace(objects[index], **changes)
    return replace(asked, objects=tuple(objects))


def _true(scene: Scene, asked: Expectation | None = None) -> Case:
    """Ask for what is drawn."""
    return Case(image=render_array(scene), asked=asked or expectation_of(scene))


def _with(generator: np.random.Generator, **fixed: Any) -> Case:
    """Draw a single object of a given shape, texture, size or kind of mark."""
    color, other = (str(word) for word in generator.permutation(COLORS)[:2])
    kind = fixed.pop("kind", None)
    look = {"shape": pick(SHAPES, generator), "size": pick(SIZES if kind is None else SIZES[1:], generator)}
    mark = None if kind is None else Mark(kind=kind, color=other)
    scene = place([Look(**{**look, **fixed}, color=color, mark=mark)], generator)
    assert scene is not None, "one object always fits"
    return _true(scene)


def related_scene(generator: np.random.Generator, relation: str) -> Scene:
    """Draw pairs until one stands so.

    Args:
        generator: the only source of randomness.
        relation: one of :data:`t2ictl.shapes.captions.RELATIONS`.

    Returns:
        A scene of two objects without marks.

    Example:
        >>> one, other = related_scene(np.random.default_rng(0), "above").objects
        >>> one.y < other.y
        True
    """
    while True:
        scene = sample_scene(2, generator, marked_share=0)
        if relation_between(*scene.objects) == relation:
            return scene


def _relation(generator: np.random.Generator, *, relation: str) -> Case:
    """Ask for a relation that clearly holds."""
    scene = related_scene(generator, relation)
    return _true(scene, replace(expectation_of(scene), relation=relation))


def _bolt(generator: np.random.Generator) -> Case:
    """Call a star or a cross a bolt: next to a neighbor that chooses this sense, or alone."""
    while True:
        scene = sample_scene(int(generator.integers(1, 3)), generator, marked_share=0)
        asked = expectation_of(scene)
        for index, wanted in enumerate(asked.objects):
            nouns = [POLYSEME if i == index else other.shape for i, other in enumerate(asked.objects)]
            sense = sense_of(nouns, index)
            if wanted.shape in SENSES and sense in (wanted.shape, POLYSEME):
                noun = None if sense == POLYSEME else POLYSEME
                return _true(scene, ask(asked, index, shape=sense, noun=noun))


def _round(generator: np.random.Generator) -> Case:
    """Call circles and rings round."""
    while True:
        scene = sample_scene(2, generator, marked_share=0)
        asked = expectation_of(scene)
        if any(wanted.shape in ROUND_SHAPES for wanted in asked.objects):
            objects = tuple(replace(wanted, is_round=wanted.shape in ROUND_SHAPES) for wanted in asked.objects)
            return _true(scene, replace(asked, objects=objects))


def _open(generator: np.random.Generator) -> Case:
    """Leave color, texture and size of one object open."""
    scene = sample_scene(2, generator, marked_share=0)
    return _true(scene, ask(expectation_of(scene), int(generator.integers(2)), color=None, texture=None, size=None))


def _sampled(generator: np.random.Generator, *, count: int, marked: float = 0.0) -> Case:
    """Draw a scene and ask for all of it."""
    return _true(sample_scene(count, generator, marked_share=marked))


#: True images by kind.
TRUE: dict[str, Maker] = {
    "single": partial(_sampled, count=1),
    "pair": partial(_sampled, count=2),
    "triple": partial(_sampled, count=3),
    **{texture: partial(_with, texture=texture) for texture in TEXTURES},
    **{size: partial(_with, size=size) for size in SIZES},
    **{f"{owner} with a {kind}": partial(_with, shape=owner, kind=kind) for owner in OWNERS for kind in MARKS},
    "pair with marks": partial(_sampled, count=2, marked=1.0),
    "triple with marks": partial(_sampled, count=3, marked=1.0),
    **{relation: partial(_relation, relation=relation) for relation in RELATIONS},
    "bolt": _bolt,
    "round": _round,
    "open": _open,
}

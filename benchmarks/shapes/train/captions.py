"""Training captions: true in most cases, terse, and wrong on purpose now and then.

As captions from the web are: a *ghost* caption names an object that is not in the image, a
*swap* caption exchanges an attribute of two objects. Without them a model of this size soon
answers every pair correctly; with them it keeps making the mistakes that large models make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from t2ictl.shapes.captions import (
    CONVERSE,
    MAX_OBJECTS,
    POLYSEME,
    ROUND_SHAPES,
    SENSES,
    Expectation,
    Wanted,
    sense_of,
    wanted_from,
)
from t2ictl.shapes.sampling import sample_looks
from t2ictl.shapes.world import Look, Placed, Scene, relation_between

#: How often a training caption says an attribute that the object has. What is left unsaid is open.
SAY_COLOR = 0.9
SAY_TEXTURE = 0.9
SAY_SIZE = 0.5
#: How often it uses a planted word where that is possible, and a relation where one is clear.
SAY_ROUND = 0.2
SAY_BOLT = 0.35
SAY_RELATION = 0.4


def _ghost(looks: Sequence[Look], generator: np.random.Generator) -> Look:
    """Invent an object of a color and a shape that the scene does not have."""
    colors = {look.color for look in looks} | {look.mark.color for look in looks if look.mark is not None}
    shapes = {look.shape for look in looks}
    while True:
        look = sample_looks(1, generator)[0]
        if look.color not in colors and look.shape not in shapes:
            return look


def _swap(looks: list[Look], generator: np.random.Generator) -> list[Look]:
    """Exchange the color of two objects, or, one time in four each where they differ, texture or mark."""
    i, j = (int(k) for k in generator.choice(len(looks), size=2, replace=False))
    one, other = looks[i], looks[j]
    point = generator.random()
    field = "color"
    if one.mark != other.mark:
        field = "mark" if point < 0.5 else "color"
    elif one.texture != other.texture and point < 0.25:
        field = "texture"
    looks[i] = replace(one, **{field: getattr(other, field)})
    looks[j] = replace(other, **{field: getattr(one, field)})
    return looks


def _keep(word: str | None, share: float, generator: np.random.Generator) -> str | None:
    """Leave a word out now and then; always draws, so that captions stay comparable."""
    return word if generator.random() < share else None


def _say(look: Look, generator: np.random.Generator) -> Wanted:
    """Describe one object, leaving words out now and then."""
    full = wanted_from(look)
    return replace(
        full,
        color=_keep(full.color, SAY_COLOR, generator),
        texture=_keep(full.texture, SAY_TEXTURE, generator),
        size=_keep(full.size, SAY_SIZE, generator),
        is_round=look.shape in ROUND_SHAPES and generator.random() < SAY_ROUND,
    )


def _with_bolt(wanted: list[Wanted], generator: np.random.Generator) -> list[Wanted]:
    """Call a star or a cross a bolt where that keeps its meaning, or leaves it open."""
    for index, each in enumerate(wanted):
        if each.shape not in SENSES or len(wanted) > 2 or generator.random() >= SAY_BOLT:
            continue
        nouns = [POLYSEME if place == index else other.shape for place, other in enumerate(wanted)]
        if sense_of(nouns, index) in (each.shape, POLYSEME):
            wanted[index] = replace(each, noun=POLYSEME)
            break
    return wanted


def _relation(objects: Sequence[Placed], generator: np.random.Generator) -> str | None:
    """State how the first object stands to the second, now and then and only where it is clear."""
    if len(objects) != 2 or generator.random() >= SAY_RELATION:
        return None
    return relation_between(objects[0], objects[1])


def training_caption(scene: Scene, generator: np.random.Generator, *, ghost_share: float, swap_share: float) -> str:
    """Describe a scene the way training captions do: shuffled, sometimes terse, sometimes wrong.

    Args:
        scene: one to three objects.
        generator: the only source of randomness.
        ghost_share: part of the captions that names an undrawn object, 0 to 1.
        swap_share: part of the captions of several objects that exchanges an attribute, 0 to 1.

    Returns:
        A prompt of the closed grammar.

    Example:
        >>> from t2ictl.shapes.captions import expect
        >>> from t2ictl.shapes.sampling import sample_scene
        >>> generator = np.random.default_rng(0)
        >>> text = training_caption(sample_scene(2, generator), generator, ghost_share=0, swap_share=0)
        >>> len(expect(text).objects)
        2
    """
    looks = [item.look for item in scene.objects]
    relation = _relation(scene.objects, generator)
    if len(looks) > 1 and generator.random() < swap_share:
        looks = _swap(looks, generator)
    if relation is None and len(looks) < MAX_OBJECTS and generator.random() < ghost_share:
        looks.append(_ghost(looks, generator))
    order = [int(index) for index in generator.permutation(len(looks))]
    wanted = _with_bolt([_say(looks[index], generator) for index in order], generator)
    if relation is not None and order[0] == 1:
        relation = CONVERSE[relation]
    return Expectation(objects=tuple(wanted), relation=relation).prompt

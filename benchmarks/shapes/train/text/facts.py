"""What a short text is about: a few things with attributes and places, which all its sentences agree on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2ictl.benchmarks.shapes.train.text.words import ALL_COLORS, EVERYDAY, EVERYDAY_ADJECTIVES, PLURALS
from t2ictl.shapes.captions import NAMED_SIZES, NAMED_TEXTURES
from t2ictl.shapes.world import COLORS, MARKS, SHAPES, Look, Mark, split_of


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One kind of thing of a text.

    Args:
        noun: a shape or an everyday noun.
        color: always has one.
        texture: or None.
        size: or None.
        manner: an everyday adjective, or None.
        mark: a sub-object of another color, or None.
        count: how many there are.
        column: place from left to right.
        row: place from top to bottom.

    Example:
        >>> Thing(noun="fish", color="red", count=2, column=0, row=0).name
        'fish'
    """

    noun: str
    color: str
    column: int
    row: int
    texture: str | None = None
    size: str | None = None
    manner: str | None = None
    mark: Mark | None = None
    count: int = 1

    @property
    def name(self) -> str:
        """The noun in the number of the thing."""
        return self.noun if self.count == 1 else PLURALS[self.noun]


def _choose(generator: np.random.Generator, words: tuple[str, ...], share: float) -> str | None:
    """Choose a word, or None."""
    return words[int(generator.integers(len(words)))] if generator.random() < share else None


def is_seen(things: tuple[Thing, ...]) -> bool:
    """Return whether the shapes of a text, taken together and in twos, are combinations of the training split.

    Args:
        things: of one text.

    Returns:
        True also where there are fewer than two shapes.

    Example:
        >>> star = Thing(noun="star", color="red", column=0, row=0)
        >>> is_seen((star, Thing(noun="ring", color="blue", column=1, row=0)))
        False
    """
    looks = [Look(shape=t.noun, color=t.color) for t in things if t.noun in SHAPES and t.color in COLORS]
    pairs = [(one, other) for place, one in enumerate(looks) for other in looks[:place]]
    return all(split_of(pair) == "train" for pair in pairs) and (len(looks) < 3 or split_of(looks) == "train")


def sample_things(generator: np.random.Generator) -> tuple[Thing, ...]:
    """Invent one to four things of different nouns, colors and places.

    Two shapes only ever occur together in combinations of the training split.

    Args:
        generator: the only source of randomness.

    Returns:
        The things; no two share a column or a row.

    Example:
        >>> things = sample_things(np.random.default_rng(0))
        >>> len({thing.noun for thing in things}) == len(things)
        True
    """
    while True:
        count = int(generator.choice((1, 2, 3, 4), p=(0.2, 0.45, 0.25, 0.1)))
        shape_share = float(generator.choice((0.0, 0.5, 1.0), p=(0.2, 0.4, 0.4)))
        places = generator.permutation(4)[:count], generator.permutation(4)[:count]
        shapes, others = list(generator.permutation(SHAPES)), list(generator.permutation(EVERYDAY))
        free = [str(color) for color in generator.permutation(COLORS)]
        more = [str(color) for color in generator.permutation(ALL_COLORS)]
        things: list[Thing] = []
        for index in range(count):
            is_shape = generator.random() < shape_share
            noun = str((shapes if is_shape else others).pop())
            taken = {thing.color for thing in things} | {t.mark.color for t in things if t.mark is not None}
            color = next(color for color in (free if is_shape else more) if color not in taken)
            unused = [other for other in free if other != color and other not in taken]
            has_mark = is_shape and count < 3 and bool(unused) and generator.random() < 0.15
            kind = MARKS[int(generator.integers(len(MARKS)))]
            things.append(
                Thing(
                    noun=noun,
                    color=color,
                    column=int(places[0][index]),
                    row=int(places[1][index]),
                    texture=None if has_mark else _choose(generator, NAMED_TEXTURES, 0.35 if is_shape else 0.1),
                    size=_choose(generator, NAMED_SIZES, 0.4),
                    manner=None if is_shape else _choose(generator, EVERYDAY_ADJECTIVES, 0.4),
                    mark=Mark(kind=kind, color=unused[0]) if has_mark else None,
                    count=int(generator.choice((1, 2, 3, 4, 5), p=(0.8, 0.1, 0.06, 0.02, 0.02))),
                )
            )
        if is_seen(tuple(things)):
            return tuple(things)


def relations_of(one: Thing, other: Thing) -> tuple[str, ...]:
    """List the ways to say how a thing stands to another.

    Args:
        one: the first.
        other: at another column and row.

    Returns:
        Phrases that go before a noun; "next to" and "near" only for neighbors.

    Example:
        >>> ring = Thing(noun="ring", color="red", column=4, row=3)
        >>> relations_of(Thing(noun="dog", color="pink", column=0, row=3), ring)
        ('left of', 'to the left of')
    """
    dx, dy = one.column - other.column, one.row - other.row
    found: tuple[str, ...] = ()
    if abs(dx) >= abs(dy):
        found += ("left of", "to the left of") if dx < 0 else ("right of", "to the right of")
    if abs(dy) >= abs(dx):
        found += ("above", "over") if dy < 0 else ("below", "under")
    return found + (("next to", "near", "beside") if abs(dx) + abs(dy) <= 2 else ())

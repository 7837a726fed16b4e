"""Prompts of the closed grammar, and what an image of each must show.

``a [small|large] [striped|dotted] [round] [color] shape [with a color dot|bar]``, one to three
times, joined by commas and ``and``; or two of them joined by a relation such as ``left of``.
Three things are planted for methods that analyse words: *bolt* has two senses, and its
neighbor chooses (next to a circle or a ring it is a star, next to a square or a triangle a
cross); *round* is redundant, since only circles and rings are called so; and some words have
several tokens. What a prompt leaves out is open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from t2ictl.errors import BadSetting
from t2ictl.shapes.world import (
    COLORS,
    MARKS,
    OWNERS,
    SHAPES,
    SIZES,
    TEXTURES,
    UNNAMED_SIZE,
    UNNAMED_TEXTURE,
    Look,
    Mark,
    Scene,
)

NAMED_TEXTURES = tuple(texture for texture in TEXTURES if texture != UNNAMED_TEXTURE)
NAMED_SIZES = tuple(size for size in SIZES if size != UNNAMED_SIZE)
MAX_OBJECTS = 3

#: How the first object of a prompt may stand to the second.
RELATIONS = ("left of", "right of", "above", "below")
CONVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

#: The planted word with two senses, and which one each neighbor chooses.
POLYSEME = "bolt"
SENSE_NEXT_TO = {"circle": "star", "ring": "star", "square": "cross", "triangle": "cross"}
SENSES = ("star", "cross")

#: The planted word that says nothing which the noun does not say.
REDUNDANT = "round"
ROUND_SHAPES = ("circle", "ring")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One object as a prompt asks for it; None leaves an attribute open.

    Args:
        shape: one of the shapes, or ``"bolt"`` where no neighbor chooses its sense.
        color: a color word or None.
        texture: ``"striped"``, ``"dotted"`` or None.
        size: ``"small"``, ``"large"`` or None.
        mark: a sub-object, or None for an object without one.
        is_round: whether the redundant word is said.
        noun: the word for the shape if it is another one, that is ``"bolt"``.

    Example:
        >>> Wanted(shape="star", color="red").phrase
        'a red star'
    """

    shape: str
    color: str | None = None
    texture: str | None = None
    size: str | None = None
    mark: Mark | None = None
    is_round: bool = False
    noun: str | None = None

    @property
    def phrase(self) -> str:
        """The words of this object, article first."""
        redundant = REDUNDANT if self.is_round else None
        words = ("a", self.size, self.texture, redundant, self.color, self.noun or self.shape)
        mark = f" with a {self.mark.color} {self.mark.kind}" if self.mark is not None else ""
        return " ".join(word for word in words if word is not None) + mark

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes that satisfy the noun: one, or both senses of an undecided bolt."""
        return SENSES if self.shape == POLYSEME else (self.shape,)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What an image of a prompt must show: these objects and no others.

    Args:
        objects: in the order of the prompt.
        relation: how the first of two objects stands to the second, or None.

    Example:
        >>> Expectation(objects=(Wanted(shape="star"), Wanted(shape="ring", color="blue"))).prompt
        'a star and a blue ring'
    """

    objects: tuple[Wanted, ...]
    relation: str | None = None

    @property
    def prompt(self) -> str:
        """The prompt in the closed grammar; :func:`expect` reads it back."""
        phrases = [wanted.phrase for wanted in self.objects]
        if self.relation is not None:
            return f"{phrases[0]} {self.relation} {phrases[1]}"
        return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def wanted_from(look: Look) -> Wanted:
    """Ask for everything that can be said about a look.

    Args:
        look: of a drawn object.

    Returns:
        A request with a texture and a size only where these have a word.

    Example:
        >>> wanted_from(Look(shape="star", color="red", size="small")).phrase
        'a small red star'
    """
    return Wanted(
        shape=look.shape,
        color=look.color,
        texture=look.texture if look.texture in NAMED_TEXTURES else None,
        size=look.size if look.size in NAMED_SIZES else None,
        mark=look.mark,
    )


def expectation_of(scene: Scene) -> Expectation:
    """Ask for a scene exactly as it is drawn.

    Args:
        scene: at least one object.

    Returns:
        The full request, in the scene's order.

    Example:
        >>> from t2ictl.shapes.world import Placed
        >>> item = Placed(look=Look(shape="star", color="red", texture="dotted"), x=30, y=30, radius=9)
        >>> expectation_of(Scene(objects=(item,))).prompt
        'a dotted red star'
    """
    return Expectation(objects=tuple(wanted_from(item.look) for item in scene.objects))


def sense_of(shapes: Sequence[str], index: int) -> str:
    """Return which shape the noun at a place of a prompt means, given all nouns.

    Args:
        shapes: the nouns of the prompt.
        index: which of them.

    Returns:
        The noun itself; for ``"bolt"`` the sense that its neighbors choose, or ``"bolt"`` if
        none or two different ones are chosen.

    Example:
        >>> sense_of(["bolt", "ring"], 0), sense_of(["bolt"], 0), sense_of(["ring"], 0)
        ('star', 'bolt', 'ring')
    """
    if shapes[index] != POLYSEME:
        return shapes[index]
    chosen = {SENSE_NEXT_TO[shape] for shape in shapes if shape in SENSE_NEXT_TO}
    return chosen.pop() if len(chosen) == 1 else POLYSEME


def _expect_mark(text: str, prompt: str) -> Mark:
    """Read ``a color dot`` or ``a color bar``."""
    words = text.split()
    if len(words) != 3 or words[1] not in COLORS or words[2] not in MARKS:
        raise BadSetting(f"Cannot use 'with {text}' of {prompt!r}.", f"Use 'with a color {' or '.join(MARKS)}'.")
    return Mark(kind=words[2], color=words[1])


def _expect_phrase(phrase: str, prompt: str) -> Wanted:
    """Read one object, its attributes in any order."""
    head, _, tail = phrase.partition(" with ")
    words = head.split()
    if words and words[0] in ("a", "an", "the"):
        words = words[1:]
    if not words or words[-1] not in (*SHAPES, POLYSEME):
        raise BadSetting(f"No shape at the end of {head!r} in {prompt!r}.", f"Use one of {', '.join(SHAPES)}.")
    found: dict[str, str] = {}
    vocabulary = {"size": NAMED_SIZES, "texture": NAMED_TEXTURES, "color": COLORS, "redundant": (REDUNDANT,)}
    for word in words[:-1]:
        kind = next((kind for kind, values in vocabulary.items() if word in values), None)
        if kind is None or kind in found:
            known = ", ".join(NAMED_SIZES + NAMED_TEXTURES + COLORS)
            raise BadSetting(f"Cannot use {word!r} of {prompt!r} here.", f"Use at most one word a kind of: {known}.")
        found[kind] = word
    is_round = found.pop("redundant", None) is not None
    if is_round and words[-1] not in ROUND_SHAPES:
        raise BadSetting(f"{words[-1]!r} of {prompt!r} is not round.", f"Say it of {' and '.join(ROUND_SHAPES)} only.")
    mark = _expect_mark(tail, prompt) if tail else None
    if mark is not None and (words[-1] not in OWNERS or "texture" in found or found.get("color") == mark.color):
        raise BadSetting(
            f"{phrase!r} of {prompt!r} cannot be drawn.", f"Marks go on a plain {', '.join(OWNERS)} of another color."
        )
    return Wanted(shape=words[-1], mark=mark, is_round=is_round, **found)


def expect(prompt: str) -> Expectation:
    """Read a prompt of the closed grammar.

    Args:
        prompt: such as ``"a small striped green star and a large yellow ring"``, ``"a red circle
            with a blue dot"`` or ``"a star left of a ring"``.

    Returns:
        What an image must show.

    Raises:
        BadSetting: a word outside the grammar, not one to three objects, or a relation among three.

    Example:
        >>> [wanted.size for wanted in expect("a small red star and a ring").objects]
        ['small', None]
        >>> expect("a red star above a ring").relation
        'above'
    """
    text = prompt.strip().rstrip(".").lower()
    related = re.split(rf"\s+({'|'.join(RELATIONS)})\s+", text)
    relation = related[1] if len(related) == 3 else None
    if len(related) > 3 or (relation is not None and re.search(r",|\band\b", text)):
        raise BadSetting(f"{prompt!r} relates more than two objects.", "Relate two, or join up to three by 'and'.")
    phrases = related[::2] if relation else re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", text)
    if not 1 <= len(phrases) <= MAX_OBJECTS:
        raise BadSetting(f"{prompt!r} names {len(phrases)} objects.", f"Name 1 to {MAX_OBJECTS}.")
    return Expectation(objects=resolve([_expect_phrase(phrase, prompt) for phrase in phrases]), relation=relation)


def resolve(objects: Sequence[Wanted]) -> tuple[Wanted, ...]:
    """Let neighbors choose the sense of every bolt.

    Args:
        objects: of one prompt, as they are said.

    Returns:
        The same objects; a bolt whose sense is chosen has that shape, and ``noun`` keeps the word.

    Example:
        >>> [wanted.shape for wanted in resolve([Wanted(shape="bolt"), Wanted(shape="square")])]
        ['cross', 'square']
    """
    nouns = [wanted.shape for wanted in objects]
    senses = [sense_of(nouns, index) for index in range(len(nouns))]
    return tuple(
        replace(wanted, shape=sense, noun=POLYSEME) if sense != wanted.shape else wanted
        for wanted, sense in zip(objects, senses, strict=True)
    )

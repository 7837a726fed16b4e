"""Scenes to captions, and captions back to what a picture of them must show.

The grammar is closed: ``a [size] [texture] [color] shape``, one to three times, joined by
commas and ``and``. Training captions are wrong on purpose now and then, as captions from
the web are: a *ghost* caption names an object that is not in the picture, a *swap* caption
exchanges an attribute of two objects. Without them a model of this size soon answers every
pair correctly; with them it keeps making the mistakes that large models make.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from t2ictl.errors import BadSetting
from t2ictl.shapes.world import (
    COLORS,
    SHAPES,
    SIZES,
    TEXTURES,
    UNNAMED_SIZE,
    UNNAMED_TEXTURE,
    Look,
    Scene,
    sample_looks,
)

NAMED_TEXTURES = tuple(texture for texture in TEXTURES if texture != UNNAMED_TEXTURE)
NAMED_SIZES = tuple(size for size in SIZES if size != UNNAMED_SIZE)
MAX_OBJECTS = 3

#: How often a training caption says an attribute that the object has. What is left unsaid is open.
SAY_COLOR = 0.9
SAY_TEXTURE = 0.9
SAY_SIZE = 0.5


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One object as a prompt asks for it; None leaves an attribute open.

    Args:
        shape: the noun.
        color: a color word or None.
        texture: ``"striped"``, ``"dotted"`` or None.
        size: ``"small"``, ``"large"`` or None.

    Example:
        >>> Wanted(shape="star", color="red").phrase
        'a red star'
    """

    shape: str
    color: str | None = None
    texture: str | None = None
    size: str | None = None

    @property
    def phrase(self) -> str:
        """The words of this object, article first."""
        words = ("a", self.size, self.texture, self.color, self.shape)
        return " ".join(word for word in words if word is not None)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a picture of a prompt must show: these objects and no others.

    Args:
        objects: in the order of the prompt.

    Example:
        >>> Expectation(objects=(Wanted(shape="star"), Wanted(shape="ring", color="blue"))).prompt
        'a star and a blue ring'
    """

    objects: tuple[Wanted, ...]

    @property
    def prompt(self) -> str:
        """The prompt in the closed grammar; :func:`expect` reads it back."""
        phrases = [wanted.phrase for wanted in self.objects]
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


def _expect_phrase(phrase: str, prompt: str) -> Wanted:
    """Read ``a [size] [texture] [color] shape``, attributes in any order."""
    words = phrase.split()
    if words and words[0] in ("a", "an", "the"):
        words = words[1:]
    if not words or words[-1] not in SHAPES:
        raise BadSetting(f"No shape at the end of {phrase!r} in {prompt!r}.", f"Use one of {', '.join(SHAPES)}.")
    found: dict[str, str] = {}
    vocabulary = {"size": NAMED_SIZES, "texture": NAMED_TEXTURES, "color": COLORS}
    for word in words[:-1]:
        kind = next((kind for kind, values in vocabulary.items() if word in values), None)
        if kind is None or kind in found:
            known = ", ".join(NAMED_SIZES + NAMED_TEXTURES + COLORS)
            raise BadSetting(f"Cannot use {word!r} of {prompt!r} here.", f"Use at most one word a kind of: {known}.")
        found[kind] = word
    return Wanted(shape=words[-1], **found)


def expect(prompt: str) -> Expectation:
    """Read a prompt of the closed grammar.

    Args:
        prompt: such as ``"a small striped green star and a large yellow ring"``.

    Returns:
        What a picture must show.

    Raises:
        BadSetting: a word outside the grammar, or not one to three objects.

    Example:
        >>> [wanted.size for wanted in expect("a small red star and a ring").objects]
        ['small', None]
    """
    phrases = re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", prompt.strip().rstrip(".").lower())
    if not 1 <= len(phrases) <= MAX_OBJECTS:
        raise BadSetting(f"{prompt!r} names {len(phrases)} objects.", f"Name 1 to {MAX_OBJECTS}.")
    return Expectation(objects=tuple(_expect_phrase(phrase, prompt) for phrase in phrases))


def _ghost(looks: Sequence[Look], generator: np.random.Generator) -> Look:
    """Invent an object of a color and a shape that the scene does not have."""
    colors, shapes = {look.color for look in looks}, {look.shape for look in looks}
    while True:
        look = sample_looks(1, generator)[0]
        if look.color not in colors and look.shape not in shapes:
            return look


def _swap(looks: list[Look], generator: np.random.Generator) -> list[Look]:
    """Exchange the color of two objects, or in a quarter of the cases a texture that differs."""
    i, j = (int(k) for k in generator.choice(len(looks), size=2, replace=False))
    one, other = looks[i], looks[j]
    field = "texture" if one.texture != other.texture and generator.random() < 0.25 else "color"
    looks[i] = replace(one, **{field: getattr(other, field)})
    looks[j] = replace(other, **{field: getattr(one, field)})
    return looks


def _keep(word: str | None, share: float, generator: np.random.Generator) -> str | None:
    """Leave a word out now and then; always draws, so that captions stay comparable."""
    return word if generator.random() < share else None


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
        >>> from t2ictl.shapes.world import sample_scene
        >>> generator = np.random.default_rng(0)
        >>> text = training_caption(sample_scene(2, generator), generator, ghost_share=0, swap_share=0)
        >>> len(expect(text).objects)
        2
    """
    looks = [item.look for item in scene.objects]
    if len(looks) > 1 and generator.random() < swap_share:
        looks = _swap(looks, generator)
    if len(looks) < MAX_OBJECTS and generator.random() < ghost_share:
        looks.append(_ghost(looks, generator))
    wanted = []
    for index in generator.permutation(len(looks)):
        full = wanted_from(looks[index])
        wanted.append(
            Wanted(
                shape=full.shape,
                color=_keep(full.color, SAY_COLOR, generator),
                texture=_keep(full.texture, SAY_TEXTURE, generator),
                size=_keep(full.size, SAY_SIZE, generator),
            )
        )
    return Expectation(objects=tuple(wanted)).prompt

"""Short texts of a small probabilistic grammar, wider than the captions of the world.

Sentences of a text agree: what a later one says of a thing is what an earlier one said, so
that an encoder that fills gaps must keep track of which attribute belongs to which noun.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from t2ictl.benchmarks.shapes.train.text.facts import Thing, relations_of, sample_things
from t2ictl.benchmarks.shapes.train.text.words import ALL_COLORS, NUMBERS
from t2ictl.shapes.world import MARKS, SHAPES

#: How many sentences follow the first one.
MORE_SENTENCES = (0, 1, 2, 3)
MORE_SENTENCES_SHARE = (0.3, 0.3, 0.25, 0.15)


class Speaker:
    """Describes a few things; every method draws from the generator.

    Args:
        things: the facts.
        generator: the only source of randomness.

    Example:
        >>> thing = Thing(noun="dog", color="red", column=0, row=0)
        >>> Speaker((thing,), np.random.default_rng(0)).definite(thing, bare=True)
        'the dog'
    """

    def __init__(self, things: tuple[Thing, ...], generator: np.random.Generator) -> None:
        self.things = things
        self.generator = generator

    def pick(self, *options: str) -> str:
        """Choose one of some words."""
        return options[int(self.generator.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """Return True in a share of the cases."""
        return bool(self.generator.random() < share)

    def verb(self, thing: Thing) -> str:
        """Choose a verb of place in the number of a thing."""
        return self.pick("is", "is", "stands", "lies") if thing.count == 1 else self.pick("are", "are", "stand", "lie")

    def adjectives(self, thing: Thing, share: float = 0.9) -> list[str]:
        """Choose which attributes are said before the noun."""
        words = (thing.size, thing.manner, thing.texture, thing.color)
        return [word for word in words if word is not None and self.chance(share)]

    def marked(self, thing: Thing) -> str:
        """State the mark of a thing, or now and then that it has none."""
        if thing.mark is not None:
            return f" with a {thing.mark.color} {thing.mark.kind}"
        if thing.noun in SHAPES and self.chance(0.08):
            return self.pick(" without a ", " with no ") + self.pick(*MARKS)
        return ""

    def clause(self, thing: Thing) -> str:
        """State attributes in a relative clause."""
        words = self.adjectives(thing, 0.7) or [thing.color]
        link = self.pick("that", "which") + (" is " if thing.count == 1 else " are ")
        return f"{thing.name} {link}{' and '.join(words)}"

    def bound(self, thing: Thing) -> str:
        """Name a thing with its attributes, without an article."""
        if self.chance(0.2):
            return self.clause(thing)
        return " ".join([*self.adjectives(thing), thing.name]) + self.marked(thing)

    def indefinite(self, thing: Thing) -> str:
        """Introduce a thing: an article or a number, attributes, noun."""
        words = self.bound(thing)
        if thing.count > 1:
            return f"{NUMBERS[thing.count]} {words}"
        return ("an " if words[0] in "aeiou" else "a ") + words

    def definite(self, thing: Thing, bare: bool | None = None) -> str:
        """Name a thing again, with or without attributes."""
        if bare is None:
            bare = self.chance(0.4)
        return "the " + (thing.name if bare else self.bound(thing))

    def listing(self, phrases: list[str]) -> str:
        """Join phrases by commas and "and"."""
        return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))

    def first_sentence(self) -> str:
        """Introduce all things."""
        said = self.listing([self.indefinite(thing) for thing in self.things])
        single = self.things[0].count == 1
        options = (
            said,
            f"{self.pick('a picture', 'a photo', 'an image', 'a drawing')} of {said}",
            f"there {'is' if single else 'are'} {said}",
            f"{self.pick('we', 'they')} see {said}",
            f"this {self.pick('picture', 'image', 'photo')} shows {said}",
            f"in the {self.pick('picture', 'image')} there {'is' if single else 'are'} {said}",
        )
        return self.pick(said, *options)

    def two(self) -> tuple[Thing, Thing]:
        """Choose two different things."""
        one, other = self.generator.choice(len(self.things), size=2, replace=False)
        return self.things[int(one)], self.things[int(other)]

    def relation(self) -> str:
        """State how two things stand to each other."""
        one, other = self.two()
        way = self.pick(*relations_of(one, other))
        if self.chance(0.3):
            return f"{way} {self.definite(other)} {self.verb(one)} {self.definite(one)}"
        return f"{self.definite(one)} {self.verb(one)} {way} {self.definite(other)}"

    def contrast(self) -> str:
        """Contrast one attribute of two things."""
        one, other = self.two()
        be, other_be = ("is" if thing.count == 1 else "are" for thing in (one, other))
        first, second = self.definite(one, bare=True), self.definite(other, bare=True)
        options = (
            f"{first} {be} {one.color} {self.pick('and', 'but', 'while')} {second} {other_be} {other.color}",
            f"{first} {be} {one.color}, but {second} {other_be} not",
            f"{first} {be} not {other.color}, {second} {other_be}",
        )
        return self.pick(*options)

    def attribute(self) -> str:
        """State attributes of one thing, by its noun, a pronoun or its color."""
        thing = self.things[int(self.generator.integers(len(self.things)))]
        be = "is" if thing.count == 1 else "are"
        options = [f"the color of {self.definite(thing, bare=True)} is {thing.color}"]
        for word in self.adjectives(thing):
            options.append(f"{self.definite(thing, bare=True)} {be} {self.pick('', 'also ')}{word}")
            if word != thing.color and thing.count == 1:
                options.append(f"the {thing.color} one is {word}")
        if thing.count == 1:
            options.append(f"the {thing.color} {self.pick('one', 'thing')} is {self.indefinite_noun(thing)}")
        if thing.mark is not None:
            options.append(f"the {thing.mark.kind} of {self.definite(thing, bare=True)} is {thing.mark.color}")
        if len(self.things) == 1:
            subject = "it" if thing.count == 1 else "they"
            options.append(f"{subject} {be} {self.listing(self.adjectives(thing) or [thing.color])}")
        return self.pick(*options)

    def indefinite_noun(self, thing: Thing) -> str:
        """The noun alone with its article."""
        return ("an " if thing.noun[0] in "aeiou" else "a ") + thing.noun

    def negation(self) -> str:
        """Deny what is not there or not so."""
        nouns = {thing.noun for thing in self.things}
        marks = {thing.mark.color for thing in self.things if thing.mark is not None}
        colors = {thing.color for thing in self.things} | marks
        absent = self.pick(*(shape for shape in SHAPES if shape not in nouns))
        color = self.pick(*(color for color in ALL_COLORS if color not in colors))
        thing = self.things[int(self.generator.integers(len(self.things)))]
        be = "is" if thing.count == 1 else "are"
        options = (
            f"there is no {absent}",
            f"there is no {absent} in the picture",
            f"nothing is {color}",
            f"{self.definite(thing, bare=True)} {be} not {color}",
            f"{self.definite(thing)} {be} here, but no {absent}",
        )
        return self.pick(*options)

    def count(self) -> str:
        """State how many there are of something."""
        total = sum(thing.count for thing in self.things)
        thing = self.things[int(self.generator.integers(len(self.things)))]
        be = "is" if thing.count == 1 else "are"
        options = [f"there {be} only {NUMBERS[thing.count]} {thing.name}"]
        if 1 < total <= max(NUMBERS):
            options.append(f"there are {NUMBERS[total]} things in the picture")
        if len(self.things) > 1 and thing.count == 1:
            options.append(f"one of them is {thing.color}")
        return self.pick(*options)

    def neighbor(self) -> str:
        """Introduce two things one after the other, the second by its place beside "it" or "them"."""
        one, other = self.two()
        way = self.pick(*relations_of(other, one))
        be = "is" if one.count == 1 else "are"
        pronoun = "it" if one.count == 1 else "them"
        second = self.definite(other, bare=False)
        return f"here {be} {self.definite(one)}. {way} {pronoun} {self.verb(other)} {second}"

    def later_sentence(self) -> str:
        """Add something about what was introduced."""
        ways: list[Callable[[], str]] = [self.attribute, self.attribute, self.negation, self.count]
        if len(self.things) > 1:
            ways += [self.relation, self.relation, self.relation, self.contrast, self.contrast, self.neighbor]
        return ways[int(self.generator.integers(len(ways)))]()


def write(text: str) -> str:
    """Set a capital at the start of each sentence and a full stop at the end."""
    return " ".join(part[0].upper() + part[1:] + "." for part in text.split(". "))


def sample_text(generator: np.random.Generator) -> str:
    """Write a text of one to five sentences, or a bare phrase.

    Args:
        generator: the only source of randomness.

    Returns:
        English in words of the vocabulary.

    Example:
        >>> isinstance(sample_text(np.random.default_rng(1)), str)
        True
    """
    speaker = Speaker(sample_things(generator), generator)
    more = int(generator.choice(MORE_SENTENCES, p=MORE_SENTENCES_SHARE))
    if more == 0 and speaker.chance(0.6):
        if len(speaker.things) == 2 and speaker.chance(0.4):
            one, other = speaker.things
            way = speaker.pick(*relations_of(one, other))
            return f"{speaker.indefinite(one)} {way} {speaker.indefinite(other)}"
        return speaker.first_sentence()
    sentences = [speaker.first_sentence(), *(speaker.later_sentence() for _ in range(more))]
    return write(". ".join(sentences))

"""Units of work: batches of (prompt, seed) pairs, formed from the plan alone, and the shards that take them.

A unit goes through all arms together. It is formed before the work is shared out, so an image
is always made in the same batch, whoever makes it; and it is done when all its rows are on disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from t2ictl.benchmarks.suites.base import Item
from t2ictl.errors import BadSetting

__all__ = ["Pair", "Shard", "Unit", "direction_seed", "noise_seed", "units_of"]

SEED_BITS = 32  # torch's CPU generator uses no more of a seed


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt and a seed: one image in every arm."""

    item: Item
    seed: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One batch.

    Args:
        number: its place in the plan, from 0.
        pairs: what it makes in every arm.
    """

    number: int
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A share of the units.

    Args:
        index: which share, from 1.
        count: of how many.

    Example:
        >>> Shard.read("2/3").name
        '2of3'
    """

    index: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str) -> Shard:
        """Read ``i/n``.

        Args:
            text: for example ``"1/4"``.

        Returns:
            The shard.

        Raises:
            BadSetting: if it is something else, or ``i`` is not one of ``1`` to ``n``.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise BadSetting(f"There is no shard {text!r}.", "Write i/n with i from 1 to n: --shard 1/4.")
        return cls(index=int(found[1]), count=int(found[2]))

    @property
    def name(self) -> str:
        """Name of the files of whoever takes this share."""
        return f"{self.index}of{self.count}"

    def takes(self, unit: Unit) -> bool:
        """Return whether a unit is in this share."""
        return unit.number % self.count == self.index - 1


def units_of(items: Sequence[Item], seeds: Sequence[int], batch: int) -> tuple[Unit, ...]:
    """Form the batches.

    Args:
        items: the prompts.
        seeds: the seeds, the same for each prompt.
        batch: most pairs in a unit.

    Returns:
        The units; the seeds of a prompt follow one another.

    Example:
        >>> items = [Item(id=name, category="pair", prompt=name) for name in "abc"]
        >>> [[(pair.item.id, pair.seed) for pair in unit.pairs] for unit in units_of(items, [0, 1], 4)]
        [[('a', 0), ('a', 1), ('b', 0), ('b', 1)], [('c', 0), ('c', 1)]]
    """
    pairs = [Pair(item=item, seed=seed) for item in items for seed in seeds]
    return tuple(
        Unit(number=number, pairs=tuple(pairs[start : start + batch]))
        for number, start in enumerate(range(0, len(pairs), batch))
    )


def _hashed(*parts: object) -> int:
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[: SEED_BITS // 8], "big")


def noise_seed(pair: Pair, candidate: int = 0) -> int:
    """Return the seed of the generator from which an image starts.

    It depends on the prompt too: noises that all prompts shared would count as one draw where prompts are
    taken for independent. All arms have the same one; ``t2ictl generate --seed`` takes it as it is.

    Args:
        pair: prompt and seed.
        candidate: 0 for the image that every arm makes; the further ones are candidates of best-of-N.

    Returns:
        A number of 32 bits.

    Example:
        >>> pair = Pair(item=Item(id="tune-pair-0000", category="pair", prompt="a cat and a dog"), seed=0)
        >>> noise_seed(pair) == noise_seed(pair, 1)
        False
    """
    return _hashed("noise", pair.item.id, pair.seed, candidate)


def direction_seed(pair: Pair, arm: str) -> int:
    """Return the seed of the generator that draws the directions of a random arm.

    Args:
        pair: prompt and seed.
        arm: label of the arm.

    Returns:
        A number of 32 bits.

    Example:
        >>> pair = Pair(item=Item(id="tune-pair-0000", category="pair", prompt="a cat and a dog"), seed=0)
        >>> direction_seed(pair, "random:a") == direction_seed(pair, "random:b")
        False
    """
    return _hashed("direction", pair.item.id, pair.seed, arm)

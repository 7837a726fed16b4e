"""The losses of the catalogue as loops over their equations, in plain numbers: nothing of ours is imported here.

A row is a list of maps, each a list of rows of cells; ``owners`` and ``nouns`` have one entry a map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Map = list[list[float]]
FLOOR = 1e-10


def cells(map_: Map) -> list[float]:
    return [cell for row in map_ for cell in row]


def share(map_: Map) -> list[float]:
    flat = cells(map_)
    total = sum(flat)
    return [cell / total for cell in flat] if total > FLOOR else [1 / len(flat)] * len(flat)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(max(a, FLOOR)) - math.log(max(b, FLOOR))) for a, b in zip(p, q, strict=True))


def symmetric(one: Map, other: Map) -> float:
    return (kl(share(one), share(other)) + kl(share(other), share(one))) / 2


def js(one: Map, other: Map) -> float:
    p, q = share(one), share(other)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, middle) + kl(q, middle)) / 2


def cos(one: Map, other: Map) -> float:
    a, b = cells(one), cells(other)
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def pairs(owners: list[int], nouns: list[bool]) -> list[tuple[int, int]]:
    """A noun and one of its modifiers."""
    every = range(len(owners))
    return [(n, m) for n in every for m in every if nouns[n] and not nouns[m] and owners[n] == owners[m]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def outside(word: int, owners: list[int]) -> list[int]:
    return [other for other in range(len(owners)) if owners[other] != owners[word]]


def linguistic(maps: list[Map], owners: list[int], nouns: list[bool]) -> list[float]:
    positive = negative = 0.0
    for n, m in pairs(owners, nouns):
        positive += symmetric(maps[n], maps[m])
        away = [(symmetric(maps[n], maps[u]) + symmetric(maps[m], maps[u])) / 2 for u in outside(n, owners)]
        negative -= mean(away)
    return [positive, negative]


def variation(map_: Map) -> float:
    height, width = len(map_), len(map_[0])
    down = [abs(map_[y + 1][x] - map_[y][x]) for y in range(height - 1) for x in range(width)]
    return mean(down) + mean([abs(map_[y][x + 1] - map_[y][x]) for y in range(height) for x in range(width - 1)])


def divide(maps: list[Map], owners: list[int], nouns: list[bool]) -> list[float]:
    least = min((variation(map_) for map_ in maps), default=0.0)
    return [-least, sum(js(maps[n], maps[m]) for n, m in pairs(owners, nouns))]


def contrast(maps: list[Map], owners: list[int], nouns: list[bool]) -> list[float]:
    losses = []
    for i in range(len(maps)):
        for j in range(len(maps)):
            if i != j and owners[i] == owners[j]:
                near = math.exp(cos(maps[i], maps[j]) / 0.5)
                far = sum(math.exp(cos(maps[i], maps[k]) / 0.5) for k in outside(i, owners))
                losses.append(-math.log(near / (near + far)))
    return [mean(losses)]


def alignment(maps: list[Map], owners: list[int], nouns: list[bool]) -> list[float]:
    binding = sum(1 - cos(maps[n], maps[m]) for n, m in pairs(owners, nouns))
    for n in [place for place, noun in enumerate(nouns) if noun]:
        times = max(1, sum(1 for other, _ in pairs(owners, nouns) if other == n))
        binding -= times * mean([1 - cos(maps[n], maps[u]) for u in outside(n, owners)])
    return [binding, -sum(max(cells(map_)) for map_, noun in zip(maps, nouns, strict=True) if noun)]


def predicates(maps: list[Map], owners: list[int], nouns: list[bool]) -> list[float]:
    exist = same = leak = 0.0
    for map_ in maps:
        exist -= math.log(1 - math.exp(mean([math.log(1 - cell) for cell in cells(map_)])))
    for n in range(len(maps)):
        for m in range(len(maps)):
            if nouns[n] and not nouns[m]:
                both = list(zip(cells(maps[n]), cells(maps[m]), strict=True))
                if owners[n] == owners[m]:
                    same -= mean([math.log(1 - a * (1 - b)) + math.log(1 - b * (1 - a)) for a, b in both])
                else:
                    leak -= mean([math.log(1 - a * b) for a, b in both])
    return [exist, same, leak]


def boxes(maps: list[Map], regions: list[Map], share_: float = 0.5) -> list[float]:
    energy = inner = outer = corner = 0.0
    for map_, region in zip(maps, regions, strict=True):
        flat, is_inside = cells(map_), [cell > 0 for cell in cells(region)]
        within = sorted((a for a, here in zip(flat, is_inside, strict=True) if here), reverse=True)
        without = sorted((a for a, here in zip(flat, is_inside, strict=True) if not here), reverse=True)
        energy += (1 - sum(within) / sum(flat)) ** 2
        inner += 1 - mean(within[: max(1, round(share_ * len(within)))])
        outer += mean(without[: max(1, round(share_ * len(without)))])
        for turn in (lambda each: each, lambda each: [list(column) for column in zip(*each, strict=True)]):
            corner += mean([abs(max(a) - max(b)) for a, b in zip(turn(map_), turn(region), strict=True)])
    return [energy, inner, outer, corner]


GROUPED: dict[str, Callable[..., Any]] = {
    "linguistic": linguistic, "divide": divide, "contrast": contrast, "alignment": alignment, "predicates": predicates,
}  # fmt: skip

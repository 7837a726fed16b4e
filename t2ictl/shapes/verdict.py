"""The exact judge: what an image shows against what its prompt asks for.

The outcomes are reported apart, never as one number: a control that adds the missing
object and pays with an extra one must not look like a plain success.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from t2ictl.shapes.captions import Expectation, Wanted, expect
from t2ictl.shapes.seeing import Found, find_objects

#: The kinds, in the order in which they are tested: the first that applies names the failure.
FAILURES = (
    "fused",
    "malformed",
    "missing",
    "extra",
    "extra-and-wrong",
    "duplicated",
    "shape",
    "swap",
    "leak",
    "color",
    "mark-swap",
    "mark",
    "texture",
    "size",
    "relation",
)
#: Failures of meaning: the image is clean, and shows something else than the prompt says.
SEMANTIC_FAILURES = tuple(kind for kind in FAILURES if kind != "malformed")
#: What a match is worth when asked and found objects are paired: each more than all that follow together, in
#: three objects, so that as many nouns as possible are found, then as many colors. That the relation holds counts 1.
WORTH = {"shape": 512, "color": 128, "mark": 32, "texture": 8, "size": 2}
#: The respects in which a present object must have its own attributes.
ATTRIBUTES = tuple(field for field in WORTH if field != "shape")
#: The separate outcomes; an image is right if all of them hold.
OUTCOMES = ("has_all", "is_bound", "has_no_extra", "is_well_formed", "is_related")
#: More found objects than this are not paired one by one; the image is a mess anyway.
MAX_PAIRED = 6
#: A silhouette of no shape that has this many times the typical area of a medium object is two objects in one.
FUSED_AREA = 1.6 * 230


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge saw, and the separate outcomes.

    Args:
        found: all objects of the image, largest first.
        matched: for every asked object the index in ``found`` that was paired with it, or None.
        has_all: every asked noun is there, each on its own object.
        is_bound: every asked object that is there has its own color, texture, size and mark, and
            none has a mark that was not asked for.
        has_no_extra: not more objects than asked.
        is_well_formed: every object is one clean silhouette in one color, its mark apart.
        is_related: the asked relation holds between the two objects, which must both be there;
            true where none is asked.
        failure: None, or the first of :data:`FAILURES` that applies.

    Example:
        >>> import numpy as np
        >>> judge(np.full((64, 64, 3), 238, np.uint8), "a red circle").failure
        'missing'
    """

    found: tuple[Found, ...]
    matched: tuple[int | None, ...]
    has_all: bool
    is_bound: bool
    has_no_extra: bool
    is_well_formed: bool
    is_related: bool
    failure: str | None

    @property
    def is_strict(self) -> bool:
        """Whether all of :data:`OUTCOMES` hold."""
        return all(getattr(self, outcome) for outcome in OUTCOMES)

    def outcomes(self) -> dict[str, bool]:
        """Return the separate outcomes by name, and ``"is_strict"``, which is all of them.

        Returns:
            Plain values in a fixed order.

        Example:
            >>> import numpy as np
            >>> verdict = judge(np.full((64, 64, 3), 238, np.uint8), "a red circle")
            >>> [name for name, holds in verdict.outcomes().items() if not holds]
            ['has_all', 'is_strict']
        """
        return {name: getattr(self, name) for name in (*OUTCOMES, "is_strict")}


def agrees(wanted: Wanted, found: Found, field: str) -> bool:
    """Return whether a found object has what the prompt asks for in one respect.

    Args:
        wanted: from the prompt. An open color, texture or size agrees with everything; a mark that
            is not asked for must not be there.
        found: from the image.
        field: ``"shape"``, ``"color"``, ``"mark"``, ``"texture"`` or ``"size"``.

    Returns:
        Whether it agrees.

    Example:
        >>> seen = Found(shape="star", color="red", texture="plain", size="small", x=0, y=0, area=9,
        ...              overlap=1, foreign=0, second_color=None)
        >>> agrees(Wanted(shape="star"), seen, "color"), agrees(Wanted(shape="ring"), seen, "shape")
        (True, False)
    """
    if field == "shape":
        return found.shape in wanted.shapes
    asked = getattr(wanted, field)
    return (asked is None and field != "mark") or asked == getattr(found, field)


def stands(relation: str, one: Found, other: Found) -> bool:
    """Return whether one object stands to another as asked: that direction leads, by however little.

    Args:
        relation: one of :data:`t2ictl.shapes.captions.RELATIONS`.
        one: the first named.
        other: the second named.

    Returns:
        Whether the centers lie so.

    Example:
        >>> from dataclasses import replace
        >>> seen = Found(shape="star", color="red", texture="plain", size="small", x=0, y=0, area=9,
        ...              overlap=1, foreign=0, second_color=None)
        >>> stands("left of", seen, replace(seen, x=30, y=20)), stands("above", seen, replace(seen, x=30, y=20))
        (True, False)
    """
    right, down = one.x - other.x, one.y - other.y
    ahead = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
    return ahead > min(abs(right), abs(down))


def pair_up(wanted: Sequence[Wanted], found: Sequence[Found], relation: str | None = None) -> tuple[int | None, ...]:
    """Pair asked with found objects so that as much as possible agrees.

    Exhaustive over assignments; the sum of :data:`WORTH` over all pairs is the score, the
    earliest assignment wins a tie.

    Args:
        wanted: one to three.
        found: largest first; only the first :data:`MAX_PAIRED` are considered.
        relation: asked between the first two, or None; it decides between objects that are alike.

    Returns:
        For every asked object an index into ``found``, or None.

    Example:
        >>> pair_up((Wanted(shape="star"),), ())
        (None,)
    """
    places: list[int | None] = list(range(min(len(found), MAX_PAIRED)))
    places += [None] * max(0, len(wanted) - len(places))

    def worth(assignment: tuple[int | None, ...]) -> int:
        pairs = [(w, found[i]) for w, i in zip(wanted, assignment, strict=True) if i is not None]
        is_related = relation is not None and len(pairs) == 2 and stands(relation, pairs[0][1], pairs[1][1])
        return sum(value for w, f in pairs for field, value in WORTH.items() if agrees(w, f, field)) + is_related

    return max(itertools.permutations(places, len(wanted)), key=worth)


def _name_broken(found: Sequence[Found], wanted: Sequence[Wanted]) -> str | None:
    """Name what is wrong with the silhouettes, if anything is."""
    broken = [item for item in found if not item.is_well_formed]
    if not broken:
        return None
    is_short = len(found) < len(wanted)
    if is_short and any(item.is_two_colored or item.area > FUSED_AREA for item in broken):
        return "fused"
    return "malformed"


def _colors(wanted: Wanted) -> set[str | None]:
    """Every color that is said of an object or its mark."""
    return {wanted.color, wanted.mark.color if wanted.mark is not None else None} - {None}


def _name_attribute(pairs: Sequence[tuple[Wanted, Found]]) -> str | None:
    """Name the first wrong attribute, and tell a swap from a leak from a value out of nowhere."""
    for field in ATTRIBUTES:
        wrong = [(w, f) for w, f in pairs if not agrees(w, f, field)]
        if not wrong:
            continue
        asked, seen = ([getattr(item, field) for item in side] for side in zip(*wrong, strict=True))
        is_swap = len(wrong) > 1 and Counter(asked) == Counter(seen)
        if field == "color":
            said = set().union(*(_colors(w) for w, _ in pairs))
            return "swap" if is_swap else "leak" if said & set(seen) else "color"
        return "mark-swap" if is_swap and field == "mark" else field
    return None


def name_failure(
    wanted: Sequence[Wanted], found: Sequence[Found], matched: Sequence[int | None], *, is_related: bool = True
) -> str | None:
    """Name the first thing that is wrong.

    Args:
        wanted: from the prompt.
        found: from the image.
        matched: from :func:`pair_up`.
        is_related: whether the asked relation holds, or none is asked.

    Returns:
        One of :data:`FAILURES`, or None.

    Example:
        >>> name_failure((Wanted(shape="star"),), (), (None,))
        'missing'
    """
    broken = _name_broken(found, wanted)
    if broken is not None:
        return broken
    if len(found) < len(wanted):
        return "missing"
    partners = [found[index] for index in matched if index is not None]
    pairs = list(zip(wanted, partners, strict=True))
    if len(found) > len(wanted):
        is_right = is_related and all(agrees(w, f, field) for w, f in pairs for field in WORTH)
        return "extra" if is_right else "extra-and-wrong"
    own = {f.shape for w, f in pairs if agrees(w, f, "shape")}
    astray = {f.shape for w, f in pairs if not agrees(w, f, "shape")}
    if astray:
        return "duplicated" if astray & own else "shape"
    return _name_attribute(pairs) or (None if is_related else "relation")


def judge_expectation(image: Image.Image | np.ndarray, expectation: Expectation) -> Verdict:
    """Judge an image against a parsed request.

    Args:
        image: a PIL image, or an array of shape ``(rows, columns, 3)``.
        expectation: what it must show.

    Returns:
        The verdict; the same pixels always give the same one.

    Example:
        >>> verdict = judge_expectation(np.full((64, 64, 3), 238, np.uint8), expect("a star"))
        >>> verdict.has_all, verdict.has_no_extra
        (False, True)
    """
    wanted, found, relation = expectation.objects, find_objects(image), expectation.relation
    matched = pair_up(wanted, found, relation)
    pairs = [(w, found[index]) for w, index in zip(wanted, matched, strict=True) if index is not None]
    there = [(w, f) for w, f in pairs if agrees(w, f, "shape")]
    has_all = len(there) == len(wanted)
    is_related = relation is None or (has_all and stands(relation, there[0][1], there[1][1]))
    return Verdict(
        found=found,
        matched=matched,
        has_all=has_all,
        is_bound=all(agrees(w, f, field) for w, f in there for field in ATTRIBUTES),
        has_no_extra=len(found) <= len(wanted),
        is_well_formed=all(item.is_well_formed for item in found),
        is_related=is_related,
        failure=name_failure(wanted, found, matched, is_related=is_related),
    )


def judge(image: Image.Image | np.ndarray, prompt: str) -> Verdict:
    """Judge an image against its prompt.

    Args:
        image: a PIL image, or an array of shape ``(rows, columns, 3)``.
        prompt: in the closed grammar; see :func:`t2ictl.shapes.captions.expect`.

    Returns:
        The verdict.

    Raises:
        BadSetting: the prompt is outside the grammar.
        ShapeMismatch: the array is not an image.

    Example:
        >>> from t2ictl.shapes.draw import render
        >>> from t2ictl.shapes.world import Look, Placed, Scene
        >>> item = Placed(look=Look(shape="star", color="red"), x=30, y=30, radius=9.8)
        >>> judge(render(Scene(objects=(item,))), "a red star").is_strict
        True
    """
    return judge_expectation(image, expect(prompt))

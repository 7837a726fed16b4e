"""The exact judge: what a picture shows against what its prompt asks for.

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
    "texture",
    "size",
)
#: Failures of meaning: the picture is clean, and shows something else than the prompt says.
SEMANTIC_FAILURES = tuple(kind for kind in FAILURES if kind != "malformed")
#: What a match is worth when asked and found objects are paired: the noun counts most, then the color.
WORTH = {"shape": 8, "color": 4, "texture": 2, "size": 1}
#: More found objects than this are not paired one by one; the picture is a mess anyway.
MAX_PAIRED = 6
#: A silhouette of no shape that has this many times the typical area of a medium object is two objects in one.
FUSED_AREA = 1.6 * 230


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge saw, and the separate outcomes.

    Args:
        found: all objects of the picture, largest first.
        matched: for every asked object the index in ``found`` that was paired with it, or None.
        has_all: every asked noun is there, each on its own object.
        is_bound: every asked object that is there has its own color, texture and size.
        has_no_extra: not more objects than asked.
        is_well_formed: every object is one clean silhouette in one color.
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
    failure: str | None

    @property
    def is_strict(self) -> bool:
        """Whether all four outcomes hold."""
        return self.has_all and self.is_bound and self.has_no_extra and self.is_well_formed


def agrees(wanted: Wanted, found: Found, field: str) -> bool:
    """Say whether a found object has what the prompt asks for in one respect.

    Args:
        wanted: from the prompt; an open attribute agrees with everything.
        found: from the picture.
        field: ``"shape"``, ``"color"``, ``"texture"`` or ``"size"``.

    Returns:
        Whether it agrees.

    Example:
        >>> seen = Found(shape="star", color="red", texture="plain", size="small", x=0, y=0, area=9,
        ...              overlap=1, foreign=0, second_color=None)
        >>> agrees(Wanted(shape="star"), seen, "color"), agrees(Wanted(shape="ring"), seen, "shape")
        (True, False)
    """
    asked = getattr(wanted, field)
    return asked is None or asked == getattr(found, field)


def pair_up(wanted: Sequence[Wanted], found: Sequence[Found]) -> tuple[int | None, ...]:
    """Pair asked with found objects so that as much as possible agrees.

    Exhaustive over assignments; the sum of :data:`WORTH` over all pairs is the score, the
    earliest assignment wins a tie.

    Args:
        wanted: one to three.
        found: largest first; only the first :data:`MAX_PAIRED` are considered.

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
        return sum(value for w, f in pairs for field, value in WORTH.items() if agrees(w, f, field))

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


def _name_color(wanted: Sequence[Wanted], matched: Sequence[Found]) -> str | None:
    """Tell a swap from a leak from a color out of nowhere."""
    wrong = [(w, f) for w, f in zip(wanted, matched, strict=True) if not agrees(w, f, "color")]
    if not wrong:
        return None
    if len(wrong) > 1 and Counter(w.color for w, _ in wrong) == Counter(f.color for _, f in wrong):
        return "swap"
    asked = {w.color for w in wanted}
    return "leak" if any(f.color in asked for _, f in wrong) else "color"


def _name_texture(wanted: Sequence[Wanted], matched: Sequence[Found]) -> str | None:
    """Name a wrong texture or a wrong size."""
    for field in ("texture", "size"):
        if not all(agrees(w, f, field) for w, f in zip(wanted, matched, strict=True)):
            return field
    return None


def name_failure(wanted: Sequence[Wanted], found: Sequence[Found], matched: Sequence[int | None]) -> str | None:
    """Name the first thing that is wrong.

    Args:
        wanted: from the prompt.
        found: from the picture.
        matched: from :func:`pair_up`.

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
        is_right = all(agrees(w, f, field) for w, f in pairs for field in WORTH)
        return "extra" if is_right else "extra-and-wrong"
    if not all(agrees(w, f, "shape") for w, f in pairs):
        surplus = Counter(f.shape for f in found) - Counter(w.shape for w in wanted)
        asked = {w.shape for w in wanted}
        return "duplicated" if any(shape in asked for shape in surplus) else "shape"
    return _name_color(wanted, partners) or _name_texture(wanted, partners)


def judge_expectation(image: Image.Image | np.ndarray, expectation: Expectation) -> Verdict:
    """Judge a picture against a parsed request.

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
    wanted, found = expectation.objects, find_objects(image)
    matched = pair_up(wanted, found)
    there = [(w, found[i]) for w, i in zip(wanted, matched, strict=True) if i is not None]
    there = [(w, f) for w, f in there if agrees(w, f, "shape")]
    return Verdict(
        found=found,
        matched=matched,
        has_all=len(there) == len(wanted),
        is_bound=all(agrees(w, f, field) for w, f in there for field in ("color", "texture", "size")),
        has_no_extra=len(found) <= len(wanted),
        is_well_formed=all(item.is_well_formed for item in found),
        failure=name_failure(wanted, found, matched),
    )


def judge(image: Image.Image | np.ndarray, prompt: str) -> Verdict:
    """Judge a picture against its prompt.

    Args:
        image: a PIL image, or an array of shape ``(rows, columns, 3)``.
        prompt: in the closed grammar; see :func:`t2ictl.shapes.captions.expect`.

    Returns:
        The verdict.

    Raises:
        BadSetting: the prompt is outside the grammar.
        ShapeMismatch: the array is not a picture.

    Example:
        >>> from t2ictl.shapes.draw import render
        >>> from t2ictl.shapes.world import Look, Placed, Scene
        >>> item = Placed(look=Look(shape="star", color="red"), x=30, y=30, radius=9.8)
        >>> judge(render(Scene(objects=(item,))), "a red star").is_strict
        True
    """
    return judge_expectation(image, expect(prompt))

"""How well each layer points: hand-made records whose figures are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.errors import BadSetting, NotRecorded, SpanNotFound
from t2ictl.families import find_adapter
from t2ictl.maps.depth import pointing_by_layer
from t2ictl.maps.record import AttentionRecord
from tests.tiny import sd

PROMPT = "a cat and a dog"  # start a cat and a dog: 0 to 5
SIZE = 4


def region(rows: slice, columns: slice, inside: float = 0.4, outside: float = 0.0) -> Tensor:
    map_YX = torch.full((SIZE, SIZE), outside)
    map_YX[rows, columns] = inside
    return map_YX


ALL = slice(None)
LEFT, RIGHT = region(ALL, slice(0, 2)), region(ALL, slice(2, 4))
TOP = region(slice(0, 2), ALL)
UPPER_LEFT, LOWER_RIGHT = region(slice(0, 2), slice(0, 2)), region(slice(2, 4), slice(2, 4))
EVEN = torch.full((SIZE, SIZE), 0.1)


def record(**layers: tuple[Tensor, Tensor]) -> AttentionRecord:
    """Maps of the cat and the dog in each layer, of one step."""
    (prompt,) = (find_adapter(sd()).parse((PROMPT,)),)
    maps = {name: torch.stack(pair)[None, None] for name, pair in layers.items()}
    return AttentionRecord(prompts=(prompt,), columns=(2, 5), heads=dict.fromkeys(layers, 2), maps=maps, steps=1)


def figures(*records: tuple[AttentionRecord, Any]) -> dict[str, Any]:
    return {each.layer: each for each in pointing_by_layer(records)}


def test_a_layer_points_where_the_others_attend() -> None:
    """Two layers agree on the cat; the third attends to it elsewhere. All agree on the dog."""
    found = figures((record(a=(UPPER_LEFT, RIGHT), b=(UPPER_LEFT, RIGHT), c=(LOWER_RIGHT, RIGHT)), ["cat", "dog"]))
    assert list(found) == ["a", "b", "c"]
    # Of the others of "c" both are at the upper left; those of "a" are at either place, and both are high.
    assert [each.pointing for each in found.values()] == [1.0, 1.0, 0.5]


def test_what_others_agree_on_does_not_depend_on_how_much_attention_they_give() -> None:
    """One with a hundred times the attention would outvote two."""
    loud = 0.99 * (LOWER_RIGHT > 0)
    quiet = 0.01 * (UPPER_LEFT > 0)
    layers = {"a": (quiet, LEFT), "b": (quiet, LEFT), "c": (loud, LEFT), "d": (quiet, LEFT)}
    found = figures((record(**layers), ["cat"]))
    # For "a", two of the three others are at the upper left: twice the height, and Otsu's threshold lies between.
    assert {name: each.pointing for name, each in found.items()} == {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}


def test_overlap_is_the_share_that_two_words_have_in_common() -> None:
    layers = {
        "apart": (LEFT, RIGHT),
        "same": (LEFT, 0.01 * LEFT),  # whatever attention each has in all
        "half": (LEFT, TOP),
        "even": (EVEN, LEFT),
    }
    found = figures((record(**layers), ["cat", "dog"]))
    assert {name: each.overlap for name, each in found.items()} == pytest.approx(
        {"apart": 0.0, "same": 1.0, "half": 0.5, "even": 0.5}, abs=1e-6
    )
    assert figures((record(**layers), ["cat"]))["half"].overlap is None


def test_overlap_of_three_words_is_the_mean_over_pairs() -> None:
    prompt = find_adapter(sd()).parse(("a cat and a dog",))
    maps = torch.stack([LEFT, RIGHT, TOP])[None, None]
    made = AttentionRecord(
        prompts=(prompt,), columns=(2, 3, 5), heads={"a": 1, "b": 1}, maps={"a": maps, "b": maps}, steps=1
    )
    assert figures((made, ["cat", "and", "dog"]))["a"].overlap == pytest.approx((0.0 + 0.5 + 0.5) / 3)


def test_spread_is_the_entropy_of_an_even_map() -> None:
    point = region(slice(1, 2), slice(2, 3))
    layers = {"even": (EVEN, EVEN), "half": (LEFT, LEFT), "quarter": (UPPER_LEFT, LOWER_RIGHT), "point": (point, point)}
    layers |= {"mixed": (EVEN, point)}
    uneven = region(ALL, slice(0, 2), 0.3, 0.1)
    layers |= {"uneven": (uneven, uneven)}
    found = figures((record(**layers), ["cat", "dog"]))
    by_hand = -(8 * (0.3 / 3.2) * math.log(0.3 / 3.2) + 8 * (0.1 / 3.2) * math.log(0.1 / 3.2)) / math.log(16)
    assert {name: each.spread for name, each in found.items()} == pytest.approx(
        {"even": 1.0, "half": 0.75, "quarter": 0.5, "point": 0.0, "mixed": 0.5, "uneven": by_hand}, abs=1e-6
    )


def test_attention_is_the_mean_over_words_and_places() -> None:
    found = figures((record(a=(LEFT, EVEN), b=(0 * LEFT + 1e-3, 0 * LEFT)), ["cat", "dog"]))
    assert found["a"].attention == pytest.approx((0.2 + 0.1) / 2)
    assert found["b"].attention == pytest.approx(0.5e-3)


def test_figures_are_means_over_images() -> None:
    first = record(a=(UPPER_LEFT, RIGHT), b=(UPPER_LEFT, RIGHT), c=(LOWER_RIGHT, RIGHT))
    second = record(a=(LEFT, LEFT), b=(LEFT, LEFT), c=(LEFT, LEFT))
    found = figures((first, ["cat", "dog"]), (second, ["cat", "dog"]))
    assert found["c"].pointing == 0.75 and found["a"].pointing == 1.0
    assert found["a"].overlap == pytest.approx(0.5) and found["a"].spread == pytest.approx((0.5 + 0.75) / 4 + 0.75 / 2)
    assert found["a"].attention == pytest.approx(((0.1 + 0.2) / 2 + 0.2) / 2)
    # An image of one word has no overlap, and does not count in its mean; one without words does not count at all.
    mixed = figures((first, ["cat"]), (second, ["cat", "dog"]), (second, []))
    assert mixed["a"].overlap == pytest.approx(1.0)
    assert mixed["c"].pointing == pytest.approx(0.5)


def test_records_that_cannot_be_compared() -> None:
    made = record(a=(LEFT, RIGHT), b=(LEFT, RIGHT))
    for given in ((), ((made, ()),)):
        with pytest.raises(BadSetting, match="no words to point at"):
            pointing_by_layer(given)
    for other in (record(a=(LEFT, RIGHT), c=(LEFT, RIGHT)), record(b=(LEFT, RIGHT), a=(LEFT, RIGHT))):
        with pytest.raises(BadSetting, match="of different layers"):
            pointing_by_layer([(made, ["cat"]), (other, ["cat"])])
    with pytest.raises(NotRecorded, match=r"Only one layer.*by='layer'"):
        pointing_by_layer([(record(a=(LEFT, RIGHT)), ["cat"])])
    with pytest.raises(SpanNotFound, match="bird"):
        pointing_by_layer([(made, ["bird"])])

"""Filters of attention layers."""

from __future__ import annotations

from typing import Any

import pytest

from t2ictl.attention.layers import Layer, select_layers
from t2ictl.errors import NoLayerMatched


def made(address: str, factor: int, order: int) -> Layer:
    place, *_, kind = address.split(".")
    fields: dict[str, Any] = {"block": place, "kind": kind, "stride": factor, "order": order}
    return Layer(address=address, module="m", heads=2, **fields)


LAYERS = [
    made("up.1.0.0.cross", 2, 4),
    made("down.0.0.0.self", 1, 0),
    made("down.0.0.0.cross", 1, 1),
    made("mid.0.0.0.cross", 4, 2),
    made("up.0.0.1.cross", 4, 3),
]


@pytest.mark.parametrize(
    ("where", "orders"),
    [
        ("cross", [1, 2, 3, 4]),
        ("self", [0]),
        ("up", [3, 4]),
        ("up.*.cross", [3, 4]),
        ("*.0.cross", [1, 2, 4]),
        ("cross@4", [2, 3]),
        ("@1", [0, 1]),
        ("*", [0, 1, 2, 3, 4]),
        (("mid", "up.1.*"), [2, 4]),
        (("up", "up@4"), [3, 4]),
        (lambda layer: layer.stride > 1, [2, 3, 4]),
    ],
)
def test_filters(where: Any, orders: list[int]) -> None:
    assert [layer.order for layer in select_layers(LAYERS, where)] == orders


@pytest.mark.parametrize("where", ["crossed", "cross@16", "up.9.*", (), ("left",), lambda layer: False])
def test_a_filter_that_matches_nothing_says_what_there_is(where: Any) -> None:
    with pytest.raises(NoLayerMatched, match=r"No attention layer matches .*This model has: .*mid\.0\.0\.0\.cross@4"):
        select_layers(LAYERS, where)

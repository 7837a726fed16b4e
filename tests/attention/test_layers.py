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


# -- transformers -----------------------------------------------------------------------------------------------------


def chain(joint: int, single: int) -> list[Layer]:
    """Layers of a transformer of two kinds of blocks."""
    names = [f"transformer_blocks.{number}.joint" for number in range(joint)]
    names += [f"single_transformer_blocks.{number}.single" for number in range(single)]
    count = len(names)
    return [
        Layer(
            address=name,
            module="m",
            kind=name.rpartition(".")[2],  # type: ignore[arg-type]
            block=("early", "middle", "late")[3 * order // count],
            stride=2,
            order=order,
            heads=2,
            depth=order / count,
            text="first",
        )
        for order, name in enumerate(names)
    ]


CHAIN = chain(80, 20)


@pytest.mark.parametrize(
    ("where", "orders"),
    [
        ("transformer_blocks.7", [7]),  # and neither 70, nor the single block of that number
        ("transformer_blocks.7.joint", [7]),
        ("transformer_blocks.7*", [7, *range(70, 80)]),
        ("*.7", [7, 87]),
        ("single_transformer_blocks.7", [87]),
        ("single_*", [*range(80, 100)]),
        ("joint", [*range(80)]),
        ("single", [*range(80, 100)]),
        ("early", [*range(34)]),
        ("late", [*range(67, 100)]),
        ("depth<0.5", [*range(50)]),
        ("depth<=0.5", [*range(51)]),
        ("depth>0.97", [98, 99]),
        ("depth>=.97", [97, 98, 99]),
        ("joint&depth<0.3", [*range(30)]),
        ("joint & depth>=0.75", [*range(75, 80)]),
        ("single&depth<0.82", [80, 81]),
        ("depth>=0.2&depth<0.23", [20, 21, 22]),
        ("middle&transformer_blocks.4*", [*range(40, 50)]),
        (("transformer_blocks.3", "single&depth>0.97"), [3, 98, 99]),
        ("joint@2&depth<0.02", [0, 1]),
    ],
)
def test_filters_of_a_transformer(where: Any, orders: list[int]) -> None:
    assert [layer.order for layer in select_layers(CHAIN, where)] == orders


@pytest.mark.parametrize(
    "where", ["transformer_blocks.80", "cross", "joint&single", "joint&depth>0.9", "depth<0", "joint@1", "blocks.7"]
)
def test_a_filter_that_no_layer_of_a_transformer_fits(where: str) -> None:
    with pytest.raises(NoLayerMatched, match="This model has: transformer_blocks.0.joint@2"):
        select_layers(CHAIN, where)


def test_words_are_read_where_the_image_attends_to_them_with_a_softmax() -> None:
    kinds = {kind: made(f"mid.0.0.0.{kind}", 1, 0).has_words for kind in ("cross", "joint", "single", "self", "linear")}
    assert kinds == {"cross": True, "joint": True, "single": True, "self": False, "linear": False}

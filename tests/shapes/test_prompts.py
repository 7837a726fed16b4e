from __future__ import annotations

import pytest

from t2ictl.errors import BadSetting
from t2ictl.shapes.captions import Expectation, expect
from t2ictl.shapes.prompts import KINDS, Kind, suite

COUNT: dict[str, int] = {"single": 8, "texture": 15, "size": 15}


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_and_report_prompts_never_meet(kind: Kind) -> None:
    count = COUNT.get(kind, 120)
    tune = {frozenset(item.objects) for seed in range(3) for item in suite(kind, "tune", count, seed)}
    report = {frozenset(item.objects) for seed in range(3) for item in suite(kind, "report", count, seed)}
    assert len(tune) >= count // 2
    assert not tune & report


@pytest.mark.parametrize("kind", ["pair", "triple"])
def test_colors_and_shapes_of_a_split_stay_there_in_every_dress(kind: Kind) -> None:
    def bare(items: tuple[Expectation, ...]) -> set[frozenset[tuple[str, str | None]]]:
        return {frozenset((w.shape, w.color) for w in item.objects) for item in items}

    dressed: Kind = "attributes" if kind == "pair" else kind
    assert not bare(suite(dressed, "tune", 150)) & bare(suite(kind, "report", 150))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_different_and_read_back(kind: Kind) -> None:
    items = suite(kind, "tune", COUNT.get(kind, 60))
    assert len({item.prompt for item in items}) == len(items)
    for item in items:
        assert expect(item.prompt) == item
        assert len(item.objects) == {"pair": 2, "triple": 3, "attributes": 2}.get(kind, 1)


def test_kinds_name_what_they_are_about() -> None:
    assert all(item.objects[0].texture for item in suite("texture", "tune", 10))
    assert all(item.objects[0].size for item in suite("size", "tune", 10))
    dressed = [wanted for item in suite("attributes", "tune", 30) for wanted in item.objects]
    assert all((wanted.texture is None) != (wanted.size is None) for wanted in dressed)


def test_seed_decides() -> None:
    assert suite("pair", "tune", 20, 0) == suite("pair", "tune", 20, 0)
    assert suite("pair", "tune", 20, 0) != suite("pair", "tune", 20, 1)


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(BadSetting, match="There are only"):
        suite("single", "tune", 20)

from __future__ import annotations

from typing import Any

import pytest

from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
from t2ictl.errors import BadSetting
from t2ictl.shapes.captions import RELATIONS, Expectation, expect
from t2ictl.shapes.prompts import KINDS, HeldOut, Kind, all_prompts, suite

SPLITS: tuple[HeldOut, ...] = ("tune", "report")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(Recipe())


def test_tuning_and_report_prompts_never_meet() -> None:
    for kind in KINDS:
        tune, report = ({frozenset(item.objects) for item in all_prompts(kind, split)} for split in SPLITS)
        assert tune and report, kind
        assert not tune & report, kind


@pytest.mark.parametrize("kind", ["attributes", "relation", "mark", "bolt", "round"])
def test_colors_and_shapes_of_a_split_stay_there_in_every_dress(kind: Kind) -> None:
    def bare(items: tuple[Expectation, ...]) -> set[frozenset[tuple[str, str | None]]]:
        return {frozenset((w.shape, w.color) for w in item.objects) for item in items}

    assert bare(all_prompts(kind, "tune")) <= bare(all_prompts("pair", "tune"))
    assert not bare(all_prompts(kind, "tune")) & bare(all_prompts("pair", "report"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_prompts_are_different_read_back_and_fit_the_text_encoder(kind: Kind, split: HeldOut, tokenizer: Any) -> None:
    items = all_prompts(kind, split)
    texts = [item.prompt for item in items]
    assert len(set(texts)) == len(texts)
    for item, text in list(zip(items, texts, strict=True))[:: max(1, len(items) // 200)]:
        assert expect(text) == item
        assert len(item.objects) == {"single": 1, "texture": 1, "size": 1, "triple": 3}.get(kind, 2)
    assert max(map(len, tokenizer(texts).input_ids)) <= tokenizer.model_max_length == 24


def test_there_are_enough_for_the_report() -> None:
    several = {*suite("pair", "report", 240), *suite("attributes", "report", 160)}
    assert len({item.prompt for item in several}) == 400
    assert len({item.prompt for item in suite("triple", "report", 200)}) == 200
    counts = {kind: min(len(all_prompts(kind, split)) for split in SPLITS) for kind in KINDS}
    assert counts["relation"] >= 400
    assert counts["mark"] >= 400
    assert min(counts["bolt"], counts["round"], counts["open"]) >= 50
    assert counts["single"] >= 10


def test_kinds_name_what_they_are_about() -> None:
    def objects(kind: Kind) -> list[Any]:
        return [item.objects for item in suite(kind, "tune", min(200, len(all_prompts(kind, "tune"))))]

    assert all(wanted.texture for (wanted,) in objects("texture"))
    assert all(wanted.size for (wanted,) in objects("size"))
    assert all((wanted.texture is None) != (wanted.size is None) for pair in objects("attributes") for wanted in pair)
    assert {item.relation for item in suite("relation", "tune", 100)} == set(RELATIONS)
    marks = [[wanted.mark for wanted in pair] for pair in objects("mark")]
    assert all(any(pair) for pair in marks)
    assert any(all(pair) for pair in marks) and not all(all(pair) for pair in marks)
    for pair in objects("bolt"):
        assert sorted(wanted.noun or "" for wanted in pair) == ["", "bolt"]
        assert "bolt" not in {wanted.shape for wanted in pair}
    assert {wanted.shape for pair in objects("bolt") for wanted in pair if wanted.noun} == {"star", "cross"}
    for pair in objects("round"):
        assert any(wanted.is_round for wanted in pair)
        assert all(wanted.is_round == (wanted.shape in ("circle", "ring")) for wanted in pair)
    left_open = [sum(wanted.color is None for wanted in pair) for pair in objects("open")]
    assert set(left_open) == {1, 2}


def test_no_color_is_said_twice() -> None:
    for kind in KINDS:
        for item in suite(kind, "report", min(100, len(all_prompts(kind, "report")))):
            colors = [wanted.color for wanted in item.objects] + [w.mark.color for w in item.objects if w.mark]
            said = [color for color in colors if color]
            assert len(set(said)) == len(said), item.prompt


def test_seed_decides() -> None:
    assert suite("pair", "tune", 20, 0) == suite("pair", "tune", 20, 0)
    assert suite("pair", "tune", 20, 0) != suite("pair", "tune", 20, 1)
    assert suite("pair", "tune", 10, 0) == suite("pair", "tune", 20, 0)[:10]


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(BadSetting, match="There are only 13 single prompts"):
        suite("single", "report", 20)
    with pytest.raises(BadSetting, match="no suite"):
        suite("quadruple", "report", 1)

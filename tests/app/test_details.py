"""Maps and losses for pages: the same numbers as the record's, through a file and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import t2ictl
from t2ictl import Generation, Recording
from t2ictl.app.engine.details import ALL, Details, Maps, details_of
from t2ictl.errors import NotRecorded
from t2ictl.maps.queries import words_at
from t2ictl.processors import AttendAndExcite, TokenMerging
from tests.tiny import sd

PROMPT = "a red circle and a blue skateboard"


@pytest.fixture(scope="module")
def made() -> Generation:
    recording = Recording(layers=("down.*", "up.*"), by="size")
    return t2ictl.generate(sd(), PROMPT, [AttendAndExcite(refinement=None)], seed=1, steps=3, record=recording)


def test_maps_are_those_of_the_record(made: Generation) -> None:
    details = details_of(made)
    maps = details.maps
    assert maps is not None and made.record is not None
    assert maps.words == tuple(made.record.names()) and maps.steps == 3
    assert maps.places == (ALL, *made.record.maps)
    for word in maps.words:
        for place in maps.places:
            for step in (None, 0, 2):
                expected = made.record.map(word, place=None if place == ALL else place, step=step).numpy()
                np.testing.assert_array_equal(maps.map(word, place, step), expected)


@pytest.mark.parametrize("at", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.7), (0.5, 0.999)])
def test_pointing_ranks_as_the_library_does(made: Generation, at: tuple[float, float]) -> None:
    maps = details_of(made).maps
    assert maps is not None and made.record is not None
    ours, theirs = maps.at(*at), words_at(made.record, *at)
    assert [each.word for each in ours] == [each.word for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.mass == pytest.approx(other.mass, rel=1e-6) and one.lift == pytest.approx(other.lift, rel=1e-5)


def test_all_of_it_survives_the_file(made: Generation) -> None:
    details = details_of(made)
    again = Details.from_bytes(details.to_bytes())
    assert again.losses == details.losses and len(again.losses) == 2 and dict(again.cost) == dict(details.cost)
    assert again.maps is not None and details.maps is not None and again.maps.places == details.maps.places
    for place in details.maps.places:
        np.testing.assert_allclose(again.maps.by_place[place], details.maps.by_place[place], rtol=1e-3, atol=1e-6)


def test_losses_are_those_of_the_trace(made: Generation) -> None:
    losses = details_of(made).losses
    assert [loss.total for loss in losses] == [float(each.total[0]) for each in made.trace]
    assert [loss.step for loss in losses] == [each.step.index for each in made.trace]
    assert all(loss.length > 0 and not loss.skipped and loss.moved == "latents" for loss in losses)
    assert all(loss.total == pytest.approx(sum(loss.terms.values())) for loss in losses)


def test_without_a_record_there_are_no_maps() -> None:
    details = details_of(t2ictl.generate(sd(), PROMPT, seed=1, steps=1))
    assert details.maps is None and Details.from_bytes(details.to_bytes()).maps is None


def test_merged_words_say_whose_map_they_show() -> None:
    made = t2ictl.generate(
        sd(), PROMPT, [TokenMerging(merge=True, entropy_steps=0)], seed=1, steps=1, record=Recording(by="size")
    )
    with pytest.warns(UserWarning, match="merged into"):
        details = details_of(made)
    assert details.maps is not None and details.maps.merged["red"] == "red circle"


@pytest.fixture
def by_hand() -> Maps:
    maps_NSYX = np.zeros((3, 2, 2, 2), dtype=np.float32)
    maps_NSYX[0, 0] = [[0.4, 0.0], [0.0, 0.0]]
    maps_NSYX[1, 0] = [[0.1, 0.1], [0.0, 0.0]]
    return Maps(words=("a", "b", "c"), by_place={ALL: maps_NSYX})


def test_overlap_by_hand(by_hand: Maps) -> None:
    # b has half of its attention where a has all; c has none, which counts as evenly spread.
    np.testing.assert_allclose(by_hand.overlap(), [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])


def test_peaks_and_ranks_by_hand(by_hand: Maps) -> None:
    assert by_hand.peaks() == pytest.approx({"a": 0.4, "b": 0.1, "c": 0.0})
    assert [(each.word, round(each.mass, 3), round(each.lift, 3)) for each in by_hand.at(0.9, 0.1)] == [
        ("b", 0.1, 2.0), ("a", 0.0, 0.0), ("c", 0.0, 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "ask",
    [
        lambda maps: maps.map("dog"),
        lambda maps: maps.map("a", "mid"),
        lambda maps: maps.map("a", step=1),
        lambda maps: maps.at(1.1, 0),
        lambda maps: maps.at(float("nan"), 0),
        lambda maps: maps.peaks(step=-1),
    ],
)
def test_what_is_not_there_is_said(by_hand: Maps, ask: Any) -> None:
    with pytest.raises(NotRecorded):
        ask(by_hand)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_a_damaged_file_is_said(content: bytes) -> None:
    with pytest.raises(NotRecorded, match="cannot be read"):
        Details.from_bytes(content)


def test_a_file_cut_off_is_said(made: Generation) -> None:
    content = details_of(made).to_bytes()
    for end in (10, len(content) // 2, len(content) - 10):
        with pytest.raises(NotRecorded):
            Details.from_bytes(content[:end])


def test_details_are_frozen(made: Generation) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        details_of(made).cost = {}  # type: ignore[misc]

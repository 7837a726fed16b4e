"""Maps and losses for pages: the record's own answers, through a file and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl import AttentionRecord, Generation, Recording
from t2ictl.app.engine.details import CachedRecord, Details, details_of
from t2ictl.errors import NotRecorded, T2ictlError
from t2ictl.processors import AttendAndExcite, TokenMerging
from tests.tiny import sd

PROMPT = "a red circle and a blue skateboard"


@pytest.fixture(scope="module")
def made() -> Generation:
    recording = Recording(layers=("down.*", "up.*"), by="size")
    return t2ictl.generate(sd(), PROMPT, [AttendAndExcite(refinement=None)], seed=1, steps=3, record=recording)


def records(made: Generation) -> tuple[AttentionRecord, CachedRecord, CachedRecord]:
    """The library's record, the editor's, and that out of its file."""
    details = details_of(made)
    again = Details.from_bytes(details.to_bytes())
    assert made.record is not None and details.record is not None and again.record is not None
    return made.record, details.record, again.record


def test_maps_are_those_of_the_record(made: Generation) -> None:
    theirs, ours, _ = records(made)
    assert ours.names() == theirs.names() and ours.single_steps == 3 and list(ours.maps) == list(theirs.maps)
    for word in ours.names():
        for block in (None, *ours.maps):
            for step in (None, 0, 2):
                which: dict[str, Any] = {"block": block, "step": step}
                assert torch.equal(ours.map(word, **which), theirs.map(word, **which))


@pytest.mark.parametrize("at", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.7), (0.5, 0.999)])
def test_pointing_ranks_as_the_library_does(made: Generation, at: tuple[float, float]) -> None:
    theirs, ours, again = records(made)
    assert ours.at(*at) == theirs.at(*at)
    assert [each.word for each in again.at(*at)] == [each.word for each in theirs.at(*at)]


def test_all_of_it_survives_the_file(made: Generation) -> None:
    details = details_of(made)
    again = Details.from_bytes(details.to_bytes())
    assert again.losses == details.losses and len(again.losses) == 2 and dict(again.cost) == dict(details.cost)
    theirs, _, ours = records(made)
    assert ours.prompts == theirs.prompts and ours.columns == theirs.columns and ours.heads == theirs.heads
    assert repr(ours) == repr(theirs)
    for block in (None, *theirs.maps):
        for step in (None, 1):
            found = ours.map("skateboard", block=block, step=step)
            torch.testing.assert_close(found, theirs.map("skateboard", block=block, step=step), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(ours.overlap(block=block), theirs.overlap(block=block), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("per_step", [True, False])
def test_each_image_of_a_batch_has_its_own_maps_and_words(per_step: bool) -> None:
    recording = Recording(by="size", per_step=per_step)
    batch = t2ictl.generate(sd(), ["a red circle", "a cat and a dog"], seed=1, steps=2, record=recording)
    assert batch.record is not None
    for image, word in ((0, "circle"), (1, "dog")):
        own = Details.from_bytes(details_of(batch, image).to_bytes()).record
        assert own is not None and own.names() == batch.record.names(image) and own.single_steps == 2 * per_step
        torch.testing.assert_close(own.map(word), batch.record.map(word, image=image), rtol=1e-3, atol=1e-6)


def test_a_map_is_made_once(made: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours, _ = records(made)
    asked: list[str] = []
    plain = AttentionRecord.map

    def counted(record: AttentionRecord, word: str, **which: Any) -> torch.Tensor:
        asked.append(word)
        return plain(record, word, **which)

    monkeypatch.setattr(AttentionRecord, "map", counted)
    for _ in range(3):
        ours.at(0.5, 0.5, words=("red", "circle"))
        ours.plot("circle")
        ours.overlap(("red", "circle"))
        ours.map("circle", step=1)
    assert asked == ["red", "circle", "circle"]


def test_losses_are_those_of_the_trace(made: Generation) -> None:
    losses = details_of(made).losses
    assert [loss.total for loss in losses] == [float(each.total[0]) for each in made.trace]
    assert [loss.step for loss in losses] == [each.step.index for each in made.trace]
    assert all(loss.length > 0 and not loss.skipped and loss.moved == "latents" for loss in losses)
    assert all(loss.total == pytest.approx(sum(loss.terms.values())) for loss in losses)


@pytest.mark.parametrize(("prompt", "record"), [(PROMPT, False), ("!", True)])
def test_without_recorded_words_there_is_no_record(prompt: str, record: bool) -> None:
    details = details_of(t2ictl.generate(sd(), prompt, seed=1, steps=1, record=record))
    assert details.record is None and Details.from_bytes(details.to_bytes()).record is None


def test_merged_words_say_whose_map_they_show() -> None:
    control, recording = TokenMerging(merge=True, entropy_steps=0), Recording(by="size")
    details = details_of(t2ictl.generate(sd(), PROMPT, [control], seed=1, steps=1, record=recording))
    again = Details.from_bytes(details.to_bytes()).record
    assert again is not None and again.merged()["red"] == "red circle"
    with pytest.warns(UserWarning, match="merged into"):
        again.map("red")


@pytest.fixture
def by_hand(made: Generation) -> CachedRecord:
    assert made.record is not None
    maps_SBTYX = torch.zeros(1, 1, 3, 2, 2)
    maps_SBTYX[0, 0, 0] = torch.tensor([[0.4, 0.0], [0.0, 0.0]])
    maps_SBTYX[0, 0, 1] = torch.tensor([[0.1, 0.1], [0.0, 0.0]])
    red, circle, blue = (made.record.prompts[0].find(word).tokens[0] for word in ("red", "circle", "blue"))
    return CachedRecord(
        prompts=made.record.prompts, columns=(red, circle, blue), heads={"up": 1}, maps={"up": maps_SBTYX}, steps=5
    )


def test_peaks_and_ranks_by_hand(by_hand: CachedRecord) -> None:
    peaks = {word: by_hand.peak([word]) for word in ("red", "circle", "blue", "and")}
    assert peaks == pytest.approx({"red": 0.4, "circle": 0.1, "blue": 0.0, "and": 0.0})
    assert by_hand.peak(["red", "circle"]) == pytest.approx(0.4)
    assert [(each.word, round(each.attention, 3), round(each.lift, 3)) for each in by_hand.at(0.9, 0.1)] == [
        ("circle", 0.1, 2.0), ("red", 0.0, 0.0), ("blue", 0.0, 0.0),
    ]  # fmt: skip


def test_what_one_image_lacks_stands_for_the_whole(by_hand: CachedRecord, made: Generation) -> None:
    _, ours, _ = records(made)
    block = next(iter(ours.maps))
    assert ours.nearest(block, 2) == {"block": block, "step": 2} and ours.nearest(None, None)["step"] is None
    assert by_hand.nearest(block, 2) == {"block": None, "step": None}
    assert by_hand.peak(["red"], block, 2) == by_hand.peak(["red"])


@pytest.mark.parametrize(
    "ask",
    [
        lambda record: record.map("dog"),
        lambda record: record.map("and"),
        lambda record: record.map("red", block="mid"),
        lambda record: record.map("red", step=1),
        lambda record: record.at(1.1, 0),
        lambda record: record.at(float("nan"), 0),
    ],
)
def test_what_is_not_there_is_said(by_hand: CachedRecord, ask: Any) -> None:
    with pytest.raises(T2ictlError):
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

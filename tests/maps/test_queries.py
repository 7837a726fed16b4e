"""Questions to word maps, on a record with known values."""

from __future__ import annotations

import pytest
import torch

from t2ictl.errors import BadSetting, NotRecorded
from t2ictl.families import find_adapter
from t2ictl.maps.queries import segmentation, word_mask, words_at
from t2ictl.maps.record import AttentionRecord
from tests.tiny import sd

PROMPT = "a cat and a dog"  # start a cat and a dog: 0 to 5


def record(steps: int = 2) -> AttentionRecord:
    """The cat is at the upper left, the dog in the last column of a map of 2 x 4; the second step is turned over."""
    maps_SBTYX = torch.full((steps, 1, 5, 2, 4), 0.01)
    maps_SBTYX[0, 0, 1, 0, 0] = 0.8
    maps_SBTYX[0, 0, 4, :, 3] = 0.4
    for step in range(1, steps):
        maps_SBTYX[step, 0, 1, 1, 0] = 0.8
    prompt = find_adapter(sd()).parse((PROMPT,))
    return AttentionRecord(
        prompts=(prompt,), columns=(1, 2, 3, 4, 5), heads={"up": 4}, maps={"up": maps_SBTYX}, steps=steps
    )


def test_pointing_ranks_words_by_mass() -> None:
    found = words_at(record(1), 0.1, 0.2, words=("dog", "cat"))
    assert [each.word for each in found] == ["cat", "dog"]
    assert found[0].mass == pytest.approx(0.8) and found[1].mass == pytest.approx(0.01)
    assert found[0].lift == pytest.approx(0.8 / ((0.8 + 7 * 0.01) / 8), rel=1e-5)
    assert words_at(record(1), 0.99, 0.5, words=("dog", "cat"))[0].word == "dog"


def test_edges_belong_to_the_image_and_no_further() -> None:
    assert words_at(record(1), 1.0, 1.0)[0].word == "dog"
    for x, y in ((-0.01, 0.5), (0.5, 1.01)):
        with pytest.raises(BadSetting, match="outside"):
            words_at(record(1), x, y)


def test_a_step_and_a_place_can_be_asked_for() -> None:
    assert words_at(record(), 0.1, 0.9, words=("cat", "dog"), step=1, place="up")[0].mass == pytest.approx(0.8)
    with pytest.raises(NotRecorded):
        words_at(record(), 0.1, 0.9, place="down")


def test_masks() -> None:
    cat = word_mask(record(1), "cat")
    assert cat.tolist() == [[True, False, False, False], [False] * 4]
    assert word_mask(record(1), "dog", 0.5).tolist() == [[False, False, False, True]] * 2
    for wrong in (0.0, 1.0, "best"):
        with pytest.raises(BadSetting, match="threshold"):
            word_mask(record(1), "cat", wrong)


def test_segmentation_weighs_words_by_their_means_and_knows_nobody() -> None:
    found = segmentation(record(1), ("cat", "dog"), background=1.0)
    assert found.tolist() == [[0, -1, -1, 1], [-1, -1, -1, 1]]
    assert set(segmentation(record(1), ("cat", "dog")).flatten().tolist()) == {0, 1}
    with pytest.raises(BadSetting, match="No words"):
        segmentation(record(1), ())

"""Regions that the user gives to words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2ictl.controls.concepts import chosen_concepts
from t2ictl.controls.layouts import Layout, Region
from t2ictl.errors import BadSetting, SpanNotFound
from tests.controls.context_cases import context
from tests.tiny import sd

DISK = np.hypot(*np.mgrid[-1:1:200j, -1:1:300j]) < 0.5


def test_one_mask_in_every_form_is_one_setting(tmp_path: Path) -> None:
    path = tmp_path / "disk.png"
    Image.fromarray((DISK * 255).astype(np.uint8)).save(path)
    forms: list[Any] = [
        str(path),
        path,
        Image.open(path),
        Image.open(path).convert("RGB"),
        DISK,
        DISK * 255,
        DISK.astype(float).tolist(),
        torch.tensor(DISK),
    ]
    masks = {Region(word="cat", mask=form).mask for form in forms}
    (mask,) = masks
    assert mask is not None and (len(mask), len(mask[0])) == (64, 64)
    assert Region(word="cat", mask=mask) == Region(word="cat", mask=forms[0])


def test_a_mask_covers_the_same_part_at_every_size() -> None:
    region = Region(word="cat", mask=DISK)
    for height, width in ((64, 64), (32, 48), (16, 16), (13, 17)):
        share = region.cells(height, width).float().mean()
        assert share == pytest.approx(DISK.mean(), abs=0.04)


@pytest.mark.parametrize("side", [3, 64, 65, 512])
def test_a_line_thinner_than_a_cell_is_not_lost(side: int) -> None:
    mask = np.zeros((side, side))
    mask[:, side // 2] = 1
    region = Region(word="cat", mask=mask)
    for size in (64, 16, 4, 1):
        cells = region.cells(size, size)
        assert cells.any() and (size < 4 or cells.float().mean() <= 0.5)


def test_boxes_take_the_cells_whose_centers_they_hold() -> None:
    cells = Region(word="cat", box=(0.0, 0.5, 0.5, 1.0)).cells(4, 6)
    assert cells.tolist() == [[False] * 6] * 2 + [[True] * 3 + [False] * 3] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "not clear"),
        ({"word": "cat"}, "not clear"),
        ({"box": (0, 0, 1, 1)}, "not clear"),
        ({"word": "cat", "box": (0, 0, 1, 1), "mask": [[1]]}, "not clear"),
        ({"word": "cat", "box": (0.5, 0, 0.5, 1)}, "box"),
        ({"word": "cat", "box": (0, 0, 1, 1.5)}, "box"),
        ({"word": "cat", "box": (0, 0, 1)}, r"Region\.box"),
        ({"word": "cat", "mask": [[0, 0.5]]}, "empty"),
        ({"word": "cat", "mask": [1, 0]}, r"shape \(2,\)"),
        ({"word": "cat", "mask": []}, "shape"),
        ({"word": "cat", "mask": "nowhere.png"}, "no mask file"),
    ],
)
def test_bad_regions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        Region(**settings)


def test_regions_replace_learned_ones_for_their_words_only() -> None:
    here = context(sd(), "a cat and a dog", "a red circle", images=2)
    rows = chosen_concepts((), here, control="x")
    layout = Layout.from_regions(
        (Region(word="dog", box=(0, 0, 1, 0.5)), Region(word="circle", mask=[[0, 1]])), here, rows
    )
    learned = torch.rand(4, 2, 4, 4) > 0.5
    found = layout.over(learned)
    top = torch.tensor([[True] * 4] * 2 + [[False] * 4] * 2)
    right = torch.tensor([[False, False, True, True]] * 4)
    for image in (0, 1):
        assert torch.equal(found[image, 0], learned[image, 0]) and torch.equal(found[image, 1], top)
    for image in (2, 3):
        assert torch.equal(found[image, 0], right) and torch.equal(found[image, 1], learned[image, 1])
    assert layout.over(learned.double()).dtype == torch.float64


def test_no_regions_leave_the_learned_ones_alone() -> None:
    here = context(sd(), "a cat")
    learned = torch.rand(1, 1, 4, 4) > 0.5
    assert Layout.from_regions((), here, chosen_concepts((), here, control="x")).over(learned) is learned


def test_a_region_must_belong_to_a_concept() -> None:
    here = context(sd(), "a red cat and a dog")
    rows = chosen_concepts((), here, control="x")
    whole = (0.0, 0.0, 1.0, 1.0)
    with pytest.raises(BadSetting, match=r"'red', which is none of the concepts \['cat', 'dog'\]"):
        Layout.from_regions((Region(word="red", box=whole),), here, rows)
    with pytest.raises(SpanNotFound):
        Layout.from_regions((Region(word="car", box=whole),), here, rows)
    both = context(sd(), "a cat", "a dog")
    with pytest.raises(BadSetting, match="'car'"):
        Layout.from_regions((Region(word="car", box=whole),), both, chosen_concepts((), both, control="x"))


def test_a_region_finds_its_concept_behind_a_longer_word() -> None:
    here = context(sd(), "a teddy bear and a bear")
    rows = chosen_concepts((), here, control="x")
    regions = (Region(word="bear", box=(0, 0, 0.5, 1)), Region(word="teddy bear", box=(0.5, 0, 1, 1)))
    assert Layout.from_regions(regions, here, rows).regions == ((regions[1], regions[0]),)


@pytest.mark.parametrize("words", [("cat", "cat"), ("cat", "cat#1"), ("second cat", "cat#2")])
def test_two_regions_of_one_concept_are_refused(words: tuple[str, str]) -> None:
    here = context(sd(), "a cat and a cat")
    rows = chosen_concepts((), here, control="x")
    regions = [Region(word=word, box=(0, 0, 0.5, 1)) for word in words]
    with pytest.raises(BadSetting, match="two regions to 'cat'"):
        Layout.from_regions(regions, here, rows)

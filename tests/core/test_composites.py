"""Composites: each subject in its box with one scale, the background of the portraits around, coverage by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from t2ictl import Region
from t2ictl.composites import NEUTRAL, Piece, compose

LEFT, RIGHT, ALL = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0))


def piece(
    color: str,
    source: tuple[float, ...],
    target: tuple[float, ...],
    size: tuple[int, int] = (8, 8),
    around: str = "white",
) -> Piece:
    """A picture that has a color inside of its box and another one around."""
    image = Image.new("RGB", size, around)
    left, top, right, bottom = (round(edge * side) for edge, side in zip(source, (*size, *size), strict=True))
    image.paste(Image.new("RGB", (right - left, bottom - top), color), (left, top))
    return Piece(image=image, source=Region(word="cat", box=source), target=Region(word="cat", box=target))


def test_two_subjects_side_by_side() -> None:
    image, covered_NYX = compose([piece("red", LEFT, LEFT), piece("blue", LEFT, RIGHT)], 8, 8)
    pixels = np.asarray(image)
    assert (pixels[:, :4] == [255, 0, 0]).all() and (pixels[:, 4:] == [0, 0, 255]).all()
    halves = torch.zeros(2, 8, 8)
    halves[0, :, :4], halves[1, :, 4:] = 1, 1
    assert torch.equal(covered_NYX, halves)


def test_one_scale_for_both_sides_in_the_middle_of_the_box_and_the_background_of_the_portrait_around() -> None:
    """A square of 4 x 4 in a box of 8 x 4 stays a square, in its middle."""
    image, covered_NYX = compose([piece("red", (0.25, 0.25, 0.75, 0.75), LEFT, around="yellow")], 8, 8)
    expected = torch.zeros(8, 8)
    expected[2:6, :4] = 1
    assert torch.equal(covered_NYX[0], expected)
    pixels = np.asarray(image)
    assert (pixels[2:6, :4] == [255, 0, 0]).all() and (pixels[0] == [255, 255, 0]).all()


def test_the_later_one_is_in_front_and_no_pixel_is_covered_twice() -> None:
    image, covered_NYX = compose([piece("red", LEFT, ALL), piece("blue", LEFT, ALL)], 8, 8)
    assert covered_NYX.sum(dim=0).max() <= 1
    assert covered_NYX[0].sum() == 0 and (np.asarray(image)[4, 4] == [0, 0, 255]).all()


def test_a_mask_cuts_out_its_own_shape() -> None:
    image = Image.new("RGB", (8, 8), "red")
    corner = Region(word="cat", mask=((1, 0), (1, 1)))
    made, covered_NYX = compose([Piece(image=image, source=corner, target=Region(word="cat", box=ALL))], 8, 8)
    assert covered_NYX[0, 6, 6] == 1 and covered_NYX[0, 6, 1] == 1 and covered_NYX[0, 1, 6] == 0
    assert (np.asarray(made)[1, 6] == [255, 0, 0]).all()  # everything around is red too, and its median


@pytest.mark.parametrize("size", [(8, 8), (24, 16), (5, 9)])
def test_pictures_of_other_sizes_than_the_composite(size: tuple[int, int]) -> None:
    _, covered_NYX = compose([piece("red", ALL, (0.0, 0.0, 0.01, 0.01), size)], 12, 20)
    assert covered_NYX.shape == (1, 12, 20) and 0 < covered_NYX.sum() <= 2  # a box of one pixel
    assert covered_NYX[0, 0, 0] > 0


def test_nobody_at_all() -> None:
    image, covered_NYX = compose([], 4, 6)
    assert image.size == (6, 4) and image.getpixel((0, 0)) == NEUTRAL and covered_NYX.shape == (0, 4, 6)


def test_the_picture_that_was_given_stays_as_it_is() -> None:
    given = piece("red", LEFT, RIGHT)
    before = given.image.tobytes()
    compose([given], 8, 8)
    assert given.image.tobytes() == before

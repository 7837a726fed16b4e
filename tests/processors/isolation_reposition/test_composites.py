"""Composites: where every pixel goes, worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2ictl.controls.layouts import Region
from t2ictl.processors.isolation_reposition.composites import NEUTRAL, Piece, compose
from tests.tiny import generator

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
RED, GREEN, BLUE, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 100, 110)


def region(place: Any) -> Region:
    return Region(word="cat", box=place) if len(place) == 4 and np.ndim(place) == 1 else Region(word="cat", mask=place)


def piece(image: Image.Image, source: Any, target: Any) -> Piece:
    return Piece(image=image, source=region(source), target=region(target))


def plain(color: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, color)


def framed(color: tuple[int, int, int], box: tuple[int, int, int, int], size: tuple[int, int] = (8, 8)) -> Image.Image:
    """A box of pixels on gray."""
    image = plain(GRAY, size)
    image.paste(color, box)
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


# -- one piece --------------------------------------------------------------------------------------------------------


def test_a_box_is_moved_pixel_by_pixel() -> None:
    """Sizes agree, so nothing is resampled; around it is the gray of its own image."""
    dice = np.random.default_rng(0)
    image = plain(GRAY)
    noise = dice.integers(0, 256, (4, 2, 3), dtype=np.uint8)
    image.paste(Image.fromarray(noise), (1, 3))
    made, coverage_NYX = compose([piece(image, (1 / 8, 3 / 8, 3 / 8, 7 / 8), (0.5, 0.0, 0.75, 0.5))], 8, 8)
    expected = np.full((8, 8, 3), GRAY, dtype=np.uint8)
    expected[0:4, 4:6] = noise
    assert np.array_equal(pixels(made), expected)
    wanted = torch.zeros(1, 8, 8)
    wanted[0, 0:4, 4:6] = 1
    assert torch.equal(coverage_NYX, wanted)


@pytest.mark.parametrize("size", [(8, 8), (24, 8), (10, 30)])
def test_sizes_that_differ(size: tuple[int, int]) -> None:
    """Width and height of an image are its own, those of the composite too."""
    width, height = size
    image = framed(RED, (0, 0, width // 2, height // 2), size)
    made, coverage_NYX = compose([piece(image, (0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1))], 2 * height, 3 * width)
    assert made.size == (3 * width, 2 * height) and made.mode == "RGB"
    assert coverage_NYX.shape == (1, 2 * height, 3 * width) and coverage_NYX.dtype == torch.float32
    # The target box is height x 3/2 width, so height decides: twice as large, width x height, centered.
    left = (3 * width // 2 + 3 * width - width) // 2
    wanted = torch.zeros(2 * height, 3 * width)
    wanted[height:, left : left + width] = 1
    assert torch.equal(coverage_NYX[0], wanted)
    assert np.array_equal(pixels(made), np.where(wanted[..., None].bool(), RED, GRAY))


@pytest.mark.parametrize(
    ("target", "rows", "columns"),
    [
        ((0.0, 0.0, 1.0, 0.25), (0, 4), (6, 10)),  # wide: 4 high, centered in 16 columns
        ((0.25, 0.0, 0.5, 1.0), (6, 10), (4, 8)),  # high
        ((0.5, 0.5, 1.0, 1.0), (8, 16), (8, 16)),  # square
        ((0.0, 0.0, 0.125, 1.0), (7, 9), (0, 2)),  # touches the left edge
        ((0.875, 0.875, 1.0, 1.0), (14, 16), (14, 16)),  # in the corner
    ],
)
def test_aspect_is_kept_and_it_is_centered(target: Box, rows: Any, columns: Any) -> None:
    made, coverage_NYX = compose([piece(framed(RED, (2, 2, 6, 6)), (0.25, 0.25, 0.75, 0.75), target)], 16, 16)
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[slice(*rows), slice(*columns)] = True
    assert torch.equal(coverage_NYX[0], wanted.float())
    assert np.array_equal(pixels(made), np.where(wanted[..., None], RED, GRAY))


def test_along_a_mask_of_the_size_of_its_image() -> None:
    """Only what the mask holds is cut out, and its corner shows the background."""
    mask = np.zeros((8, 8), int)
    mask[2:6, 1:5] = 1
    mask[2:4, 1:3] = 0
    image = Image.fromarray(np.where(mask[..., None], RED, BLUE).astype(np.uint8))
    made, coverage_NYX = compose([piece(image, mask, (0.5, 0.5, 1.0, 1.0))], 8, 8)
    wanted = np.zeros((8, 8), bool)
    wanted[4:8, 4:8] = mask[2:6, 1:5]
    assert np.array_equal(coverage_NYX[0].numpy(), wanted)
    assert np.array_equal(pixels(made), np.where(wanted[..., None], RED, BLUE))


def test_a_coarse_mask_on_a_large_image() -> None:
    """Two by two cells for 16 x 8 pixels: brought to its size, smooth, halfway between the centers of cells."""
    image, target = plain(RED, (16, 8)), (0.0, 0.0, 1.0, 1.0)
    left = piece(image, ((1, 0), (1, 0)), target)
    assert np.array_equal(left.inside(), np.arange(16)[None].repeat(8, 0) < 8)
    low = piece(image, ((0, 0), (1, 1)), target)
    assert np.array_equal(low.inside(), np.arange(8)[:, None].repeat(16, 1) >= 4)


def test_masks_finer_than_their_image_lose_nobody() -> None:
    """One cell of 64 x 64 is a hundredth of a pixel's weight."""
    mask = np.zeros((64, 64), int)
    mask[37, 5] = 1
    inside = piece(plain(), mask, WHOLE).inside()
    assert inside.sum() == 1 and inside[4, 0]
    made, coverage_NYX = compose([piece(framed(GREEN, (0, 4, 1, 5)), mask, (0.5, 0, 1, 1))], 8, 8)
    assert coverage_NYX.sum() == 16 and tuple(made.getpixel((6, 4))) == GREEN  # type: ignore[arg-type]


def test_a_target_mask_is_its_box() -> None:
    """Wherever a mask of the target says, the piece is brought into the box around it."""
    mask = np.zeros((8, 8), int)
    mask[2, 2] = mask[5, 5] = 1
    one, other = (
        compose([piece(framed(RED, (2, 2, 6, 6)), (0.25,) * 2 + (0.75,) * 2, where)], 8, 8)
        for where in (mask, (0.25, 0.25, 0.75, 0.75))
    )
    assert torch.equal(one[1], other[1]) and np.array_equal(pixels(one[0]), pixels(other[0]))


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (64, 64)])
def test_targets_of_one_pixel(size: tuple[int, int]) -> None:
    """However large or thin the piece is, a pixel is left of it."""
    height, width = 8, 8
    made, coverage_NYX = compose([piece(plain(RED, size), WHOLE, (0.5, 0.5, 0.51, 0.51))], height, width)
    assert coverage_NYX[0].nonzero().tolist() == [[4, 4]] and coverage_NYX[0, 4, 4] == 1
    assert made.getpixel((4, 4)) == RED
    thin, _ = compose([piece(plain(RED, size), WHOLE, WHOLE)], 1, 1)
    assert thin.size == (1, 1) and thin.getpixel((0, 0)) == RED


# -- several ----------------------------------------------------------------------------------------------------------


def test_the_later_one_is_in_front() -> None:
    one = piece(plain(RED), WHOLE, (0.0, 0.0, 0.75, 0.75))
    other = piece(plain(BLUE), WHOLE, (0.25, 0.25, 1.0, 1.0))
    for pieces, colors in (([one, other], (RED, BLUE)), ([other, one], (BLUE, RED))):
        made, coverage_NYX = compose(pieces, 8, 8)
        assert made.getpixel((4, 4)) == colors[1] and made.getpixel((7, 0)) == NEUTRAL
        assert coverage_NYX[:, 4, 4].tolist() == [0, 1] and coverage_NYX[:, 7, 0].tolist() == [0, 0]
        assert coverage_NYX.sum(dim=(1, 2)).tolist() == [36 - 16, 36]


def test_the_background_is_the_median_around_all_of_them() -> None:
    """12 pixels of one color, 48 of another."""
    one = framed(RED, (0, 0, 4, 1), (4, 4))
    other = plain((10, 20, 30))
    other.paste(BLUE, (0, 0, 8, 2))
    pieces = [piece(one, (0, 0, 1, 0.25), (0, 0, 0.5, 0.1)), piece(other, (0, 0, 1, 0.25), (0.5, 0, 1, 0.1))]
    made, _ = compose(pieces, 40, 40)
    assert made.getpixel((20, 30)) == (10, 20, 30)
    made, _ = compose(pieces[:1], 40, 40)
    assert made.getpixel((20, 30)) == GRAY


def test_no_pieces() -> None:
    made, coverage_NYX = compose([], 6, 10)
    assert made.size == (10, 6) and made.getcolors() == [(60, NEUTRAL)]
    assert coverage_NYX.shape == (0, 6, 10)


def test_shares_of_any_pieces_are_at_most_one_and_lie_in_their_boxes() -> None:
    dice = generator(3)
    smooth = 0

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=dice))

    for _ in range(60):
        height, width = number(1, 40), number(1, 40)
        pieces, boxes = [], []
        for _ in range(number(1, 4)):
            size = (number(1, 40), number(1, 40))
            mask = (torch.rand(number(1, 12), number(1, 12), generator=dice) < 0.5).int()
            mask[0, 0] = 1
            left, top = (float(each) for each in torch.rand(2, generator=dice) * 0.9)
            right, bottom = (low + (1 - low) * float(torch.rand(1, generator=dice)) for low in (left, top))
            image = Image.fromarray(torch.randint(256, (*size[::-1], 3), generator=dice).to(torch.uint8).numpy())
            pieces.append(piece(image, mask.numpy(), (left, top, max(right, left + 0.01), max(bottom, top + 0.01))))
            boxes.append(pieces[-1].target.cells(height, width))
        made, coverage_NYX = compose(pieces, height, width)
        assert made.size == (width, height)
        assert coverage_NYX.min() >= 0 and coverage_NYX.sum(dim=0).max() <= 1 + 1e-6
        assert all(not shares[~box].any() for shares, box in zip(coverage_NYX, boxes, strict=True))
        assert coverage_NYX[-1].any()  # nobody hides the last
        smooth += int(((coverage_NYX > 0) & (coverage_NYX < 1)).any())
    assert smooth > 20


def test_what_is_shared_shows_both() -> None:
    """At a soft edge the image is mixed as the shares say."""
    mask = np.tril(np.ones((16, 16), int))
    made, coverage_NYX = compose(
        [piece(Image.fromarray(np.where(mask[..., None], RED, BLUE).astype(np.uint8)), mask, WHOLE)], 5, 5
    )
    soft = coverage_NYX[0]
    assert ((soft > 0.1) & (soft < 0.9)).any()
    blue = torch.from_numpy(pixels(made).astype(np.float32))[..., 2]
    assert (blue >= 255 * (1 - soft) - 2).all()

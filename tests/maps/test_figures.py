"""Images: one honest scale for all words, and nothing invented when enlarging."""

from __future__ import annotations

import torch
from PIL import Image

from t2ictl.maps.figures import map_sheet, overlay, side_by_side


def mean_brightness(image: Image.Image) -> float:
    return float(torch.tensor(list(image.convert("L").tobytes()), dtype=torch.float32).mean())


def test_a_weak_word_looks_weak_beside_a_strong_one() -> None:
    black = Image.new("RGB", (64, 64))
    weak, strong = torch.full((16, 16), 0.05), torch.full((16, 16), 0.5)
    top = 0.5
    assert mean_brightness(overlay(black, weak, top)) < 0.5 * mean_brightness(overlay(black, strong, top))


def test_the_brightest_place_is_where_the_map_is_largest() -> None:
    map_YX = torch.zeros(16, 16)
    map_YX[3, 12] = 1.0
    image = overlay(Image.new("RGB", (64, 64)), map_YX, 1.0).convert("L")
    cells = torch.tensor(list(image.tobytes())).view(64, 64)
    y, x = divmod(int(cells.argmax()), 64)
    assert (y // 4, x // 4) == (3, 12)


def test_enlarging_repeats_pixels() -> None:
    image = Image.new("RGB", (64, 64))
    image.putpixel((0, 0), (255, 0, 0))
    sheet = side_by_side([("one", image)])
    assert sheet.size == (256, 284)
    assert sheet.getpixel((3, 3)) == (255, 0, 0) and sheet.getpixel((4, 4)) == (0, 0, 0)


def test_a_sheet_wraps_and_fits_long_captions() -> None:
    image = Image.new("RGB", (300, 200))
    sheet = side_by_side([("a very long caption that cannot fit below an image of this width " * 2, image)] * 5)
    assert sheet.size == (4 * 300 + 3 * 12, 2 * 228 + 12)


def test_a_map_sheet_has_the_image_and_every_word() -> None:
    sheet = map_sheet(Image.new("RGB", (64, 64)), {"cat": torch.rand(16, 16), "dog": torch.zeros(16, 16)})
    assert sheet.size == (3 * 256 + 2 * 12, 284)

"""Images for people: one honest scale for all words, and nothing invented when enlarging."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from t2ictl.maps.figures import COLORS, heat_map, heatmap_grid, image_grid, image_uri, overlay


def mean_brightness(image: Image.Image) -> float:
    return float(torch.tensor(list(image.convert("L").tobytes()), dtype=torch.float32).mean())


def test_a_weak_word_looks_weak_beside_a_strong_one() -> None:
    black = Image.new("RGB", (64, 64))
    weak, strong = torch.full((16, 16), 0.05), torch.full((16, 16), 0.5)
    top = 0.5
    assert mean_brightness(overlay(black, weak, top)) < 0.5 * mean_brightness(overlay(black, strong, top))


def test_the_brightest_position_is_where_the_map_is_largest() -> None:
    map_YX = torch.zeros(16, 16)
    map_YX[3, 12] = 1.0
    drawn = overlay(Image.new("RGB", (64, 64)), map_YX, 1.0).convert("L")
    cells = torch.tensor(list(drawn.tobytes())).view(64, 64)
    y, x = divmod(int(cells.argmax()), 64)
    assert (y // 4, x // 4) == (3, 12)


def test_enlarging_repeats_pixels() -> None:
    image = Image.new("RGB", (64, 64))
    image.putpixel((0, 0), (255, 0, 0))
    grid = image_grid([("one", image)])
    assert grid.size == (256, 284)
    assert grid.getpixel((3, 3)) == (255, 0, 0) and grid.getpixel((4, 4)) == (0, 0, 0)


def test_a_grid_wraps_and_fits_long_captions() -> None:
    image = Image.new("RGB", (300, 200))
    grid = image_grid([("a very long caption that cannot fit below an image of this width " * 2, image)] * 5)
    assert grid.size == (4 * 300 + 3 * 12, 2 * 228 + 12)


def test_a_heatmap_grid_has_the_image_and_every_word() -> None:
    grid = heatmap_grid(Image.new("RGB", (64, 64)), {"cat": torch.rand(16, 16), "dog": torch.zeros(16, 16)})
    assert grid.size == (3 * 256 + 2 * 12, 284)


def test_a_prompt_without_words_has_its_image_alone() -> None:
    assert heatmap_grid(Image.new("RGB", (64, 64)), {}).size == (256, 284)


def test_colors_run_from_dark_to_bright_on_the_scale_that_is_given() -> None:
    map_YX = torch.tensor([[0.0, 0.5], [0.5, 1.0]])
    full, half = (np.asarray(heat_map(map_YX, top)) for top in (1.0, 2.0))
    corner = full[-1, -1]
    assert tuple(full[0, 0]) == tuple(int(COLORS[0][at : at + 2], 16) for at in (1, 3, 5))
    assert tuple(corner) == tuple(int(COLORS[-1][at : at + 2], 16) for at in (1, 3, 5))
    assert half[-1, -1].sum() < corner.sum()  # a weak word looks weak
    ramp = np.asarray(heat_map(torch.linspace(0, 1, 64)[None], 1.0))[0]
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in ramp]
    assert all(one <= other + 1 for one, other in zip(lightness, lightness[1:], strict=False))


@pytest.mark.parametrize("map_YX", [torch.zeros(4, 4), torch.full((1, 3), 2.0)])
def test_odd_maps_have_colors_too(map_YX: torch.Tensor) -> None:
    assert max(heat_map(map_YX, 0.0).size) == 256


def test_data_addresses_are_lossless_where_small_and_smaller_where_large() -> None:
    def decoded(image: Image.Image) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(image_uri(image).partition(",")[2])))

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(decoded(noise).convert("RGB")), np.asarray(noise))
    large = Image.new("RGB", (2000, 1000))
    assert decoded(large).size == (512, 256) and large.size == (2000, 1000)

"""Images as settings: every form that is taken, every one that is refused, and the way through JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from t2ictl.controls.registry import control_from_dict, control_to_dict
from t2ictl.errors import BadSetting
from t2ictl.processors import IsolationReposition
from t2ictl.processors.isolation_reposition.subjects import Subject
from t2ictl.settings.images import IN_MEMORY, LARGEST, open_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def held(image: Any) -> str:
    """What the field of a subject holds."""
    found = Subject(name="cat", prompt="photo of a cat", image=image).image
    assert isinstance(found, str)
    return found


def shown(image: Any) -> np.ndarray:
    given_image = open_image(held(image))
    assert given_image.mode == "RGB"
    return np.asarray(given_image)


# -- what is taken ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        lambda: PIXELS,
        lambda: PIXELS.tolist(),
        lambda: PIXELS.astype(np.int64),
        lambda: Image.fromarray(PIXELS),
        lambda: PIXELS / 255,
        lambda: (PIXELS / 255).astype(np.float32),
        lambda: (PIXELS / 255).astype(np.float32).tolist(),
        lambda: torch.from_numpy(PIXELS),
        lambda: torch.from_numpy(PIXELS) / 255,
        lambda: PIXELS[::-1][::-1],
        lambda: np.asfortranarray(PIXELS),
    ],
    ids=["uint8", "list", "int64", "PIL", "float64", "float32", "list of floats", "torch", "torch floats", "view", "F"],
)
def test_arrays_and_images(form: Callable[[], Any]) -> None:
    assert held(form()).startswith(IN_MEMORY)
    assert np.array_equal(shown(form()), PIXELS)


def test_values_outside_of_their_range_are_cut_off() -> None:
    assert shown(np.array([[[-0.5, 0.5, 1.5]]])).tolist() == [[[0, 128, 255]]]
    assert shown(np.array([[[-5, 100, 300]]])).tolist() == [[[0, 100, 255]]]
    assert shown(np.array([[[True, False, True]]])).tolist() == [[[255, 0, 255]]]


def test_gray_palette_and_transparent_images() -> None:
    image = Image.fromarray(PIXELS)
    assert np.array_equal(shown(image.convert("L")), np.asarray(image.convert("L"))[..., None].repeat(3, axis=2))
    palette = image.quantize(8)
    assert np.array_equal(shown(palette), np.asarray(palette.convert("RGB")))
    clear = image.copy()
    clear.putalpha(128)
    assert np.array_equal(shown(clear), PIXELS)  # colors as they are; a mask says what belongs to the subject


@pytest.mark.parametrize("name", ["cat.png", "cat.bmp", "a name with ünïcode.png"])
@pytest.mark.parametrize("kind", [str, Path])
def test_files(tmp_path: Path, name: str, kind: Any) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name)
    assert held(kind(tmp_path / name)) == str(tmp_path / name)
    assert np.array_equal(shown(tmp_path / name), PIXELS)


def test_a_jpeg_and_a_gray_file(tmp_path: Path) -> None:
    Image.new("RGB", (9, 4), (200, 30, 30)).save(tmp_path / "cat.jpg")
    assert shown(tmp_path / "cat.jpg").shape == (4, 9, 3)
    Image.new("LA", (3, 2), (80, 10)).save(tmp_path / "cat.png")
    assert shown(tmp_path / "cat.png").tolist() == [[[80] * 3] * 3] * 2


@pytest.mark.parametrize("turn", range(1, 9))
def test_photographs_stand_as_their_camera_says(tmp_path: Path, turn: int) -> None:
    """Boxes are given for the image that everybody sees."""
    image, exif = Image.fromarray(PIXELS), Image.Exif()
    exif[0x0112] = turn
    image.save(tmp_path / "cat.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "cat.png"))
    wanted = np.asarray(upright)
    assert (wanted.shape[:2] == (7, 5)) == (turn > 4)
    assert np.array_equal(shown(tmp_path / "cat.png"), wanted)
    assert np.array_equal(shown(Image.open(tmp_path / "cat.png")), wanted)


def test_no_image_and_equal_subjects() -> None:
    assert Subject(name="cat", prompt="a cat").image is None
    one, other = (Subject(name="cat", prompt="a cat", image=PIXELS.copy()) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != Subject(name="cat", prompt="a cat", image=255 - PIXELS)


def test_what_was_given_is_not_kept() -> None:
    """Neither the array nor the PIL image is changed, and later changes are not seen."""
    array, image = PIXELS.copy(), Image.fromarray(PIXELS)
    subjects = [Subject(name="cat", prompt="a cat", image=each) for each in (array, image)]
    assert np.array_equal(array, PIXELS) and np.array_equal(np.asarray(image), PIXELS)
    array[:] = 0
    image.paste((0, 0, 0), (0, 0, 7, 5))
    for subject in subjects:
        assert np.array_equal(np.asarray(open_image(str(subject.image))), PIXELS)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.png", "no image 'nowhere.png'"),
        ("", "no image ''"),
        ("data:image/jpeg;base64," + "A" * 5000, "no image"),
        (PIXELS[..., 0], r"\(5, 7\).* is no image"),
        (PIXELS[None], r"\(1, 5, 7, 3\).* is no image"),
        (np.zeros((5, 7, 4), np.uint8), r"\(5, 7, 4\).* is no image"),
        (PIXELS.transpose(2, 0, 1), r"\(3, 5, 7\).* is no image"),
        (np.zeros((0, 7, 3), np.uint8), r"\(0, 7, 3\).* is no image"),
        (np.full((2, 2, 3), np.nan), "no number"),
        (np.full((2, 2, 3), "x"), "is no image"),
        (17, r"\(\).* is no image"),
        (IN_MEMORY + "AAAA", "cannot be read"),
        (IN_MEMORY + "%", "cannot be read"),
        (IN_MEMORY, "cannot be read"),
        ("sha256:" + "0" * 64, "too large for the settings"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_what_is_no_image(value: Any, message: str) -> None:
    with pytest.raises(BadSetting, match=message) as raised:
        Subject(name="cat", prompt="a cat", image=value)
    assert len(str(raised.value)) < 300


def test_directories_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no image"):
        held(tmp_path)
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.png", "empty.png"):
        with pytest.raises(BadSetting, match="cannot be read"):
            held(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_files_are_read_or_refused_by_name(tmp_path: Path, kind: str) -> None:
    """Cut off, or with bytes changed: whatever the reader of the format says of it."""
    whole = io.BytesIO()
    Image.fromarray(PIXELS.repeat(4, 0).repeat(4, 1)).save(whole, format=kind)
    data, dice, refused = whole.getvalue(), np.random.default_rng(1), 0
    file = tmp_path / "cat.png"
    for trial in range(120):
        broken = bytearray(data)
        if trial % 2:
            broken = broken[: int(dice.integers(1, len(data)))]
        else:
            for at in dice.integers(0, min(len(data), 200), 3):
                broken[at] = int(dice.integers(256))
        file.write_bytes(broken)
        try:
            shown(file)
        except BadSetting:
            refused += 1
    assert refused > 20


def test_a_bomb_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "cat.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadSetting, match="cannot be read"):
        held(tmp_path / "cat.png")


def test_a_file_that_is_gone_by_the_time_it_is_read(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "cat.png")
    image = held(tmp_path / "cat.png")
    (tmp_path / "cat.png").unlink()
    with pytest.raises(BadSetting, match="cannot be read"):
        open_image(image)


# -- settings ---------------------------------------------------------------------------------------------------------


def written(image: Any) -> tuple[IsolationReposition, dict[str, Any]]:
    control = IsolationReposition(subjects=(Subject(name="cat", prompt="a cat", image=image),))
    return control, json.loads(json.dumps(control_to_dict(control)))


def test_small_images_and_files_come_back(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "cat.png")
    for image in (PIXELS, Image.fromarray(PIXELS), tmp_path / "cat.png", None):
        control, data = written(image)
        back = control_from_dict(data)
        assert back == control and control_to_dict(back) == control_to_dict(control)
        if image is not None:
            assert isinstance(back, IsolationReposition)
            assert np.array_equal(np.asarray(open_image(str(back.subjects[0].image))), PIXELS)


def test_large_images_become_a_hash_and_are_refused_when_read_back() -> None:
    dice = np.random.default_rng(2)
    image = dice.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    control, data = written(image)
    text = data["subjects"][0]["image"]
    assert len(str(control.subjects[0].image)) > LARGEST and len(json.dumps(data)) < 4000
    assert text.startswith("sha256:") and len(text) == 7 + 64
    assert np.array_equal(np.asarray(open_image(str(control.subjects[0].image))), image)  # in memory it is all there
    assert written(image)[1] == data != written(255 - image)[1]
    with pytest.raises(BadSetting, match="too large for the settings"):
        control_from_dict(data)


def test_the_largest_that_travels() -> None:
    """Settings have a text chunk of 1 MiB: even eight subjects with such images fit."""
    dice = np.random.default_rng(3)
    side = 120
    while True:
        image = dice.integers(0, 256, (side, side, 3), dtype=np.uint8)
        if len(held(image)) > LARGEST:
            break
        control, data = written(image)
        assert control_from_dict(data) == control
        side += 2
    assert side > 120 and 8 * LARGEST < 2**20
    assert written(image)[1]["subjects"][0]["image"].startswith("sha256:")

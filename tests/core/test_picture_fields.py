"""Pictures as settings: every form comes to one, small ones travel with the settings, large ones leave their hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2ictl import Subject
from t2ictl.controls import control_from_dict, control_to_dict
from t2ictl.errors import BadSetting
from t2ictl.picture_fields import LARGEST, open_picture
from t2ictl.processors.isolation_reposition import IsolationReposition

COLORS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def subject(image: Any) -> Subject:
    return Subject(name="cat", prompt="photo of a cat", image=image)


@pytest.mark.parametrize("form", ["pil", "bytes", "float", "double", "png", "path"])
def test_every_form_is_the_same_picture(form: str, tmp_path: Path) -> None:
    Image.fromarray(COLORS).save(tmp_path / "cat.png")
    forms: dict[str, Any] = {
        "pil": Image.fromarray(COLORS),
        "bytes": COLORS,
        "float": (COLORS / 255).astype(np.float32),
        "double": COLORS / 255,
        "png": str(tmp_path / "cat.png"),
        "path": tmp_path / "cat.png",
    }
    image = subject(forms[form]).image
    assert image is not None and np.array_equal(np.asarray(open_picture(image)), COLORS)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    original = Image.fromarray(COLORS).convert(mode)
    assert open_picture(subject(original).image or "").mode == "RGB"
    if mode != "CMYK":
        original.save(tmp_path / "cat.png")
        assert open_picture(str(tmp_path / "cat.png")).mode == "RGB"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.png", "no picture"),
        (".", "no picture"),
        (np.zeros((4, 5)), "is no picture"),
        (np.zeros((4, 5, 4)), "is no picture"),
        ("data:image/png;base64,AAAA", "cannot be read"),
    ],
)
def test_what_is_no_picture_is_named(value: Any, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        image = subject(value).image
        open_picture(image or "")


def test_a_broken_file_is_found_when_the_subject_is_made(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"no picture at all")
    with pytest.raises(BadSetting, match=r"cat\.png.* cannot be read"):
        subject(tmp_path / "cat.png")


def test_small_ones_survive_settings_and_large_ones_ask_for_the_file() -> None:
    small = IsolationReposition(subjects=(subject(COLORS),))
    assert control_from_dict(control_to_dict(small)) == small
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    large = IsolationReposition(subjects=(subject(noise),))
    data = control_to_dict(large)
    kept = data["subjects"][0]["image"]
    assert kept.startswith("sha256:") and len(kept) < 100 < LARGEST
    with pytest.raises(BadSetting, match="hash alone") as error:
        control_from_dict(data)
    assert "as a file" in error.value.remedy
    other = noise.copy()
    other[0, 0, 0] ^= 1
    assert control_to_dict(IsolationReposition(subjects=(subject(other),))) != data


def test_a_file_stays_a_path(tmp_path: Path) -> None:
    Image.fromarray(COLORS).save(tmp_path / "cat.png")
    control = IsolationReposition(subjects=(subject(tmp_path / "cat.png"),))
    assert control_to_dict(control)["subjects"][0]["image"] == str(tmp_path / "cat.png")
    assert control_from_dict(control_to_dict(control)) == control

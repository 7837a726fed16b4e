"""Pages that need nothing else: what is filled in, and what comes out of the maps again."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

import t2ictl
from t2ictl.maps.pages import image_uri, render, rendered_maps
from t2ictl.maps.record import Recording
from tests.tiny import sd, sdxl


def test_images_are_whole_where_small_and_made_smaller_where_large() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    small = Image.open(io.BytesIO(base64.b64decode(image_uri(noise).partition(",")[2])))
    assert np.array_equal(np.asarray(small.convert("RGB")), np.asarray(noise))
    large = Image.new("RGB", (2000, 1000))
    assert Image.open(io.BytesIO(base64.b64decode(image_uri(large).partition(",")[2]))).size == (512, 256)
    assert large.size == (2000, 1000)


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("size", [{}, {"width": 64, "height": 96}])
def test_maps_in_the_page_are_those_of_the_record(build: object, size: dict[str, int]) -> None:
    result = t2ictl.generate(build(), "a cat and a dog", steps=3, record=True, **size)  # type: ignore[operator, arg-type]
    assert result.record is not None
    data = rendered_maps(result.record, words=("cat", "dog"))
    values = np.frombuffer(base64.b64decode(data["maps"]), dtype="<u2").astype(float) / 65535 * data["scale"]
    maps = values.reshape(2, len(data["places"]), data["steps"] + 1, *data["size"])
    assert data["words"] == ["cat", "dog"] and data["steps"] == 3 and data["places"][0] == "all"
    for place_number, place in enumerate([None, *result.record.maps]):
        for step in (None, 0, 2):
            wanted = result.record.map("dog", place=place, step=step).numpy()
            found = maps[1, place_number, 0 if step is None else step + 1]
            assert np.abs(found - wanted).max() <= data["scale"] / 65535
    assert data["top"] == pytest.approx(max(float(result.record.map(word).max()) for word in ("cat", "dog")))
    json.dumps(data)


def test_maps_without_steps_have_their_mean() -> None:
    result = t2ictl.generate(sd(), "a cat", steps=3, record=Recording(per_step=False))
    assert result.record is not None and rendered_maps(result.record)["steps"] == 0


def test_text_is_escaped_and_nothing_is_forgotten() -> None:
    result = t2ictl.generate(sd(), "a cat", steps=2, record=True)
    assert result.record is not None
    given = {"maps": rendered_maps(result.record), "picture": "</script><b>", "settings": "{}"}
    page = render("maps.html.j2", prompt="<b>&", **given)
    assert "&lt;b&gt;&amp;" in page and page.count("</script>") == 1 and "<b>" not in page
    with pytest.raises(UndefinedError):
        render("maps.html.j2", **given)

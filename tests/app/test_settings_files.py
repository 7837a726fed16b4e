"""Settings from files: what was made comes back the same; what strangers send is refused, or taken in part and said."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

import t2ictl
from t2ictl import Control, Region, Request
from t2ictl.app.settings import LARGEST_UPLOAD, Recipe, to_settings, uploaded
from t2ictl.controls.presets import with_preset
from t2ictl.errors import BadSetting, T2ictlError
from t2ictl.families import find_adapter
from t2ictl.processors import AttendAndExcite, AttentionSegregation, TokenMerging

REQUEST = {"prompt": "a red circle", "seed": 3, "steps": 4}


def png(settings: Any) -> bytes:
    chunk = PngImagePlugin.PngInfo()
    chunk.add_itxt("t2ictl", settings if isinstance(settings, str) else json.dumps(settings))
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, format="PNG", pnginfo=chunk)
    return held.getvalue()


def as_json(**settings: Any) -> bytes:
    return json.dumps({"request": REQUEST, "controls": [], **settings}).encode()


def test_an_image_comes_back_with_all_its_settings(tmp_path: Path) -> None:
    controls = [AttendAndExcite(concepts=("circle",), strength=0.333), TokenMerging(merge=True, binding_steps=1)]
    pipe = t2ictl.load("shapes", device="cpu")
    made = t2ictl.generate(
        pipe, "a rÃ©d circle, 圆", controls, seed=2**31 + 5, steps=1, guidance_scale=3.3,
        width=48, negative_prompt="*blue*",
    )  # fmt: skip
    recipe = uploaded("a.png", made.save(tmp_path / "a.png").read_bytes())
    assert (
        recipe.controls == with_preset(controls, find_adapter(pipe)) and recipe.model == "shapes" and recipe.notes == ()
    )
    assert recipe.request == Request(
        prompt="a rÃ©d circle, 圆",
        seed=2**31 + 5,
        steps=1,
        guidance_scale=3.3,
        width=48,
        height=64,
        negative_prompt="*blue*",
    )
    assert uploaded("a.json", to_settings(recipe).encode()) == recipe


@pytest.mark.parametrize("cls", t2ictl.list_controls().values(), ids=lambda cls: cls.name)
def test_every_control_survives_the_file(cls: type[Control]) -> None:
    recipe = Recipe(request=Request(prompt="a cat"), controls=(cls(),))
    assert uploaded("x.json", to_settings(recipe).encode()) == recipe


def test_a_layout_by_boxes_and_masks_survives(tmp_path: Path) -> None:
    layout = (Region(word="cat", box=(0, 0, 0.5, 1)), Region(word="dog", mask=[[0, 1]]))
    recipe = Recipe(request=Request(prompt="a cat and a dog"), controls=(AttentionSegregation(layout=layout),))
    assert uploaded("x.json", to_settings(recipe).encode()) == recipe


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "JSON"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "cannot be read"),
        (b"GIF89a", "JSON"),
        (b"\xff\xfe\x00", "neither a PNG nor JSON"),
        (b"{" * 10_000, "JSON"),
        (b"[" * 500_000, "JSON"),
        (b"[1, 2]", "no t2ictl settings"),
        (b'{"a": NaN}', "JSON"),
        (b'{"prompt": "of another program"}', "no t2ictl settings"),
        (b" " * (2**20 + 2), "too large"),
        (b"x" * (LARGEST_UPLOAD * 2**20 + 1), "larger than"),
        (png("{"), "JSON"),
        (png([1]), "no t2ictl settings"),
        (png({"schema": "new"}), "schema"),
        (as_json(schema=-1), "schema"),
        (as_json(request=None), "no request"),
        (as_json(request=[]), "no request"),
        (as_json(controls={}), "no request"),
        (as_json(controls=["x"]), "no request"),
        (as_json(controls=[{"control": "attend_and_excite"}] * 9), "9 controls"),
        (as_json(request={}), "no prompt"),
        (as_json(request={"prompt": 5}), "no prompt"),
        (as_json(request={"prompt": ["a", "b"]}), "or several"),
        (as_json(request={"prompt": ""}), "empty"),
        (as_json(request={"prompt": "x" * 5000}), "characters"),
        (as_json(request={**REQUEST, "negative_prompt": "x" * 5000}), "characters"),
        (as_json(request={**REQUEST, "steps": 10**9}), "steps"),
        (as_json(request={**REQUEST, "steps": "many"}), "steps"),
        (as_json(request={**REQUEST, "seed": 2**64}), "seed"),
        (as_json(request={**REQUEST, "seed": -1}), "seed"),
        (as_json(request={**REQUEST, "width": 10**6}), "width"),
        (as_json(request={**REQUEST, "guidance_scale": 1e9}), "guidance_scale"),
        (as_json(controls=[{"control": "attend_and_excite", "strength": 1e9}]), "strength"),
        (as_json(controls=[{"control": "attend_and_excite", "window": "all"}]), "window"),
        (as_json(story={}), "story"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(content: bytes, says: str) -> None:
    with pytest.raises(BadSetting) as caught:
        uploaded("settings.png", content)
    assert says in str(caught.value) and len(str(caught.value)) < 600 and caught.value.remedy


def test_a_text_chunk_that_unpacks_to_much_is_refused() -> None:
    """A compressed chunk of 3 MiB of zeros in 3 KiB: Pillow's own limit holds it back."""
    body = b"t2ictl\0\1\0\0\0" + zlib.compress(b"0" * (3 << 20))
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body + struct.pack(">I", zlib.crc32(b"iTXt" + body))
    whole = png({"request": REQUEST})
    with pytest.raises(BadSetting):
        uploaded("bomb.png", whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize(
    "control",
    [
        {"control": "attention_segregation", "layout": [{"word": "circle", "mask": "/etc/hostname"}]},
        {"control": "attention_segregation", "layout": [{"word": "circle", "mask": "../x.png"}]},
        {"control": "isolation_reposition", "subjects": [{"name": "circle", "image": "/etc/hostname"}]},
    ],
)
def test_no_path_is_opened(control: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = Image.open

    def spy(source: Any, *args: Any, **more: Any) -> Any:
        opened.append(source)
        return real(source, *args, **more)

    monkeypatch.setattr(Image, "open", spy)
    with pytest.raises(BadSetting, match="names the file|name the file"):
        uploaded("x.json", as_json(controls=[control]))
    assert opened == []


def test_files_are_open_to_the_user_s_own_code(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", (4, 4), 255).save(path)
    data = {"control": "attention_segregation", "layout": [{"word": "circle", "mask": str(path)}]}
    assert t2ictl.control_from_dict(data)
    with pytest.raises(BadSetting, match="name the file"):
        t2ictl.control_from_dict(data, files=False)
    assert t2ictl.control_from_dict(data)  # the refusal ends with its call


def test_a_newer_version_is_taken_in_part_and_said() -> None:
    content = as_json(
        schema=99,
        request={**REQUEST, "sampler": "x", "images_per_prompt": 4},
        controls=[
            {"control": "of_tomorrow"},
            {"control": "attend_and_excite", "strength": 0.5, "flavor": 1},
            {"control": "attend_and_excite"},
        ],
        pipeline={"model": "/etc/passwd"},
    )
    with pytest.warns(UserWarning, match="newer"):
        recipe = uploaded("x.json", content)
    assert recipe.request == Request(**REQUEST) and recipe.controls == (AttendAndExcite(strength=0.5),)
    notes = " ".join(recipe.notes)
    for said in ("newer version", "sampler", "of_tomorrow", "flavor", "there twice", "several images"):
        assert said in notes


def test_many_unknown_keys_are_said_in_short() -> None:
    recipe = uploaded("x.json", as_json(request={**REQUEST, **{f"{'k' * 300}{number}": 1 for number in range(1000)}}))
    assert len(" ".join(recipe.notes)) < 500


def test_one_prompt_in_a_list_is_one_prompt() -> None:
    assert uploaded("x.json", as_json(request={**REQUEST, "prompt": ["a cat"]})).request.prompt == "a cat"


def test_an_odd_name_of_a_file_is_not_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(T2ictlError) as caught:
        uploaded("../../etc/passwd" + "x" * 500, b"{")
    assert len(str(caught.value)) < 300 and list(tmp_path.iterdir()) == []

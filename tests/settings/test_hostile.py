"""Files of strangers: numbers, texts, aliases and images that are larger than they look."""

from __future__ import annotations

import base64
import io
import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from t2ictl.controls.layouts import opened_mask
from t2ictl.errors import BadSetting
from t2ictl.settings.arguments import read_arguments
from t2ictl.settings.files import KEYWORD, read_settings, write_png
from t2ictl.settings.images import IN_MEMORY, open_image
from t2ictl.settings.yaml_files import read_yaml


@pytest.mark.parametrize(
    "text",
    [
        '{"request": {"seed": ' + "9" * 310 + "}}", '{"request": {"seed": -' + "9" * 5000 + "}}",
        '{"request": {"guidance_scale": 1e999}}', '{"request": {"prompt": "\\ud800"}}', '{"request": {"\\udfff": 1}}',
        '{"request": [' * 3000,
    ],
)  # fmt: skip
def test_what_no_setting_can_be_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(BadSetting, match=r"bad\.json"):
        read_settings(path)


def test_a_pair_of_halves_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"request": {"prompt": "\\ud83d\\ude00"}}')
    assert read_settings(tmp_path / "a.json")["request"]["prompt"] == "\U0001f600"


def large_png(side: int = 12_000) -> bytes:
    """A PNG of some hundred kilobytes that says it has 432 MB of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" + bytes(3 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("settings", [b"", b"iTXt", b"tEXt", b"zTXt"])
def test_settings_are_found_without_decoding_the_image(tmp_path: Path, settings: bytes) -> None:
    data, text = large_png(3000), json.dumps({"request": {"prompt": "a cat"}}).encode()
    bodies = {b"iTXt": b"\0\0\0\0" + text, b"tEXt": text, b"zTXt": b"\0" + zlib.compress(text)}
    if settings:
        content = KEYWORD.encode() + b"\0" + bodies[settings]
        at = data.index(b"IEND") - 4
        crc = struct.pack(">I", zlib.crc32(settings + content))
        data = data[:at] + struct.pack(">I", len(content)) + settings + content + crc + data[at:]
    path = tmp_path / "large.png"
    path.write_bytes(data)
    before = Image.Image.load

    def refuse(self: Image.Image) -> None:
        raise AssertionError("the image was decoded")

    Image.Image.load = refuse  # type: ignore[assignment, method-assign]
    try:
        if settings:
            assert read_settings(path)["request"] == {"prompt": "a cat"}
        else:
            with pytest.raises(BadSetting, match="no t2ictl settings"):
                read_settings(path)
    finally:
        Image.Image.load = before  # type: ignore[method-assign]


def test_an_image_in_settings_is_measured_before_it_is_decoded() -> None:
    text = IN_MEMORY + base64.b64encode(large_png()).decode()
    tracemalloc.start()
    try:
        with pytest.raises(BadSetting, match="12000 x 12000 pixels"):
            open_image(text)
        with pytest.raises(BadSetting, match="12000 x 12000 pixels"):
            read_arguments({"image": text})
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_mask_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"no image")
    with pytest.raises(BadSetting, match="mask.png"):
        opened_mask(tmp_path / "mask.png")


def nested(levels: int, repeats: int, merge: bool = False) -> str:
    """Aliases of aliases: ``repeats`` to the power of ``levels`` values in some lines."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [1]"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * repeats)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{inner}]}}" if merge else f"[{inner}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        nested(30, 9), nested(12, 9, merge=True), "a: &a [*a]", "a: &a {b: *a}", "[" * 5000, "a: " + "9" * 5000,
        "a: 2020-99-99", "? [a]\n: b", "a: !!python/object/apply:os.system [ls]", "a: b: c", "\x00", "x" * (2 << 20),
    ],
)  # fmt: skip
def test_yaml_that_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(BadSetting, match=r"plan\.yaml"):
        read_yaml(path, "plan")


def test_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("a: &a {steps: 3}\nb: {<<: *a, seed: 1}\nc: *a\n")
    assert read_yaml(tmp_path / "plan.yaml", "plan") == {
        "a": {"steps": 3},
        "b": {"steps": 3, "seed": 1},
        "c": {"steps": 3},
    }
    with pytest.raises(BadSetting, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml", "plan")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """What is written is what is read, by the reader that decodes nothing."""
    path = write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png", {"request": {"prompt": "é" * 5000}})
    assert read_settings(io.BytesIO(path.read_bytes()))["request"]["prompt"] == "é" * 5000

"""Settings go into files whole or not at all, come back equal, and strangers' files are refused by name."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from t2ictl.errors import BadSetting
from t2ictl.settings import files as module
from t2ictl.settings.files import KEYWORD, SCHEMA_VERSION, read_settings, stamped, versions, write_json, write_png

SETTINGS: dict[str, Any] = {
    "request": {
        "prompt": 'ein „roter" Kreis und ein 青い四角 🟦\n\x00 \\ "quoted"',
        "seed": 2**63 - 1,
        "negative_prompt": None,
    },
    "controls": [{"name": "attention_segregation", "strength": 0.1, "window": {"start": 0.0, "stop": 1.0}}],
    "notes": {"nested": [[], {}, [True, False, None, 1e-300]]},
}


def drawing(seed: int = 0) -> Image.Image:
    return Image.frombytes("RGB", (16, 12), bytes((seed + 7 * i) % 256 for i in range(16 * 12 * 3)))


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, read without Pillow."""
    found, position = [], 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def with_chunk(data: bytes, kind: bytes, content: bytes, before: bytes) -> bytes:
    """A PNG with one more chunk, in front of the first one of the kind `before`."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    position = data.index(before) - 4
    return data[:position] + chunk + data[position:]


def plain_png(tmp_path: Path) -> bytes:
    drawing().save(tmp_path / "plain.png")
    return (tmp_path / "plain.png").read_bytes()


def test_png_round_trip(tmp_path: Path) -> None:
    path = write_png(drawing(), tmp_path / "a.png", SETTINGS)
    read = read_settings(path)
    assert {key: read[key] for key in SETTINGS} == SETTINGS
    assert read["schema"] == SCHEMA_VERSION and read["versions"] == versions()
    with Image.open(path) as image:
        assert image.tobytes() == drawing().tobytes()
    assert write_png(drawing(), tmp_path / "b.png", read).read_bytes() == path.read_bytes()


def test_settings_are_one_itxt_chunk_of_utf8_json(tmp_path: Path) -> None:
    data = write_png(drawing(), tmp_path / "a.png", SETTINGS).read_bytes()
    (content,) = [content for kind, content in chunks(data) if kind == b"iTXt"]
    keyword, rest = content.split(b"\0", 1)
    assert keyword == b"t2ictl" and rest[:2] == b"\0\0"
    text = rest[2:].split(b"\0", 2)[2].decode("utf-8")
    assert json.loads(text)["request"] == SETTINGS["request"] and "青い四角" in text


def test_json_round_trip(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", stamped(SETTINGS))
    assert read_settings(path) == stamped(SETTINGS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save it
    assert read_settings(path) == stamped(SETTINGS)


def test_the_callers_objects_are_left_alone(tmp_path: Path) -> None:
    given, image = {"prompt": "a cat"}, drawing()
    write_png(image, tmp_path / "a.png", given)
    assert given == {"prompt": "a cat"} and not image.info
    assert stamped({"schema": 1, "versions": {"torch": "old"}}) == {"schema": 1, "versions": {"torch": "old"}}


def test_versions_name_what_can_change_an_image() -> None:
    found = versions()
    assert {"t2ictl", "python", "torch", "diffusers", "transformers"} <= found.keys()
    assert all(isinstance(value, str) and value for value in found.values())


def test_no_torch_is_imported() -> None:
    code = "import sys, t2ictl.settings.files as s; s.versions(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("place", ["save", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), Interrupted()])
def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    path = write_png(drawing(), tmp_path / "a.png", {"prompt": "old"})
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    def save_half(_: Image.Image, handle: Any, **__: Any) -> None:
        handle.write(b"\x89PNG half")
        raise error

    image = drawing(1)
    if place == "save":
        monkeypatch.setattr(Image.Image, "save", save_half)
    else:
        monkeypatch.setattr(os, place, fail)
    with pytest.raises(type(error)):
        write_png(image, path, {"prompt": "new"})
    if place != "save":
        with pytest.raises(type(error)):
            write_json(tmp_path / "b.json", {"prompt": "new"})
    assert path.read_bytes() == before and file_names(tmp_path) == ["a.png"]
    assert read_settings(path)["prompt"] == "old"


def test_the_part_is_beside_the_file_and_on_the_disk_before_it_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, Path, int]] = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        seen.append((Path(source), Path(target), Path(source).stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    path = write_json(tmp_path / "a.json", {"seed": 1})
    ((source, target, size),) = seen
    assert source.parent == tmp_path and target == path and size == path.stat().st_size
    assert file_names(tmp_path) == ["a.json"]


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = write_json(tmp_path / "a.json", {"seed": 1})
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_overwriting_is_asked_for(tmp_path: Path) -> None:
    path = write_png(drawing(), tmp_path / "a.png", {"prompt": "old"})
    with pytest.raises(BadSetting, match="exists"):
        write_png(drawing(), path, {"prompt": "new"}, overwrite=False)
    assert read_settings(path)["prompt"] == "old"
    assert read_settings(write_png(drawing(), path, {"prompt": "new"}))["prompt"] == "new"


def test_paths_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "folder.png", tmp_path / "missing" / "a.png", tmp_path / "a.jpg"):
        with pytest.raises(BadSetting, match=re.escape(path.name)):
            write_png(drawing(), path, SETTINGS)
    assert file_names(tmp_path) == ["folder.png"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"settings\.controls\[0\]\.strength is nan"),
        (float("-inf"), r"settings\.controls\[0\]\.strength is -inf"),
        (b"bytes", r"strength is a bytes"),
        ({1: "one"}, r"strength has the key 1"),
        ("\ud800", r"strength is not valid Unicode"),
        ({"\ud800": 1}, r"has the key"),
        ({1, 2}, r"strength is a set"),
    ],
)
def test_what_is_not_json_is_named_with_its_place(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        write_png(drawing(), tmp_path / "a.png", {"controls": [{"strength": value}]})
    assert file_names(tmp_path) == []


def test_settings_that_contain_themselves(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["notes"] = endless
    with pytest.raises(BadSetting, match="too deeply"):
        write_json(tmp_path / "a.json", endless)


def test_settings_that_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="more than"):
        write_png(drawing(), tmp_path / "a.png", {"prompt": "x" * module.MAX_BYTES})
    path = write_json(tmp_path / "a.json", {"prompt": "x" * module.MAX_BYTES})
    with pytest.raises(BadSetting, match="too large"):
        read_settings(path)


def test_files_that_hold_no_settings(tmp_path: Path) -> None:
    contents = {
        "other.json": b'{"name": "another program"}',
        "list.json": b"[1, 2]",
        "text.json": b"not json",
        "empty.json": b"",
        "nan.json": b'{"request": {"seed": NaN}}',
        "deep.json": b'{"request": ' + b"[" * 100_000,
        "photo.jpg": b"\xff\xd8\xff\xe0 binary \x80\x81",
        "schema.json": b'{"request": {}, "schema": "new"}',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadSetting, match=re.escape(name)):
            read_settings(tmp_path / name)
    with pytest.raises(BadSetting, match="There is no file"):
        read_settings(tmp_path / "nowhere.png")
    with pytest.raises(BadSetting, match="There is no file"):
        read_settings(tmp_path)


def test_a_png_of_another_program(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat, steps: 20")
    drawing().save(tmp_path / "other.png", pnginfo=info)
    with pytest.raises(BadSetting, match=r"other\.png.*no t2ictl settings"):
        read_settings(tmp_path / "other.png")


def test_a_name_does_not_decide_what_a_file_is(tmp_path: Path) -> None:
    path = write_png(drawing(), tmp_path / "a.png", SETTINGS)
    moved = path.rename(tmp_path / "a.json")
    assert read_settings(moved)["request"] == SETTINGS["request"]


def test_truncated_png(tmp_path: Path) -> None:
    """Wherever it is cut: the settings that were written, or the named error, and never part of them."""
    data = write_png(drawing(), tmp_path / "a.png", SETTINGS).read_bytes()
    expected, outcomes = read_settings(tmp_path / "a.png"), set()
    path = tmp_path / "cut.png"
    for length in range(8, len(data), 5):
        path.write_bytes(data[:length])
        try:
            assert read_settings(path) == expected
            outcomes.add("read")
        except BadSetting as error:
            assert "cut.png" in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    data = bytearray(write_png(drawing(), tmp_path / "a.png", SETTINGS).read_bytes())
    data[data.index(b"iTXt") + 40] ^= 0xFF
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(BadSetting, match=r"a\.png"):
        read_settings(tmp_path / "a.png")


def test_settings_after_the_image_are_found(tmp_path: Path) -> None:
    content = KEYWORD.encode() + b"\0\0\0\0\0" + json.dumps({"prompt": "a cat"}).encode()
    path = tmp_path / "a.png"
    path.write_bytes(with_chunk(plain_png(tmp_path), b"iTXt", content, before=b"IEND"))
    assert read_settings(path) == {"prompt": "a cat"}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_compressed_bomb_is_refused(tmp_path: Path, before: bytes) -> None:
    bomb = zlib.compress(b'{"prompt": "' + b"a" * (64 << 20) + b'"}', 9)
    path = tmp_path / "bomb.png"
    content = KEYWORD.encode() + b"\0\1\0\0\0" + bomb
    path.write_bytes(with_chunk(plain_png(tmp_path), b"iTXt", content, before=before))
    with pytest.raises(BadSetting, match=r"bomb\.png"):
        read_settings(path)


def test_large_plain_text_is_refused(tmp_path: Path) -> None:
    content = KEYWORD.encode() + b"\0\0\0\0\0" + b'{"prompt": "' + b"a" * module.MAX_BYTES + b'"}'
    path = tmp_path / "large.png"
    path.write_bytes(with_chunk(plain_png(tmp_path), b"iTXt", content, before=b"IDAT"))
    with pytest.raises(BadSetting, match="larger than"):
        read_settings(path)


def test_settings_are_never_run(tmp_path: Path) -> None:
    content = KEYWORD.encode() + b"\0\0\0\0\0" + b"__import__('pathlib').Path('ran').touch()"
    path = tmp_path / "a.png"
    path.write_bytes(with_chunk(plain_png(tmp_path), b"iTXt", content, before=b"IDAT"))
    with pytest.raises(BadSetting, match="not strict JSON"):
        read_settings(path)


def test_a_newer_schema_warns_and_lists_what_is_unknown(tmp_path: Path) -> None:
    newer = {**SETTINGS, "schema": SCHEMA_VERSION + 1, "telepathy": True, "aura": 3}
    path = write_png(drawing(), tmp_path / "a.png", newer)
    with pytest.warns(UserWarning, match=r"schema 4, newer than 3.*Unknown: aura, notes, telepathy\.") as caught:
        assert read_settings(path)["telepathy"] is True
    assert caught[0].filename == __file__
    path = write_png(drawing(), path, {**SETTINGS, "extra": 1})
    assert read_settings(path)["extra"] == 1  # the same schema: a note of the user, and no warning

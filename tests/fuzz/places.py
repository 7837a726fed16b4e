"""Files and folders that a command line may name: good ones, and bad ones of every kind.

Each is made only where a command line names it, since most lines name none.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, PngImagePlugin

import t2ictl
from t2ictl.settings.files import write_png
from tests import tiny

__all__ = ["PLACES", "good_settings", "make_places"]

PROMPT = "a red circle and a blue square"
STORY: dict[str, Any] = {
    "steps": 1,
    "batch": 2,
    "subjects": [{"name": "circle", "prompt": "a red circle"}],
    "scenes": [{"prompt": "a circle"}],
}


@functools.cache
def good_settings() -> dict[str, Any]:
    """Settings of an image of the embedded model: one step, two controls, of which one has a window."""
    controls = [{"control": "attention_segregation", "strength": 0.5, "window": {"stop": 0.5}}]
    return {
        "schema": t2ictl.SCHEMA_VERSION,
        "request": {"prompt": PROMPT, "seed": 3, "steps": 1, "guidance_scale": 2.0},
        "controls": controls,
        "pipeline": {"class": "StableDiffusionPipeline", "model": "shapes", "scheduler": "DDIMScheduler"},
        "image": 0,
    }


@functools.cache
def _model() -> Path:
    """A folder with a tiny model."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny.sd().save_pretrained(folder)
    return folder


@functools.cache
def _png() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        image = Image.new("RGB", (64, 64), "white")
        return write_png(image, Path(folder) / "a.png", good_settings()).read_bytes()


def _changed(**parts: Any) -> bytes:
    """The good settings with other parts, as a JSON file."""
    return json.dumps({**good_settings(), **parts}).encode()


def _request(**fields: Any) -> bytes:
    return _changed(request={**good_settings()["request"], **fields})


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_of(*chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


def _foreign(path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "another")
    Image.new("L", (8, 8)).save(path, pnginfo=text)


def _model_with(index: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "model_index.json").write_bytes(index)

    return make


def _damaged_model(path: Path) -> None:
    shutil.copytree(_model(), path)
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def _locked(path: Path) -> None:
    path.mkdir()
    path.chmod(0o500)


_BYTES: dict[str, Callable[[], bytes]] = {
    "good.png": _png,
    "good.json": _changed,
    "more.json": lambda: _changed(more={"a": [1]}, schema=99),
    "old.json": lambda: _changed(schema=1),
    "nothing.png": bytes,
    "half.png": lambda: _png()[: len(_png()) // 2],
    "short.png": lambda: _png()[:20],
    "bit.png": lambda: _png().replace(b"circle", b"cirkle"),
    "bomb.png": lambda: _png_of(_chunk(b"iTXt", b"t2ictl\0\1\0\0\0" + zlib.compress(b" " * (64 << 20)))),
    "length.png": lambda: _png_of(struct.pack(">I", 0xFFFFFFFF) + b"iTXtt2ictl\0"),
    "latin.png": lambda: _png_of(_chunk(b"iTXt", b"t2ictl\0\0\0\0\0\xff\xfe{}")),
    "open.json": lambda: b'{"request": {',
    "list.json": lambda: b"[]",
    "null.json": lambda: b"null",
    "deep.json": lambda: b"[" * 200_000,
    "other.json": lambda: b'{"name": "another program"}',
    "bytes.json": lambda: b"\xff\xfe\x00{",
    "nan.json": lambda: b'{"request": {"prompt": "a", "guidance_scale": NaN}, "controls": []}',
    "digits.json": lambda: b'{"request": {"prompt": "a", "seed": ' + b"9" * 10_000 + b'}, "controls": []}',
    "surrogate.json": lambda: b'{"request": {"prompt": "\\ud800"}, "controls": []}',
    "size.json": lambda: _request(width=10**9),
    "text.json": lambda: _request(steps="many"),
    "field.json": lambda: _request(stepz=3),
    "prompt.json": lambda: _request(prompt=[["a"], None]),
    "none.json": lambda: _request(prompt=""),
    "parser.json": lambda: _request(parser="nltk"),
    "image.json": lambda: _changed(image=10**15),
    "controls.json": lambda: _changed(controls={"control": "box_diff"}),
    "unknown.json": lambda: _changed(controls=[{"control": "nope"}]),
    "twice.json": lambda: _changed(controls=good_settings()["controls"] * 2),
    "argument.json": lambda: _changed(arguments={"nope": 1}),
    "eta.json": lambda: _changed(arguments={"eta": "much"}),
    "embeds.json": lambda: _changed(arguments={"prompt_embeds": [[1.0]]}),
    "nested.json": lambda: _changed(arguments={"eta": "NEST"}).replace(b'"NEST"', b"[" * 800 + b"]" * 800),
    "tables.json": lambda: _changed(
        pipeline={"model": "shapes", "scheduler": "DDPMScheduler", "scheduler_config": {"num_train_timesteps": 10**10}}
    ),
    "spacing.json": lambda: _changed(
        pipeline={"model": "shapes", "scheduler": "DDIMScheduler", "scheduler_config": {"timestep_spacing": "x"}}
    ),
    "ours.json": lambda: _changed(arguments={"record": True, "controls": [], "on_step": 3}),
    "pipeline.json": lambda: _changed(pipeline={"model": [3], "scheduler": 3, "class": None}),
    "scheduler.json": lambda: _changed(
        pipeline={"model": "shapes", "scheduler": "EulerDiscreteScheduler", "scheduler_config": {"beta_start": "x"}}
    ),
    "schema.json": lambda: _changed(schema="3"),
    "story.yaml": lambda: yaml.safe_dump(STORY).encode(),
    "scenes.yaml": lambda: yaml.safe_dump({**STORY, "scenes": 3}).encode(),
    "subjects.yaml": lambda: yaml.safe_dump({**STORY, "subjects": [None]}).encode(),
    "control.yaml": lambda: yaml.safe_dump({**STORY, "control": {"nope": 3}}).encode(),
    "aliases.yaml": lambda: b"a: &a [x,x]\nb: &b [*a,*a,*a]\nsubjects: [*b,*b]\n",
    "tab.yaml": lambda: b"subjects:\n\t- a",
    "plan.yaml": lambda: yaml.safe_dump({"arms": ["plain"], "prompts": 1, "steps": 1, "seeds": 1}).encode(),
    "bad.yaml": lambda: yaml.safe_dump({"arms": [{"mine": {"control": "nope"}}], "steps": -1}).encode(),
    "keys.yaml": lambda: b"1: 2\nnull: 3\n",
    "text.safetensors": lambda: b"version https://git-lfs",
    "huge.safetensors": lambda: struct.pack("<Q", 1 << 62) + b"{}",
    "text.ckpt": lambda: b"not a pickle",
    "a file": lambda: b"hello",
}
_OTHERS: dict[str, Callable[[Path], Any]] = {
    "foreign.png": _foreign,
    "link.png": lambda path: path.symlink_to("nowhere.png"),
    "circle.png": lambda path: path.symlink_to(path.name),
    "folder.png": lambda path: path.mkdir(),
    "empty": lambda path: path.mkdir(),
    "locked": _locked,
    "tiny": lambda path: path.symlink_to(_model()),
    "damaged": _damaged_model,
    "index": _model_with(b"{"),
    "strange": _model_with(b'{"_class_name": "StableDiffusionPipeline", "unet": ["os", "Path"]}'),
    "numbers": _model_with(b'{"_class_name": 3, "unet": 4}'),
    "parts": _model_with(b'{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'),
}
PLACES = (*_BYTES, *_OTHERS)


def make_places(folder: Path, arguments: list[str]) -> None:
    """Make the files and folders that arguments name.

    Args:
        folder: where.
        arguments: of a command line.
    """
    for name in {each.removeprefix("./").split("/")[0] for each in arguments} & set(PLACES):
        if name in _BYTES:
            (folder / name).write_bytes(_BYTES[name]())
        else:
            _OTHERS[name](folder / name)

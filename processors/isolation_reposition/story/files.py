"""What the command ``t2ictl story`` does."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from t2ictl.cli.commands import check_place, open_model
from t2ictl.controls.registry import control_from_dict
from t2ictl.errors import BadSetting
from t2ictl.processors.isolation_reposition.control import IsolationReposition
from t2ictl.processors.isolation_reposition.story.result import Story, StoryImage
from t2ictl.processors.isolation_reposition.story.settings import read_story
from t2ictl.processors.isolation_reposition.story.story import check, story

__all__ = ["story_files"]


def story_files(
    file: Path, out: Path, model: str, *, device: str | None, dtype: str, only_check: bool, as_json: bool
) -> None:
    """Make the story of a file and write its images, a contact sheet and ``story.json``.

    Each image is written as soon as it is made, and those of this very story that are there are not made again: after
    a crash the same command goes on.

    Args:
        file: the story.
        out: the folder.
        model: what to load.
        device: where to put it; None for CUDA where there is one.
        dtype: name of a precision.
        only_check: make nothing, only find out whether the story can be told.
        as_json: print a summary as JSON.

    Raises:
        BadSetting: if the story cannot be told; nothing has been made then.
    """
    wanted, given = read_story(file)
    method = control_from_dict({"control": IsolationReposition.name, **given})
    assert isinstance(method, IsolationReposition)
    check_place(out)
    if out.is_file():
        raise BadSetting(f"{str(out)!r} is a file.", "Name a folder.")
    pipe = open_model(model, device, dtype)
    settings: dict[str, Any] = {each.name: getattr(wanted, each.name) for each in fields(wanted)}
    subjects, scenes = settings.pop("subjects"), settings.pop("scenes")
    if only_check:
        there = check(pipe, wanted, method)
        for number, names in enumerate(there, start=1):
            print(f"scene {number}: {', '.join(names)}")
        return

    def keep(image: StoryImage) -> None:
        out.mkdir(exist_ok=True)
        image.save(out)

    told = story(
        pipe,
        subjects,
        scenes,
        control=method,
        on_image=keep,
        finished=_finished(out),
        **settings,
    )
    _report(told, told.save(out), as_json)


def _finished(out: Path) -> list[StoryImage]:
    """Images that an earlier run left; what is no image of a story is passed over."""
    found = []
    for path in sorted(out.glob("*-*.png")):
        with contextlib.suppress(BadSetting, ValidationError, OSError):
            found.append(StoryImage.read(path))
    return found


def _report(told: Story, files: list[Path], as_json: bool) -> None:
    if as_json:
        summary = {
            "files": [str(each) for each in files],
            "generations": dict(told.generations),
            "cost": told.cost.to_dict(),
        }
        print(json.dumps(summary, indent=2))
        return
    for path in files:
        print(path)
    parts = ", ".join(f"{number:g} {what}" for what, number in told.generations.items())
    print(f"{sum(told.generations.values()):g} generations ({parts}), {told.cost.seconds:.1f} s", file=sys.stderr)

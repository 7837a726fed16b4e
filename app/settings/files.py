"""Recipes: the settings of an image, and how they come out of a PNG or JSON file.

What is uploaded comes from a stranger. It is read as strict JSON of bounded size; only known fields are taken, each
through the library's own checks; no path in it is opened, and no model outside of the list is loaded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import t2ictl
from t2ictl import Control, Request
from t2ictl.errors import BadSetting

__all__ = ["LARGEST_UPLOAD", "LIMITS", "LONGEST_PROMPT", "Recipe", "from_settings", "to_settings", "uploaded"]

LARGEST_UPLOAD = 20  # MiB of a file with settings
#: Ranges of the editor: what a widget holds, and what somebody still waits for.
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**53 - 1),
    "steps": (1, 200),
    "width": (8, 4096),
    "height": (8, 4096),
    "guidance_scale": (0.0, 50.0),
}
LONGEST_PROMPT = 4000  # characters
MOST_CONTROLS = 8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one image.

    Args:
        request: what the pipeline is asked for.
        controls: what to do, in order.
        model: name of the model that made it; empty if unknown.
        notes: what of the file was not taken, and why, a sentence each.
    """

    request: Request
    controls: tuple[Control, ...] = ()
    model: str = ""
    notes: tuple[str, ...] = field(default=())


def uploaded(name: str, content: bytes) -> Recipe:
    """Read the settings out of an uploaded file.

    Args:
        name: of the file, for messages; it is never opened.
        content: its bytes.

    Returns:
        The recipe.

    Raises:
        BadSetting: if it is too large, holds no settings, or settings that cannot be used; with the reason.
    """
    if len(content) > LARGEST_UPLOAD * 2**20:
        raise BadSetting(f"{name[:80]!r} is larger than {LARGEST_UPLOAD} MiB.", "Use an image made here, or its JSON.")
    handle = io.BytesIO(content)
    handle.name = name[:80]
    return from_settings(t2ictl.read_settings(handle))


def from_settings(settings: Mapping[str, Any]) -> Recipe:
    """Make a recipe of settings.

    Args:
        settings: as :func:`t2ictl.read_settings` returns them.

    Returns:
        The recipe; its notes say what was left out.

    Raises:
        BadSetting: if they cannot be used; with the reason.
    """
    notes = []
    if settings.get("schema", 1) > t2ictl.SCHEMA_VERSION:
        notes.append("The file was written by a newer version; what is unknown here was left out.")
    if "story" in settings:
        raise BadSetting("This is an image of a story; the editor makes single images.", "Use `t2ictl story`.")
    asked, found = settings.get("request"), settings.get("controls", [])
    if not isinstance(asked, dict) or not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadSetting("The settings have no request, or controls of another form.", "Use a file that t2ictl wrote.")
    if len(found) > MOST_CONTROLS:
        raise BadSetting(f"The settings have {len(found)} controls.", f"The editor takes {MOST_CONTROLS} at most.")
    pipeline = settings.get("pipeline")
    model = str(pipeline.get("model", "")) if isinstance(pipeline, dict) else ""
    request = _request(asked, notes)
    return Recipe(request=request, controls=_controls(found, notes), model=model[:200], notes=tuple(notes))


def _request(asked: Mapping[str, Any], notes: list[str]) -> Request:
    known = set(t2ictl.describe(Request)["properties"])
    unknown = sorted(set(asked) - known)
    if unknown:
        notes.append(f"Left out, unknown here: {_listed(unknown)}.")
    values = {name: value for name, value in asked.items() if name in known}
    if isinstance(values.get("prompt"), list) and len(values["prompt"]) == 1:
        values["prompt"] = values["prompt"][0]
    if not isinstance(values.get("prompt"), str):
        raise BadSetting("The settings have no prompt, or several.", "The editor makes one image of one prompt.")
    if max(len(values["prompt"]), len(str(values.get("negative_prompt", "")))) > LONGEST_PROMPT:
        raise BadSetting(f"The prompt has over {LONGEST_PROMPT} characters.", "No model reads that much.")
    if values.get("images_per_prompt", 1) != 1:
        notes.append("The file asks for several images; the editor makes the first.")
        values["images_per_prompt"] = 1
    for name, (low, high) in LIMITS.items():
        value = values.get(name)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise BadSetting(f"The settings have {name} {value!r:.40}.", f"The editor takes {low:g} to {high:g}.")
    return Request(**values)


def _controls(found: Sequence[Mapping[str, Any]], notes: list[str]) -> tuple[Control, ...]:
    known = t2ictl.list_controls()
    controls: list[Control] = []
    for data in found:
        name = data.get("control")
        if not isinstance(name, str) or name not in known:
            notes.append(f"Left out, there is no such control here: {_listed([str(name)])}.")
            continue
        fields = set(t2ictl.describe(known[name])["properties"])
        unknown = sorted(set(data) - fields - {"control", "left_open"})
        if unknown:
            notes.append(f"Left out of {name}, unknown here: {_listed(unknown)}.")
        if any(each.name == name for each in controls):
            notes.append(f"Left out: {name} is there twice.")
            continue
        values = {key: value for key, value in data.items() if key in fields or key == "left_open"}
        controls.append(t2ictl.control_from_dict({**values, "control": name}, files=False))
    return tuple(controls)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(name[:40] for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def to_settings(recipe: Recipe) -> str:
    """Write a recipe as a JSON file that :func:`uploaded` and ``t2ictl generate --from`` read.

    Args:
        recipe: the settings.

    Returns:
        JSON text.
    """
    from pydantic import TypeAdapter

    data = {
        "schema": t2ictl.SCHEMA_VERSION,
        "request": TypeAdapter(Request).dump_python(recipe.request, mode="json"),
        "controls": [t2ictl.control_to_dict(control) for control in recipe.controls],
        "pipeline": {"model": recipe.model},
    }
    return json.dumps(data, indent=2, ensure_ascii=False)

"""Presets and examples. A preset sets fields of its method and nothing else.

What was measured for a model and what was published come from the library; further ones are data files of this package.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import t2ictl
from t2ictl.app.settings.draft import differing
from t2ictl.app.settings.files import Recipe, from_settings
from t2ictl.app.text import plain
from t2ictl.controls.presets import measured_models

__all__ = ["Example", "Preset", "examples", "presets", "what_changed"]

_HOME = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values for a control.

    Args:
        name: what is shown.
        about: where they come from, a sentence.
        settings: the fields that are not at their defaults.
    """

    name: str
    about: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt with seed and controls, whose image is worth comparing with the plain one.

    Args:
        name: what is shown.
        about: what it shows, a sentence.
        recipe: all settings.
    """

    name: str
    about: str
    recipe: Recipe


@functools.cache
def presets(control: str) -> tuple[Preset, ...]:
    """List the presets of a control.

    Args:
        control: its name.

    Returns:
        The presets; none for a control that has no file.

    Example:
        >>> [preset.name for preset in presets("attend_and_excite")]
        ['Measured for shapes', 'As published']
    """
    cls = t2ictl.list_controls().get(control)
    if cls is None:
        return ()
    found = [
        Preset(
            name=f"Measured for {model.name}",
            about=f"Settings that were found on tuning prompts of the model {model.name} ({model.source}).",
            settings=dict(model.settings[control]),
        )
        for model in measured_models()
        if control in model.settings
    ]
    if cls.paper:
        about = "Weights, schedule and arithmetic of the published code; docs/published.md has the differences."
        found.append(Preset(name="As published", about=about, settings=differing(cls.published())))
    path = _HOME / "preset_files" / f"{control}.json"
    if path.is_file():
        found += [Preset(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    return tuple(found)


@functools.cache
def examples() -> tuple[Example, ...]:
    """List the examples.

    Returns:
        The examples; the first one is what a new page shows.
    """
    found = json.loads((_HOME / "examples.json").read_text(encoding="utf-8"))
    return tuple(
        Example(
            name=each["name"],
            about=each["about"],
            recipe=from_settings(
                {"request": each["request"], "controls": each["controls"], "pipeline": {"model": "shapes"}}
            ),
        )
        for each in found
    )


def what_changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """List what is different between the fields of a control.

    Args:
        before: fields that were not at their defaults.
        after: those that are not now.

    Returns:
        Markdown, a line; empty if nothing is.

    Example:
        >>> what_changed({"window": "auto"}, {"window": "late"})
        'window auto → late'
    """
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return "; ".join(f"{plain(name)} {_shown(before, name)} → {_shown(after, name)}" for name in names)


def _shown(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        return "default"
    value = fields[name]
    return plain(value if isinstance(value, str) else json.dumps(value), 60)

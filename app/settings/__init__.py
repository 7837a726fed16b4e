"""Settings of an image as the editor has them: what will be made next, what a file holds, presets and examples."""

from __future__ import annotations

from t2ictl.app.settings.draft import WORD_FIELDS, Draft, differing, starting_fields
from t2ictl.app.settings.files import (
    LARGEST_UPLOAD,
    LIMITS,
    LONGEST_PROMPT,
    Recipe,
    from_settings,
    to_settings,
    uploaded,
)
from t2ictl.app.settings.presets import Example, Preset, examples, presets, what_changed

__all__ = [
    "LARGEST_UPLOAD",
    "LIMITS",
    "LONGEST_PROMPT",
    "WORD_FIELDS",
    "Draft",
    "Example",
    "Preset",
    "Recipe",
    "differing",
    "examples",
    "from_settings",
    "presets",
    "starting_fields",
    "to_settings",
    "uploaded",
    "what_changed",
]

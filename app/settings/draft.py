"""The draft: what will be made next, as the widgets of a page fill it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import t2ictl
from t2ictl import Control, Request
from t2ictl.app.engine.editor import Editor
from t2ictl.app.engine.models import EMBEDDED
from t2ictl.app.engine.work import JobRequest
from t2ictl.app.settings.files import Recipe
from t2ictl.controls.presets import filled, measured_models

__all__ = ["WORD_FIELDS", "Draft", "differing", "starting_fields"]

#: Fields that name the words a control is about: the chips fill them.
WORD_FIELDS = ("concepts", "items")


@dataclass
class Draft:
    """What will be made next.

    Args:
        model: source of a found model.
        prompt: the prompt.
        negative: the negative prompt.
        seed: of the noise.
        is_locked: whether the next image has the same seed.
        steps: denoising steps.
        width: of the image (pixels); None for the model's own.
        height: of the image (pixels); None for the model's own.
        guidance: strength of guidance.
        parser: how objects are found.
        compare: whether the plain image is made too.
        chosen: names of the controls, in order.
        fields: of each control the values that are not its defaults.
        words: the chips that are on.
        version: goes up when something else than a widget changed it.
    """

    model: str = EMBEDDED
    prompt: str = ""
    negative: str = ""
    seed: int = 0
    is_locked: bool = True
    steps: int = 25
    width: int | None = None
    height: int | None = None
    guidance: float = 7.5
    parser: str = "grammar"
    compare: bool = True
    chosen: list[str] = field(default_factory=list)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    version: int = 0

    def request(self) -> Request:
        """Return what the pipeline is asked for.

        Raises:
            BadSetting: if a value cannot be used.
        """
        return Request(
            prompt=self.prompt,
            negative_prompt=self.negative,
            seed=self.seed,
            steps=self.steps,
            width=self.width,
            height=self.height,
            guidance_scale=self.guidance,
            parser=self.parser,
        )

    def control(self, name: str) -> Control:
        """Make one of the chosen controls.

        Args:
            name: of the control.

        Raises:
            BadSetting: if a value cannot be used; no file is opened.
        """
        values = dict(self.fields.get(name, {}))
        for each in WORD_FIELDS:
            if self.words and each in _fields(name) and not values.get(each):
                values[each] = list(self.words)
        return t2ictl.control_from_dict({**values, "control": name, "preset": "none"}, files=False)

    def job_request(self) -> JobRequest:
        """Return the whole of it, as the worker takes it.

        Raises:
            BadSetting: if a value cannot be used.
        """
        controls = tuple(self.control(name) for name in self.chosen)
        return JobRequest(model=self.model, request=self.request(), controls=controls, compare=self.compare)

    def take(self, recipe: Recipe, editor: Editor) -> None:
        """Take all settings of an image. The model stays, unless the one that made it can be used.

        Args:
            recipe: the settings.
            editor: knows the models and reads the prompt.
        """
        asked = recipe.request
        self.prompt, self.negative = str(asked.prompt), asked.negative_prompt
        self.seed, self.steps, self.guidance = asked.seed, asked.steps, asked.guidance_scale
        self.width, self.height, self.parser, self.is_locked = asked.width, asked.height, asked.parser, True
        usable = (each for each in editor.found() if not each.why_not)
        source = next((each.source for each in usable if recipe.model in (each.source, each.folder.name)), None)
        self.model = source or self.model
        self.chosen = [control.name for control in recipe.controls]
        self.fields |= {control.name: differing(_filled(control, self.model)) for control in recipe.controls}
        self.words = self._shared_words(editor)
        self.version += 1

    def _shared_words(self, editor: Editor) -> list[str]:
        """Words that all controls are about become chips; what chips cannot say stays in the control's own form."""
        places = [(name, each) for name in self.chosen for each in WORD_FIELDS if each in _fields(name)]
        found = [self.fields[name].get(each) or [] for name, each in places]
        if not found or any(words != found[0] for words in found) or not all(isinstance(one, str) for one in found[0]):
            return []
        read = editor.read(self.model, self.prompt)
        if not all(read.has(word) for word in found[0]):
            return []
        for name, each in places:
            self.fields[name].pop(each, None)
        return list(found[0])


def starting_fields(name: str, model: str) -> dict[str, Any]:
    """Return what a control has when it is chosen: what was measured for the model, else its defaults.

    Args:
        name: of the control.
        model: source of a found model.

    Returns:
        The fields that are not at their defaults.

    Example:
        >>> starting_fields("attend_and_excite", EMBEDDED)["refinement"] is None
        True
    """
    known = next((each for each in measured_models() if each.name == model), None)
    return dict(known.settings.get(name, {})) if known is not None else {}


def _filled(control: Control, model: str) -> Control:
    """A control of a file, with what its preset means for a model in the fields that it leaves open."""
    if control.preset == "none":
        return control
    is_published = control.preset == "published"
    return filled(control, control.published_settings if is_published else starting_fields(control.name, model))


def _fields(name: str) -> Mapping[str, Any]:
    described: Mapping[str, Any] = t2ictl.describe(t2ictl.list_controls()[name])["properties"]
    return described


def differing(control: Control) -> dict[str, Any]:
    """Return the values of a control that are not its defaults, as plain JSON data.

    Args:
        control: the control.

    Returns:
        Value by field.
    """
    default = t2ictl.control_to_dict(type(control)(preset="none"))
    found = t2ictl.control_to_dict(control)
    return {
        name: value for name, value in found.items() if name in default and name != "preset" and value != default[name]
    }

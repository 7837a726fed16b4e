"""What a browser session holds: every key of its state, in one place.

A draft is what will be made next. Widgets show it under keys that carry its version: when something else than a widget
changes it (a preset, a restored image), the version goes up and every widget is made anew from it. So nothing ever
writes the key of a widget that is on the page.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

import t2ictl
from t2ictl import Control, Request
from t2ictl.app.engine.editor import Editor
from t2ictl.app.engine.jobs import Job
from t2ictl.app.engine.models import EMBEDDED
from t2ictl.app.engine.work import Order
from t2ictl.app.recipes import Recipe
from t2ictl.app.text import plain

__all__ = ["WORD_FIELDS", "Draft", "Page", "differing", "new_seed", "page"]

_KEY = "t2ictl-page"
_QUERY = "session"
#: Fields that name the words a control is about: the chips fill them.
WORD_FIELDS = ("concepts", "items")
UNDO_KEPT = 20


def new_seed() -> int:
    """Draw a seed that no widget rounds."""
    return secrets.randbelow(2**31)


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
        """Give what the pipeline is asked for.

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
        return t2ictl.control_from_dict({**values, "control": name}, files=False)

    def order(self) -> Order:
        """Give the whole of it.

        Raises:
            BadSetting: if a value cannot be used.
        """
        controls = tuple(self.control(name) for name in self.chosen)
        return Order(model=self.model, request=self.request(), controls=controls, compare=self.compare)

    def take(self, recipe: Recipe, editor: Editor) -> None:
        """Take all settings of an image. The model stays, unless the one that made it is there.

        Args:
            recipe: the settings.
            editor: knows the models and reads the prompt.
        """
        asked = recipe.request
        self.prompt, self.negative = str(asked.prompt), asked.negative_prompt
        self.seed, self.steps, self.guidance = asked.seed, asked.steps, asked.guidance_scale
        self.width, self.height, self.parser, self.is_locked = asked.width, asked.height, asked.parser, True
        source = next((each.source for each in editor.found() if recipe.model in (each.source, each.folder.name)), None)
        self.model = source or self.model
        self.chosen = [control.name for control in recipe.controls]
        self.fields |= {control.name: differing(control) for control in recipe.controls}
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


def _fields(name: str) -> Mapping[str, Any]:
    described: Mapping[str, Any] = t2ictl.describe(t2ictl.list_controls()[name])["properties"]
    return described


def differing(control: Control) -> dict[str, Any]:
    """Give the values of a control that are not its defaults, as plain JSON data.

    Args:
        control: the control.

    Returns:
        Value by field.
    """
    default = t2ictl.control_to_dict(type(control)())
    return {name: value for name, value in t2ictl.control_to_dict(control).items() if value != default[name]}


@dataclass
class Page:
    """One browser session.

    Args:
        session: its name, which nobody else knows.
        draft: what will be made next.
        jobs: jobs that this page has not seen the end of.
        shown: number of the result on the stage.
        notes: messages, pairs of kind (``"error"``, ``"info"``) and text; they stay until the next thing is begun.
        before: earlier drafts, for undo.
        point: the place that was pointed at.
        seen_point: what the stage said last, so that a place is taken once.
        collected: numbers of jobs whose image is on the page already.
        changed: what the last preset changed.
    """

    session: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    draft: Draft = field(default_factory=Draft)
    jobs: list[Job] = field(default_factory=list)
    shown: int | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)
    before: list[Draft] = field(default_factory=list)
    point: dict[str, Any] | None = None
    seen_point: dict[str, Any] | None = None
    collected: set[int] = field(default_factory=set)
    changed: str = ""

    def remember(self) -> None:
        """Keep the draft as it is, so that what comes next can be undone."""
        self.notes.clear()
        self.before = [*self.before[-UNDO_KEPT + 1 :], copy.deepcopy(self.draft)]

    def undo(self) -> None:
        """Go back to the draft before; its widgets are made anew."""
        if self.before:
            version = self.draft.version
            self.draft = self.before.pop()
            self.draft.version = version + 1
            self.changed = ""

    def say(self, kind: str, text: str) -> None:
        """Show a message at the top of the page, until the next thing is begun.

        Args:
            kind: ``"error"`` or ``"info"``.
            text: Markdown; what users typed is escaped by the caller.
        """
        self.notes.append((kind, text))

    def collect(self) -> None:
        """Take what jobs have made, once, whoever saw first that they ended."""
        # Asked once and first: a job that ends while its result is looked at is taken at the next look.
        live = [job for job in self.jobs if job.is_live]
        for job in self.jobs:
            if job.result is not None and job.number not in self.collected:
                self.collected.add(job.number)
                self.shown, self.point = job.result.number, None
            if job in live:
                continue
            if job.error is not None:
                self.say("error", f"{plain(job.error[0], 500)} {plain(job.error[1], 300)}")
            elif job.state == "cancelled":
                what = "The plain image was cancelled; the controlled one is here." if job.result else "Cancelled."
                self.say("info", what)
        self.collected &= {job.number for job in live}
        self.jobs = live

    def key(self, name: str) -> str:
        """Name the widget that shows a part of the draft.

        Args:
            name: of the part.
        """
        return f"{name}/{self.draft.version}"


def page(editor: Editor) -> Page:
    """Give the page of the browser tab that runs now.

    Its session is named in the address, so a tab that is loaded again finds its images and settings.

    Args:
        editor: knows the sessions that there are.
    """
    if _KEY not in st.session_state:
        named = st.query_params.get(_QUERY, "")
        found = editor.pages.get(named) or Page()
        found.draft.version += found.draft.version > 0  # a new tab has no widgets yet
        editor.pages[found.session] = found
        st.query_params[_QUERY] = found.session
        st.session_state[_KEY] = found
    here: Page = st.session_state[_KEY]
    return here

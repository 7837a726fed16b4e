"""What a browser session holds: every key of its state, in one place.

A draft is what will be made next. Widgets show it under keys that carry its version: when something else than a widget
changes it (a preset, a restored image), the version goes up and every widget is made anew from it. So nothing ever
writes the key of a widget that is on the page.
"""

from __future__ import annotations

import copy
import secrets
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from t2ictl.app.engine.editor import Editor
from t2ictl.app.engine.jobs import Job
from t2ictl.app.settings import Draft
from t2ictl.app.text import plain

__all__ = ["Page", "new_seed", "page"]

_KEY = "t2ictl-page"
_QUERY = "session"
UNDO_KEPT = 20


def new_seed() -> int:
    """Draw a seed that no widget rounds."""
    return secrets.randbelow(2**31)


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
        point: the position that was pointed at.
        seen_point: what the stage said last, so that a position is taken once.
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
        # Asked once and first: a job that ends while its result is taken is collected the next time.
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
    """Return the page of the browser tab that runs now.

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

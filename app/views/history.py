"""History: what this session made, to see again, to use again, to keep; and settings out of a file."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

import t2ictl
from t2ictl.app.engine.editor import SessionHandle
from t2ictl.app.engine.store import Result
from t2ictl.app.settings import LARGEST_UPLOAD, Draft, Recipe, from_settings, uploaded
from t2ictl.app.state import Page
from t2ictl.app.text import plain
from t2ictl.errors import T2ictlError

__all__ = ["file_choice", "history"]

COLUMNS = 8
#: The newest that are shown at once: every one brings buttons along, which a page draws again at each click.
SHOWN = 16
_UPLOAD = "upload"


def history(page: Page, handle: SessionHandle) -> None:
    """Show the results of this session.

    Args:
        page: of this session.
        handle: of this session.
    """
    st.markdown("##### History")
    results = handle.editor.store.results(handle.session)
    if not results:
        st.caption("Images that you make stay here while this page is open; pinned ones last.")
        return
    count = len(results)
    shown = results
    line, everything = st.columns([3, 2], vertical_alignment="center")
    line.caption(f"{count} image{'s' if count > 1 else ''} of this session, the newest first")
    if count > SHOWN and not everything.toggle(f"Show all {count}", key="all-history"):
        shown = [result for result in results if result.is_pinned or result in results[:SHOWN]]
    for start in range(0, len(shown), COLUMNS):
        columns = st.columns(COLUMNS)
        for column, result in zip(columns, shown[start : start + COLUMNS], strict=False):
            with column:
                _result(page, handle, result)


def file_choice(page: Page, handle: SessionHandle) -> None:
    """Take settings out of an image or a JSON file.

    Args:
        page: of this session.
        handle: of this session.
    """
    with st.popover("Settings from a file", width="stretch"):
        st.file_uploader(
            "A PNG made here, or its JSON", type=["png", "json"], max_upload_size=LARGEST_UPLOAD, key=_UPLOAD,
            on_change=_take_file, args=(page, handle),
        )  # fmt: skip


def _result(page: Page, handle: SessionHandle, result: Result) -> None:
    mark = " · pinned" if result.is_pinned else ""
    here = " · shown" if result.number == page.shown else ""
    st.image(str(result.thumbnail), width="stretch", alt=f"Image of “{result.prompt}”")
    st.caption(f"{plain(result.prompt, 48)}{mark}{here}")
    with st.popover("Use", width="stretch"):
        for name, act in _verbs(page, handle, result).items():
            st.button(name, key=f"{name}/{result.number}", on_click=act, width="stretch")


def _verbs(page: Page, handle: SessionHandle, result: Result) -> dict[str, Callable[[], None]]:
    def show() -> None:
        page.shown = result.number
        page.point = None

    def recall(take: Callable[[Draft, Recipe], None]) -> Callable[[], None]:
        """Make what a button does that takes settings of this image."""

        def act() -> None:
            """Take them, or report why they cannot be read."""
            try:
                recipe = from_settings(t2ictl.read_settings(result.path))
            except T2ictlError as error:
                page.say("error", plain(str(error), 500))
                return
            page.remember()
            take(page.draft, recipe)
            page.draft.version += 1

        return act

    def everything(draft: Draft, recipe: Recipe) -> None:
        draft.take(recipe, handle.editor)

    def remix(draft: Draft, recipe: Recipe) -> None:
        seed, locked = draft.seed, draft.is_locked
        draft.take(recipe, handle.editor)
        draft.seed, draft.is_locked = seed, locked

    def prompt(draft: Draft, recipe: Recipe) -> None:
        draft.prompt, draft.negative = str(recipe.request.prompt), recipe.request.negative_prompt

    def seed(draft: Draft, recipe: Recipe) -> None:
        draft.seed, draft.is_locked = recipe.request.seed, True

    def pin() -> None:
        handle.editor.store.pin(handle.session, result.number, not result.is_pinned)

    def delete() -> None:
        handle.editor.store.delete(handle.session, result.number)

    return {
        "Show": show,
        "Use all settings": recall(everything),
        "Use the prompt": recall(prompt),
        "Use the seed": recall(seed),
        "Remix: all but the seed": recall(remix),
        "Unpin" if result.is_pinned else "Pin": _told(page, pin),
        "Delete": _told(page, delete),
    }


def _told(page: Page, act: Callable[[], None]) -> Callable[[], None]:
    """What cannot be done is said on the page: a callback's error would end it."""

    def told() -> None:
        try:
            act()
        except T2ictlError as error:
            page.say("error", plain(str(error), 500))

    return told


def _take_file(page: Page, handle: SessionHandle) -> None:
    file = st.session_state.get(_UPLOAD)
    if file is None:
        return
    page.notes.clear()
    try:
        recipe = uploaded(file.name, file.getvalue())
        page.remember()
        page.draft.take(recipe, handle.editor)
    except T2ictlError as error:
        page.say("error", plain(str(error), 500))
        return
    page.say("info", f"Settings taken from {plain(file.name, 80)}.")
    for note in recipe.notes:
        page.say("info", plain(note, 500))

"""The page: its frame, and what is where. Everything else is in the views; nothing is computed here."""

from __future__ import annotations

import streamlit as st

from t2ictl.app.engine.editor import Editor, SessionHandle
from t2ictl.app.launch import new_editor
from t2ictl.app.settings import examples
from t2ictl.app.state import Page, page
from t2ictl.app.text import plain
from t2ictl.app.views.compose import compose, example_choice
from t2ictl.app.views.history import file_choice, history
from t2ictl.app.views.image import image_panel
from t2ictl.app.views.inspect import MapChoice, inspect
from t2ictl.app.views.shown import shown_result
from t2ictl.app.views.sidebar import sidebar
from t2ictl.errors import T2ictlError

# Three columns fit on a laptop when the page's margins are small.
_FRAME = """<style>
[data-testid="stMainBlockContainer"] { padding: 3.75rem 1.5rem 2rem; }
[data-testid="stHeadingWithActionElements"] h5 { padding: 0; }
/* Streamlit's own offer to developers of pages; it covers ours. */
[data-testid="stSkillsNudge"] { display: none; }
</style>"""


@st.cache_resource(show_spinner=False, on_release=Editor.close)
def _editor() -> Editor:
    """One for all sessions: it owns the worker, and the worker owns the model."""
    return new_editor()


@st.cache_resource(show_spinner=False, scope="session", on_release=SessionHandle.leave)
def _handle(session: str) -> SessionHandle:
    """One for each session; when the session ends, its jobs and results go."""
    return SessionHandle(_editor(), session)


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="t2ictl", layout="wide", initial_sidebar_state="collapsed")
    st.html(_FRAME)
    here = page(_editor())
    handle = _handle(here.session)
    if not here.draft.version:
        here.draft.take(examples()[0].recipe, handle.editor)
    here.collect()
    for kind, text in here.notes:
        (st.error if kind == "error" else st.info)(text)
    sidebar(here, handle)
    _bar(here, handle)
    left, middle, right = st.columns([10, 14, 11], gap="medium")
    with left:
        compose(here, handle)
    shown = shown_result(here, handle)
    read = None
    if shown is not None:
        try:
            read = handle.editor.read(here.draft.model, shown.result.prompt)
        except T2ictlError:
            read = None  # the image is of a model that is gone: all words are offered
    look = MapChoice()
    with right:
        look = inspect(here, shown, read)
    with middle:
        image_panel(here, handle, shown, look)
    st.divider()
    history(here, handle)


def _bar(here: Page, handle: SessionHandle) -> None:
    """What this is, which model, and ways to begin."""
    title, offered, file = st.columns([5, 2, 2], vertical_alignment="center")
    memory = handle.editor.memory()
    model = next((model.name for model in handle.editor.found() if model.source == here.draft.model), "")
    title.markdown(f"**t2ictl** · {plain(model)} on {plain(memory.device)} :gray[(change it in the sidebar)]")
    with offered:
        example_choice(here, handle)
    with file:
        file_choice(here, handle)


if __name__ == "__main__":
    main()

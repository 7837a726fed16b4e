"""Sidebar: which model, on what device, with how much memory, and who waits."""

from __future__ import annotations

import streamlit as st

from t2ictl.app.engine.editor import SessionHandle
from t2ictl.app.state import Page
from t2ictl.app.text import plain
from t2ictl.errors import T2ictlError
from t2ictl.shapes.embedded import MODELS

__all__ = ["estimate_line", "sidebar"]


def sidebar(page: Page, handle: SessionHandle) -> None:
    """Show model, device, memory and queue.

    Args:
        page: of this session.
        handle: of this session.
    """
    with st.sidebar:
        st.markdown("#### Model")
        _models(page, handle)
        st.markdown("#### Device")
        _device(handle)
        st.markdown("#### Queue")
        running, waiting = handle.editor.runner.load()
        mine = sum(job.is_live for job in page.jobs)
        st.caption(f"{running} at work, {waiting} waiting; {mine} of them yours.")


def _models(page: Page, handle: SessionHandle) -> None:
    draft, found = page.draft, handle.editor.found()
    usable = {model.source: model for model in found if not model.why_not}
    if draft.model not in usable:
        st.error("The chosen model is not there any more; the embedded one is taken.")
        draft.model = next(iter(usable))
    sources = list(usable)
    draft.model = st.selectbox(
        "Model", sources, index=sources.index(draft.model), key=page.key("model"), label_visibility="collapsed",
        format_func=lambda source: usable[source].name,
    )  # fmt: skip
    st.caption(f"{plain(usable[draft.model].family)}. It is loaded when an image is asked for.")
    if usable[draft.model].note:
        st.caption(plain(usable[draft.model].note))
    refused = [model for model in found if model.why_not]
    if refused:
        with st.expander(f"{len(refused)} more cannot be used"):
            for model in refused:
                st.caption(f"**{plain(model.name)}**: {plain(model.why_not)}")
    if all(model.source in MODELS for model in found):
        st.caption("Others: start with `t2ictl app --models FOLDER`, a folder that holds diffusers folders.")


def _device(handle: SessionHandle) -> None:
    memory = handle.editor.memory()
    precision = f", {memory.dtype}" if memory.dtype else ""
    st.caption(f"{plain(memory.device)}{precision}")
    st.progress(1 - memory.free / memory.total, text=f"{_size(memory.free)} of {_size(memory.total)} are free")
    st.caption(f"The editor itself has {_size(memory.used)}.")


def estimate_line(page: Page, handle: SessionHandle, words: int) -> None:
    """Show about how much memory the next image takes, and warn where that is more than is free.

    Args:
        page: of this session.
        handle: of this session.
        words: words of the prompt.
    """
    try:
        needed = handle.editor.estimate(page.draft.job_request(), words)
        memory = handle.editor.memory()
    except T2ictlError as error:
        st.caption(f"No estimate of memory: {plain(str(error))}")
        return
    loaded = needed.weights if handle.editor.models.loaded == page.draft.model else 0
    parts = f"weights {_size(needed.weights)}, work {_size(needed.work)}, maps {_size(needed.maps)}"
    line = f"Takes about {_size(needed.total)} of memory"
    if needed.total - loaded > memory.free:
        st.warning(
            f"{line} ({parts}), and {_size(memory.free)} are free: lower the size first, then leave out controls that "
            "move latents."
        )
    else:
        st.caption(f"{line}; {_size(memory.free)} are free.", help=parts)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"

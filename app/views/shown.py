"""What is on the stage: the results that the page shows, with their maps."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from t2ictl.app.engine.details import Details
from t2ictl.app.engine.editor import SessionHandle
from t2ictl.app.engine.store import Result
from t2ictl.app.state import Page
from t2ictl.app.text import plain
from t2ictl.errors import T2ictlError

__all__ = ["Shown", "shown_result"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is on the stage.

    Args:
        result: the image.
        details: its maps and losses.
        plain: the plain image of the same seed, if there is one.
        plain_details: maps of that.
    """

    result: Result
    details: Details
    plain: Result | None = None
    plain_details: Details | None = None


def shown_result(page: Page, handle: SessionHandle) -> Shown | None:
    """Find what is on the stage.

    Args:
        page: of this session.
        handle: of this session.

    Returns:
        It, or None if there is nothing yet, or no more.
    """
    if page.shown is None:
        return None
    store = handle.editor.store
    try:
        result = store.find(handle.session, page.shown)
        details = handle.editor.details(result)
        other = store.find(handle.session, result.plain) if result.plain is not None else None
        return Shown(
            result=result, details=details, plain=other,
            plain_details=None if other is None else handle.editor.details(other),
        )  # fmt: skip
    except T2ictlError as error:
        page.shown = None
        st.info(plain(str(error)))
        return None

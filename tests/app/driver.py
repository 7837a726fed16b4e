"""The page by Streamlit's own test runner, and what a user does with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import t2ictl.app
from t2ictl.app import launch
from t2ictl.app.engine.editor import Editor
from t2ictl.app.state import Page

PAGE = Path(t2ictl.app.__file__).parent / "streamlit_app.py"


class Driver:
    """A page and what a user does with it; every run asserts that nothing went wrong on the way."""

    def __init__(self) -> None:
        self.at = AppTest.from_file(str(PAGE), default_timeout=60)
        self.run()

    def run(self) -> None:
        self.at.run()
        assert not self.at.exception, self.at.exception[0].stack_trace

    @property
    def page(self) -> Page:
        found: Page = self.at.session_state["t2ictl-page"]
        return found

    def widget(self, kind: str, label: str) -> Any:
        (found,) = [each for each in getattr(self.at, kind) if each.label == label]
        return found

    def set(self, kind: str, label: str, value: Any) -> None:
        self.widget(kind, label).set_value(value)
        self.run()

    def press(self, key: str) -> None:
        self.at.button(key=key).click()
        self.run()

    def make(self) -> None:
        """Press the button and wait until everything is made and collected."""
        self.press("generate")
        until = time.monotonic() + 120
        while self.page.jobs and time.monotonic() < until:
            time.sleep(0.05)
            self.run()
        assert not self.page.jobs

    def texts(self) -> str:
        kinds = ("caption", "markdown", "error", "info", "warning")
        return "\n".join(each.value for kind in kinds for each in getattr(self.at, kind))


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Editor]:
    st.cache_resource.clear()  # an editor of another test is not ours
    made = Editor(folder=tmp_path / "results", device="cpu")
    monkeypatch.setattr(launch, "new_editor", lambda: made)
    yield made
    made.close()


@pytest.fixture
def driver(editor: Editor) -> Driver:
    return Driver()


def quick(driver: Driver, steps: int = 2) -> None:
    driver.set("number_input", "Steps", steps)

"""A running editor, and a browser to see it with."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

#: How long a session outlives its tab in these tests (seconds).
SESSION_SECONDS = 2
START_SECONDS = 60

expect.set_options(timeout=30_000)


def _chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("T2ICTL_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    assert found, "There is no Chromium; make test-browser installs it, or name one in T2ICTL_CHROMIUM."
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """An editor in a process of its own."""

    def __init__(self, log: Path) -> None:
        self.port, self.log = _free_port(), log
        self.address = f"http://localhost:{self.port}"
        environment = os.environ | {
            "T2ICTL_EDITOR": json.dumps({"grace": SESSION_SECONDS}), "TMPDIR": str(log.parent),
            "STREAMLIT_SERVER_DISCONNECTED_SESSION_TTL": str(SESSION_SECONDS), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "t2ictl", "app", "--headless", "--device", "cpu", "--port", str(self.port)]
        with log.open("wb") as handle:
            self.process = subprocess.Popen(command, stdout=handle, stderr=handle, env=environment)
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the editor did not start: {self.log.read_text()}")

    @property
    def images(self) -> set[Path]:
        """The images that it keeps, of all sessions."""
        return set(self.log.parent.glob("t2ictl-editor-*/**/*.png"))

    @property
    def memory(self) -> int:
        """Bytes of the process that are in memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("editor") / "log.txt")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        yield made
        made.close()


class Visitor:
    """Somebody at the page, who writes down what should not happen."""

    def __init__(self, browser: Browser, server: Server, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, **options)
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.address = server.address
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda asked: self._asked(asked.url, server))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.goto(server.address)
        self.button("Generate").wait_for()

    def _asked(self, url: str, server: Server) -> None:
        own = (server.address, server.address.replace("http", "ws"), "data:", "blob:")
        if not url.startswith(own):
            self.wrong.append(f"request: {url}")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name)

    def choose(self, name: str) -> None:
        """A segment or a pill, by what is on it; the last one, as chips of the prompt come first."""
        self.page.locator("[data-testid='stButtonGroup'] button").get_by_text(name, exact=True).last.click()
        self.settle()

    def settle(self) -> None:
        """Wait until the page has run."""
        self.page.wait_for_timeout(150)
        self.page.locator("[data-testid='stApp'][data-test-script-state='notRunning']").wait_for()

    def generate(self) -> None:
        """Press the button, and wait for the image and the one it is compared with."""
        count = self.page.get_by_text(re.compile(r"^\d+ images? of this session"))
        before = int(count.inner_text().split()[0]) if count.count() else 0
        self.button("Generate").click()
        self.page.get_by_text(re.compile(rf"^{before + 1} images? of this session")).wait_for()
        expect(self.button("Cancel")).to_have_count(0)
        self.settle()

    def number(self, label: str, value: int) -> None:
        field = self.page.get_by_label(label, exact=True).first
        field.fill(str(value))
        field.press("Enter")
        self.settle()

    def steps(self, count: int) -> None:
        """Open the folded settings if need be, and say how many steps."""
        self.settle()  # what is folded out is not to be seen for a moment while the page is drawn anew
        field = self.page.get_by_label("Steps", exact=True).first
        for _ in range(3):
            if not field.is_visible():
                self.page.get_by_text("Steps, guidance, size, tokens").click()
            self.page.wait_for_timeout(700)
            if field.is_visible():
                break
        self.number("Steps", count)

    def leave(self) -> None:
        self.context.close()


@pytest.fixture
def visitor(browser: Browser, server: Server) -> Iterator[Visitor]:
    made = Visitor(browser, server)
    yield made
    assert made.wrong == []
    made.leave()

"""The images of the editor in the README, made anew: ``python -m tests.browser.screenshots docs/images``."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.browser.conftest import Server, Visitor, _chromium

SIZE = {"width": 1280, "height": 860}


def _whole(browser: Browser, server: Server, folder: Path) -> None:
    """The page with its example: a heat map over both images, and the words at a position."""
    visitor = Visitor(browser, server)
    visitor.page.set_viewport_size(SIZE)  # type: ignore[arg-type]
    visitor.generate()
    visitor.choose("cross")
    box = visitor.page.locator(".stage .frame").first.bounding_box()
    assert box
    visitor.page.locator(".stage .frame").first.click(position={"x": box["width"] * 0.52, "y": box["height"] * 0.27})
    visitor.settle()
    visitor.page.wait_for_timeout(1500)
    visitor.page.screenshot(path=folder / "editor.png")
    visitor.choose("Slider")
    visitor.choose("Overlap")
    visitor.page.wait_for_timeout(1500)
    visitor.page.screenshot(path=folder / "editor_slider.png", clip=_right_of_compose(visitor))  # type: ignore[arg-type]
    visitor.leave()


def _right_of_compose(visitor: Visitor) -> dict[str, float]:
    box = visitor.page.get_by_role("heading", name="Image").bounding_box()
    assert box
    left, top = box["x"] - 12, box["y"] - 8
    return {"x": left, "y": top, "width": SIZE["width"] - left, "height": SIZE["height"] - top}


def _history(browser: Browser, server: Server, folder: Path) -> None:
    """Dark, with the sidebar, the losses, and a history."""
    visitor = Visitor(browser, server, color_scheme="dark")
    visitor.page.set_viewport_size({"width": 1480, "height": 860})
    for name in ("Dotted square and cross", "Cross and circle", "Circle and square"):
        visitor.button("Examples").click()
        visitor.page.get_by_role("button", name=re.compile(f"^{name}")).click()
        visitor.settle()
        visitor.page.keyboard.press("Escape")
        visitor.generate()
    visitor.choose("Losses")
    visitor.page.get_by_test_id("stExpandSidebarButton").click()
    visitor.page.wait_for_timeout(1500)
    visitor.page.screenshot(path=folder / "editor_dark.png")
    visitor.page.get_by_test_id("stMain").evaluate("it => it.scrollTo(0, it.scrollHeight)")
    visitor.button("Use").first.click()
    visitor.page.wait_for_timeout(1000)
    visitor.page.screenshot(path=folder / "editor_history.png")
    visitor.leave()


def _progress(browser: Browser, server: Server, folder: Path) -> None:
    visitor = Visitor(browser, server)
    visitor.page.set_viewport_size(SIZE)  # type: ignore[arg-type]
    visitor.steps(200)
    visitor.page.get_by_test_id("stMain").evaluate("it => it.scrollTo(0, 0)")
    visitor.button("Generate").click()
    visitor.page.get_by_text(re.compile(r"Step [6-9]\d of 200")).wait_for()
    clip = {**_right_of_compose(visitor), "height": 150}
    visitor.page.screenshot(path=folder / "editor_progress.png", clip=clip)  # type: ignore[arg-type]
    visitor.leave()


def main(folder: Path) -> None:
    """Take all images.

    Args:
        folder: where they go.
    """
    with tempfile.TemporaryDirectory() as logs, sync_playwright() as playwright:
        server = Server(Path(logs) / "log.txt")
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        try:
            for take in (_whole, _history, _progress):
                take(browser, server, folder)
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The editor as a user has it: a whole journey, two people at once, strangers' files, and fifty images in a row."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

import t2ictl
from tests.browser.conftest import SESSION_SECONDS, Server, Visitor

pytestmark = pytest.mark.browser

#: Growth of the server's memory from the first ten images to the last ten of fifty; docs/editor.md has the figures.
GROWTH_MIB = 8
STEPPING = re.compile(r"Step \d+ of 200")


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def download(visitor: Visitor, folder: Path, name: str) -> Path:
    with visitor.page.expect_download() as waiting:
        visitor.button(name).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def upload(visitor: Visitor, name: str, content: bytes) -> None:
    visitor.button("Settings from a file").click()
    file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    visitor.page.locator("input[type=file]").set_input_files(file)  # type: ignore[arg-type]
    visitor.settle()
    visitor.page.keyboard.press("Escape")
    visitor.settle()


def compose(visitor: Visitor) -> None:
    """A prompt and two of its chips."""
    prompt = visitor.page.get_by_label("Prompt", exact=True)
    prompt.fill("a green circle and a red star")
    prompt.press("Tab")
    visitor.settle()
    for word in ("circle", "star"):
        visitor.page.locator("[data-testid='stButtonGroup'] button").get_by_text(word, exact=True).first.click()
        visitor.settle()


def begin_and_cancel(visitor: Visitor) -> None:
    visitor.steps(200)
    visitor.button("Generate").click()
    expect(visitor.page.get_by_text(STEPPING).first).to_be_visible()
    visitor.page.get_by_role("button", name="Cancel").first.click()
    expect(visitor.page.get_by_text("Cancelled.")).to_be_visible()
    expect(visitor.button("Download PNG")).to_have_count(0)


def compare_by_slider(visitor: Visitor) -> None:
    """Where the slider stands, one image ends and the other begins."""
    visitor.choose("Slider")
    slider = visitor.page.get_by_label("Where the plain image ends")
    line = visitor.page.locator(".stage .line")
    before = line.bounding_box()
    slider.focus()
    for _ in range(20):
        slider.press("ArrowLeft")
    after = line.bounding_box()
    assert before and after and after["x"] < before["x"] - 20


def point(visitor: Visitor) -> None:
    """The heat map of a word, and the words at a position, by pointer and by keyboard."""
    page = visitor.page
    visitor.choose("circle")
    expect(page.locator(".stage img.heat")).to_have_count(2)
    frame = page.locator(".stage .frame")
    box = frame.bounding_box()
    assert box
    frame.click(position={"x": box["width"] * 0.75, "y": box["height"] * 0.25})
    expect(page.get_by_text("At 75% from the left and 25% from the top")).to_be_visible()
    expect(page.locator("[data-testid='stDataFrame']")).to_be_visible()
    frame.press("ArrowRight")
    expect(page.get_by_text("At 81% from the left")).to_be_visible()


def test_the_whole_journey(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    compose(visitor)
    begin_and_cancel(visitor)
    visitor.steps(12)
    visitor.generate()
    first = download(visitor, tmp_path, "Download PNG")
    made = t2ictl.read_settings(first)
    assert made["request"]["prompt"] == "a green circle and a red star" and made["request"]["steps"] == 12
    assert made["controls"][0]["control"] == "attention_segregation"
    assert made["controls"][0]["concepts"] == ["circle", "star"]
    compare_by_slider(visitor)
    point(visitor)
    # change a setting, and come back by history
    visitor.number("Seed", 4)
    visitor.generate()
    second = download(visitor, tmp_path, "Download PNG")
    assert t2ictl.read_settings(second)["request"]["seed"] == 4 and pixels(second) != pixels(first)
    visitor.button("Use").last.click()
    visitor.button("Use all settings").click()
    visitor.settle()
    expect(page.get_by_label("Seed", exact=True)).to_have_value(str(made["request"]["seed"]))
    visitor.generate()
    assert pixels(download(visitor, tmp_path, "Download PNG")) == pixels(first)
    # the file goes back in on a page that knows nothing
    page.goto("about:blank")
    page.goto(visitor.address)
    visitor.button("Generate").wait_for()
    upload(visitor, "image.png", first.read_bytes())
    expect(page.get_by_text("Settings taken from image.png")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a green circle and a red star")
    visitor.generate()
    last = download(visitor, tmp_path, "Download PNG")
    assert t2ictl.read_settings(last) == made and pixels(last) == pixels(first)
    settings = download(visitor, tmp_path, "Download settings")
    assert json.loads(settings.read_text())["request"] == made["request"]


def test_control_and_enter_generate_what_was_just_typed(visitor: Visitor, tmp_path: Path) -> None:
    visitor.steps(2)
    prompt = visitor.page.get_by_label("Prompt", exact=True)
    prompt.fill("a green star")
    prompt.press("Control+Enter")
    visitor.button("Download PNG").wait_for()
    visitor.settle()
    assert t2ictl.read_settings(download(visitor, tmp_path, "Download PNG"))["request"]["prompt"] == "a green star"


def test_a_page_that_is_loaded_again_has_everything(visitor: Visitor) -> None:
    visitor.steps(3)
    visitor.number("Seed", 77)
    visitor.generate()
    visitor.page.wait_for_timeout(1000 * SESSION_SECONDS // 2)
    visitor.page.reload()
    visitor.button("Download PNG").wait_for()
    visitor.page.wait_for_timeout(2000 * SESSION_SECONDS)  # the old tab's session has ended in the meantime
    visitor.choose("Slider")
    expect(visitor.page.get_by_text("1 image of this session")).to_be_visible()
    expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value("77")


def test_two_people_share_the_worker_and_nothing_else(browser: Browser, server: Server, tmp_path: Path) -> None:
    one, other = Visitor(browser, server), Visitor(browser, server)
    try:
        one.steps(200)
        one.button("Generate").click()
        expect(one.page.get_by_text(STEPPING).first).to_be_visible()
        other.steps(2)
        other.button("Generate").click()
        expect(other.page.get_by_text("Waiting, 1 before it")).to_be_visible()
        one.leave()  # the tab is closed in the middle of it: its job ends, and the other one has its turn
        other.button("Download PNG").wait_for(timeout=60_000)
        other.settle()
        assert t2ictl.read_settings(download(other, tmp_path, "Download PNG"))["request"]["steps"] == 2
        third = Visitor(browser, server)
        expect(third.page.get_by_text("Nothing here yet")).to_be_visible()
        expect(third.page.locator("[data-testid='stImage']")).to_have_count(0)
        third.leave()
        assert other.wrong == [] and third.wrong == []
    finally:
        other.leave()


def test_a_closed_tab_leaves_no_job_and_no_files(browser: Browser, server: Server, visitor: Visitor) -> None:
    gone, others = Visitor(browser, server), server.images
    gone.steps(2)
    gone.generate()
    made = server.images - others
    assert len(made) == 2  # the controlled image and the plain one
    gone.steps(200)
    gone.button("Generate").click()
    expect(gone.page.get_by_text(STEPPING).first).to_be_visible()
    gone.leave()
    until = time.monotonic() + 20 * SESSION_SECONDS
    while time.monotonic() < until:
        visitor.page.reload()
        visitor.button("Generate").wait_for()
        visitor.settle()
        if (expand := visitor.page.get_by_test_id("stExpandSidebarButton")).is_visible():  # it stays as it was left
            expand.click()
        queue = visitor.page.get_by_text("at work,").inner_text()
        if queue.startswith("0 at work, 0 waiting") and not made & server.images:
            break
        time.sleep(0.5)
    assert queue.startswith("0 at work, 0 waiting") and not made & server.images, "something is still there"


HOSTILE = (
    "<img src=x onerror=alert(1)> <script>alert(2)</script> ![p](http://evil.test/q.png) :red[x] **bold** a circle"
)


def test_strangers_words_are_shown_and_never_run(visitor: Visitor) -> None:
    page = visitor.page
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill(HOSTILE)
    prompt.press("Tab")
    visitor.settle()
    visitor.steps(1)
    visitor.generate()
    for mode in ("Slider", "Flick", "Difference", "Side by side"):
        visitor.choose(mode)
    assert page.locator("img[src='x'], img[src*='evil'], script:has-text('alert(2)')").count() == 0
    assert page.get_by_text("**bold**", exact=False).count() >= 1


def bomb() -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.zeros((12_000, 12_000), dtype=np.uint8)).save(held, format="PNG")
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.png", b"\x89PNG\r\n\x1a\nrubbish", "cannot be read"),
        ("<b>x</b>.json", b'{"request": {"prompt": ["a", "b"]}, "controls": []}', "one image of one prompt"),
        ("x.json", b'{"request": {"prompt": "a cat", "steps": 1e9}, "controls": []}', "steps"),
        ("huge.png", bomb(), "PNG"),
    ],
    ids=["broken", "several", "steps", "bomb"],
)
def test_strangers_files_are_refused_with_a_reason(visitor: Visitor, name: str, content: bytes, says: str) -> None:
    before = visitor.page.get_by_label("Prompt", exact=True).input_value()
    upload(visitor, name, content)
    alert = visitor.page.get_by_test_id("stAlert").first
    expect(alert).to_contain_text(says)
    assert visitor.page.get_by_label("Prompt", exact=True).input_value() == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen_has_everything_and_fits(browser: Browser, server: Server, scheme: str) -> None:
    visitor = Visitor(browser, server, color_scheme=scheme)
    try:
        visitor.steps(2)
        visitor.generate()
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 1280
        for name in ("Compose", "Image", "Inspect"):
            box = visitor.page.get_by_role("heading", name=name).bounding_box()
            assert box and box["y"] < 300
        box = visitor.button("Generate").bounding_box()
        assert box and box["y"] + box["height"] < 800
        assert visitor.page.locator("img:not([alt])").count() == 0
        assert visitor.wrong == []
    finally:
        visitor.leave()


def test_fifty_images_in_a_row_grow_memory_by_less_than_a_bound(browser: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path / "log.txt")  # a fresh one: what others have left in memory would hide what grows
    try:
        visitor = Visitor(browser, server)
        visitor.steps(2)
        after = []
        for number in range(50):
            visitor.number("Seed", number)
            visitor.generate()
            after.append(server.memory / 2**20)
        visitor.leave()
    finally:
        server.stop()
    print("\nMiB after each image: " + " ".join(f"{value:.1f}" for value in after))
    assert len(set(after)) > 1 and sum(after[-10:]) / 10 - sum(after[:10]) / 10 < GROWTH_MIB

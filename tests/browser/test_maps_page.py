"""The page of attention maps in a browser: it shows the record's own numbers, and needs no network."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

import t2ictl
from t2ictl import Recording
from t2ictl.maps.figures import image_uri
from t2ictl.maps.pages import render

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("by", ["block", "size"])
def test_words_at_a_position_are_those_of_the_record(browser: Browser, tmp_path: Path, by: str) -> None:
    recording = Recording(by=by, layers=("down.*", "up.*"))  # type: ignore[arg-type]
    made = t2ictl.generate(t2ictl.load("shapes", device="cpu"), "a red circle", seed=1, steps=3, record=recording)
    record = made.record
    assert record is not None
    data = record.to_dict()
    path = tmp_path / "maps.html"
    path.write_text(
        render("maps.html.j2", prompt="a red circle", maps=data, image=image_uri(made.image), settings="{}"),
        encoding="utf-8",
    )
    page = browser.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None)
    page.goto(path.as_uri())
    canvas = page.locator("canvas")
    expect(page.locator(".caption")).to_contain_text("a, mean over all steps")
    box = canvas.bounding_box()
    assert box
    for number, block in enumerate((None, *record.maps)):
        page.locator(".block").select_option(str(number))
        for step in (None, 1):
            page.locator(".step").fill(str(0 if step is None else step + 1))
            canvas.click(position={"x": box["width"] * 0.55, "y": box["height"] * 0.4})
            rows = [row.split("\t") for row in page.locator(".ranked tr").all_inner_texts()]
            if block is None or list(record.maps[block].shape[-2:]) == data["size"]:  # not enlarged
                expected = record.at(0.55, 0.4, block=block, step=step)
                assert {word for word, *_ in rows} == {each.word for each in expected}
                for each in expected:
                    ((attention, lift),) = [row[1:] for row in rows if row[0] == each.word]
                    assert float(attention) == pytest.approx(each.attention, abs=0.0011)
                    assert float(lift.rstrip("×")) == pytest.approx(each.lift, abs=0.06)
    page.get_by_role("button", name="circle").click()
    expect(page.locator(".caption")).to_contain_text("circle, step 2 of 3")
    page.screenshot(path=tmp_path / "maps.png")
    assert wrong == []
    page.close()

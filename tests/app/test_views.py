"""Image, inspect, history and progress, by Streamlit's own test runner, with real images."""

from __future__ import annotations

import time
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import t2ictl
from t2ictl.app.engine.editor import Editor
from t2ictl.app.engine.jobs import Job
from t2ictl.errors import BadSetting
from tests.app.driver import PAGE, Driver, driver, editor, quick

__all__ = ["driver", "editor"]


def test_generate_shows_both_images_maps_and_history(driver: Driver, editor: Editor) -> None:
    quick(driver)
    driver.make()
    session = driver.page.shown
    assert session is not None and "Seed 135" in driver.texts()
    assert driver.widget("button_group", "View").value == "side"
    assert driver.widget("button_group", "Heat map of").options == ["red", "ring", "yellow", "cross"]
    assert len(driver.at.main.get("image")) == 1  # the thumbnail
    driver.set("button_group", "Heat map of", "ring")
    for mode in ("one", "slider", "flick", "difference", "side"):
        driver.set("button_group", "View", mode)
    record = editor.details(editor.store.results(session_of(editor))[0]).record
    assert record is not None
    for block in ("all", *record.maps):
        driver.set("selectbox", "Layers", block)
    driver.set("select_slider", "Step", "2")
    driver.set("toggle", "Stretch this word", True)
    driver.set("toggle", "All words, also “a” and “and”", True)
    assert "a" in driver.widget("button_group", "Heat map of").options
    for tab in ("overlap", "losses", "words"):
        driver.set("button_group", "What", tab)


def session_of(editor: Editor) -> str:
    (session,) = editor.store._results
    return session


def test_words_at_a_position_without_the_component(driver: Driver) -> None:
    quick(driver)
    driver.make()
    driver.set("slider", "From the left", 0.25)
    driver.press("point-go")
    assert "At 25% from the left" in driver.texts()
    ranked = driver.at.dataframe[-1].value
    assert set(ranked["word"]) == {"red", "ring", "yellow", "cross"}
    assert list(ranked["share of attention"]) == sorted(ranked["share of attention"], reverse=True)
    driver.press("point-clear")
    assert "Click on the image" in driver.texts()


def test_a_position_that_the_component_reports_is_ranked(driver: Driver) -> None:
    quick(driver)
    driver.make()
    driver.at.session_state["stage"] = {"point": {"x": 0.5, "y": 0.75, "pane": 1}}
    driver.run()
    driver.run()
    assert "At 50% from the left and 75% from the top of the plain image" in driver.texts()


def test_the_overlap_table_names_the_pair_that_shares_most(driver: Driver, editor: Editor) -> None:
    quick(driver)
    driver.make()
    driver.set("button_group", "What", "overlap")
    record = editor.details(editor.store.results(session_of(editor))[0]).record
    assert record is not None
    table = driver.at.dataframe[-1].value
    assert table.set_index("").loc["red", "cross"] == round(100 * float(record.overlap(("red", "cross"))[0, 1]))
    assert "Most shared" in driver.texts()


def test_losses_are_drawn_for_a_control_that_has_them_and_said_for_one_without(driver: Driver) -> None:
    quick(driver)
    driver.make()
    driver.set("button_group", "What", "losses")
    assert len(driver.at.get("vega_lite_chart")) == 2 and "refinements: 0; moves skipped: 0" in driver.texts()
    driver.set("multiselect", "Controls", ["structured_guidance"])
    driver.make()
    assert "No control of this image moves anything" in driver.texts()


def test_history_recalls_what_it_says(driver: Driver) -> None:
    quick(driver)
    driver.make()
    first = driver.page.shown
    made = driver.page.draft.job_request()
    driver.set("text_area", "Prompt", "a green star")
    driver.set("number_input", "Seed", 8)
    driver.set("multiselect", "Controls", [])
    driver.set("number_input", "Guidance", 3.0)
    driver.make()
    assert driver.page.shown != first
    driver.press(f"Use the seed/{first}")
    assert (driver.page.draft.seed, driver.page.draft.prompt) == (135, "a green star")
    driver.press(f"Use the prompt/{first}")
    assert (driver.page.draft.prompt, driver.page.draft.guidance) == (made.request.prompt, 3.0)
    driver.set("number_input", "Seed", 9)
    driver.press(f"Remix: all but the seed/{first}")
    assert driver.page.draft.seed == 9 and driver.page.draft.job_request().controls == made.controls
    driver.press(f"Use all settings/{first}")
    assert driver.page.draft.job_request() == made
    driver.press(f"Show/{first}")
    assert driver.page.shown == first
    driver.press(f"Pin/{first}")
    assert "pinned" in driver.texts()
    driver.press(f"Delete/{first}")
    assert driver.page.shown is None and "not there any more" in driver.texts()


def test_progress_cancel_and_queue(driver: Driver, editor: Editor) -> None:
    driver.set("number_input", "Steps", 200)
    driver.press("generate")
    driver.press("generate")
    assert [job.session for job in driver.page.jobs] == [driver.page.jobs[0].session] * 2
    until = time.monotonic() + 60
    while not driver.page.jobs[0].step and time.monotonic() < until:
        time.sleep(0.02)
    driver.run()
    assert "1 at work, 1 waiting; 2 of them yours" in driver.texts()
    running, waiting = list(driver.page.jobs)
    for job in (waiting, running):
        driver.press(f"cancel/{job.number}")
        assert editor.runner.wait(job, 30) and job.state == "cancelled"
    driver.run()
    assert driver.page.jobs == [] and editor.runner.load() == (0, 0)


def test_too_many_clicks_are_told_so(driver: Driver, editor: Editor) -> None:
    driver.set("number_input", "Steps", 200)
    for _ in range(4):
        driver.press("generate")
    driver.run()
    jobs = list(driver.page.jobs)
    for job in jobs:
        editor.runner.cancel(job)
    assert len(jobs) == 3


def test_a_failure_is_said_until_the_next_thing(
    driver: Driver, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(driver, 1)

    def broken(*_: Any, **__: Any) -> None:
        raise BadSetting("It is *broken*.", "Do [something](http://x).")

    monkeypatch.setattr(t2ictl, "generate", broken, raising=False)
    driver.make()
    for _ in range(2):  # whatever else makes the page run again, the message stays
        assert r"It is \*broken\*\. Do \[something\]\(http\://x\)\." in driver.texts()
        driver.run()
    assert not driver.at.button(key="generate").disabled
    driver.press("example/Ring and cross")
    assert "broken" not in driver.texts()


HOSTILE = "# a :red[red] *circle* <b>x</b> [y](http://z) ![p](http://q.png) $1$ `c`"


def test_a_prompt_full_of_markdown_is_shown_literally(driver: Driver) -> None:
    quick(driver, 1)
    driver.set("multiselect", "Controls", [])
    driver.set("text_area", "Prompt", HOSTILE)
    driver.make()
    shown = "\n".join([*(each.value for each in driver.at.caption), *(each.value for each in driver.at.markdown)])
    assert "http" in shown  # the prompt is there, and not one part of it unescaped:
    for part in (":red[", "*circle*", "<b>", "[y](", "![", "$1$", "`c`"):
        assert part not in shown
    labels = "\n".join(str(option) for each in driver.at.button_group for option in each.options)
    assert "<b>" not in labels and "[y](" not in labels


def test_two_sessions_share_the_worker_and_nothing_else(editor: Editor) -> None:
    one, other = Driver(), Driver()
    for each in (one, other):
        quick(each, 1)
    one.make()
    assert other.page.shown is None
    other.run()
    assert "Nothing here yet" in other.texts() and len(other.at.main.get("image")) == 0
    other.set("text_area", "Prompt", "a green star")
    other.make()
    assert one.widget("text_area", "Prompt").value != "a green star"
    one.run()
    assert len(one.at.main.get("image")) == len(other.at.main.get("image")) == 1
    assert len(editor.store._results) == 2


def test_a_tab_that_is_loaded_again_finds_its_page(driver: Driver) -> None:
    quick(driver, 1)
    driver.set("text_area", "Prompt", "a green star")
    driver.make()
    again = AppTest.from_file(str(PAGE), default_timeout=60)
    again.query_params["session"] = driver.page.session
    again.run()
    assert not again.exception and again.text_area[0].value == "a green star"
    assert len(again.main.get("image")) == 1
    stranger = AppTest.from_file(str(PAGE), default_timeout=60)
    stranger.query_params["session"] = "a-name-that-nobody-has"
    stranger.run()
    assert stranger.query_params["session"] != ["a-name-that-nobody-has"] and not stranger.main.get("image")


def test_a_preview_needs_no_file_of_its_own(driver: Driver) -> None:
    """The server may have replaced such a file before the browser asks for it."""
    job = Job(number=99, session="x", request=None, state="running", step=1, steps=9, preview=b"jpeg")
    driver.page.jobs.append(job)
    driver.run()
    (shown,) = driver.at.main.get("image")
    assert [each.url for each in shown.proto.imgs] == ["data:image/jpeg;base64,anBlZw=="]

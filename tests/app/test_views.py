"""Every view by Streamlit's own test runner: the page as a user drives it, with real pictures of the embedded model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import t2ictl
import t2ictl.app
from t2ictl.app.engine.editor import Editor
from t2ictl.app.engine.jobs import Job
from t2ictl.app.presets import examples
from t2ictl.app.state import Page
from t2ictl.errors import BadSetting

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
    import streamlit as st

    st.cache_resource.clear()  # an editor of another test is not ours
    made = Editor(folder=tmp_path / "results", device="cpu")
    monkeypatch.setattr("t2ictl.app.launch.new_editor", lambda: made)
    yield made
    made.close()


@pytest.fixture
def driver(editor: Editor) -> Driver:
    return Driver()


def quick(driver: Driver, steps: int = 2) -> None:
    driver.set("number_input", "Steps", steps)


def test_a_first_visit_has_an_example_and_says_what_to_do(driver: Driver) -> None:
    first = examples()[0].recipe
    assert driver.widget("text_area", "Prompt").value == first.request.prompt
    assert driver.widget("number_input", "Seed").value == first.request.seed
    assert "Nothing here yet" in driver.texts() and "once there is a picture" in driver.texts()
    assert not driver.at.button(key="generate").disabled and driver.at.button(key="generate").proto.type == "primary"
    assert driver.page.draft.order().controls == first.controls


def test_generate_shows_both_pictures_maps_and_history(driver: Driver, editor: Editor) -> None:
    quick(driver)
    driver.make()
    session = driver.page.shown
    assert session is not None and "Seed 135" in driver.texts()
    assert driver.widget("button_group", "View").value == "side"
    assert driver.widget("button_group", "Map of").options == ["red", "ring", "yellow", "cross"]
    assert len(driver.at.main.get("image")) == 1  # the thumbnail
    driver.set("button_group", "Map of", "ring")
    for mode in ("one", "slider", "flick", "difference", "side"):
        driver.set("button_group", "View", mode)
    for place in editor.details(editor.store.results(seat_of(editor))[0]).maps.places:  # type: ignore[union-attr]
        driver.set("selectbox", "Layers", place)
    driver.set("select_slider", "Step", "2")
    driver.set("toggle", "Stretch this word", True)
    driver.set("toggle", "All words, also “a” and “and”", True)
    assert "a" in driver.widget("button_group", "Map of").options
    for tab in ("overlap", "losses", "words"):
        driver.set("button_group", "What", tab)


def seat_of(editor: Editor) -> str:
    (session,) = editor.store._results
    return session


def test_words_at_a_place_without_the_component(driver: Driver) -> None:
    quick(driver)
    driver.make()
    driver.set("slider", "From the left", 0.25)
    driver.press("point-go")
    assert "At 25% from the left" in driver.texts()
    ranked = driver.at.dataframe[-1].value
    assert set(ranked["word"]) == {"red", "ring", "yellow", "cross"}
    assert list(ranked["share of attention"]) == sorted(ranked["share of attention"], reverse=True)
    driver.press("point-clear")
    assert "Click on the picture" in driver.texts()


def test_a_place_that_the_component_reports_is_ranked(driver: Driver) -> None:
    quick(driver)
    driver.make()
    driver.at.session_state["stage"] = {"point": {"x": 0.5, "y": 0.75, "pane": 1}}
    driver.run()
    driver.run()
    assert "At 50% from the left and 75% from the top of the plain picture" in driver.texts()


def test_the_overlap_table_names_the_pair_that_shares_most(driver: Driver, editor: Editor) -> None:
    quick(driver)
    driver.make()
    driver.set("button_group", "What", "overlap")
    maps = editor.details(editor.store.results(seat_of(editor))[0]).maps
    assert maps is not None
    table = driver.at.dataframe[-1].value
    overlap_NN = maps.overlap()
    row, column = maps.words.index("red"), maps.words.index("cross")
    assert table.set_index("").loc["red", "cross"] == round(100 * overlap_NN[row, column])
    assert "Most shared" in driver.texts()


def test_losses_are_drawn_for_a_control_that_has_them_and_said_for_one_without(driver: Driver) -> None:
    quick(driver)
    driver.make()
    driver.set("button_group", "What", "losses")
    assert len(driver.at.get("vega_lite_chart")) == 2 and "0 refinements; 0 moves skipped" in driver.texts()
    driver.set("multiselect", "Controls", ["structured_guidance"])
    driver.make()
    assert "No control of this picture moves anything" in driver.texts()


def test_chips_follow_the_word_and_say_when_it_is_gone(driver: Driver) -> None:
    chips = driver.widget("button_group", "Words to steer")
    assert [option for option in chips.options if "ring" in option] == [":blue[**ring**]"]
    assert ":violet[*red*]" in chips.options
    driver.set("button_group", "Words to steer", ["ring", "cross"])
    assert driver.page.draft.order().controls[0].concepts == ("ring", "cross")  # type: ignore[attr-defined]
    driver.set("text_area", "Prompt", "a small green cross and then a ring and a ring")
    assert set(driver.page.draft.words) == {"ring", "cross"}
    driver.set("text_area", "Prompt", "a small green circle and a ring")
    assert driver.page.draft.words == ["ring"] and "Not in the prompt any more" in driver.texts()


def test_an_empty_prompt_disables_the_button_and_says_why(driver: Driver) -> None:
    driver.set("text_area", "Prompt", "  ")
    assert driver.at.button(key="generate").disabled and "Write a prompt first" in driver.texts()


@pytest.mark.parametrize("name", t2ictl.list_controls())
def test_every_control_has_a_form_whose_defaults_stay_its_defaults(driver: Driver, name: str) -> None:
    driver.set("multiselect", "Controls", [name])
    driver.run()
    assert driver.page.draft.fields[name] == {} or name in ("attention_segregation",)
    driver.page.draft.fields[name] = {}
    driver.page.draft.version += 1
    driver.run()
    assert driver.page.draft.control(name) == t2ictl.list_controls()[name]()
    assert not driver.at.error
    shown = len(driver.at.main.get("slider")) + len(driver.at.number_input) + len(driver.at.selectbox)
    assert shown > 3


def test_a_field_that_is_changed_arrives_and_a_bad_one_is_marked(driver: Driver) -> None:
    driver.set("multiselect", "Controls", ["attend_and_excite"])
    driver.set("slider", "strength", 2.5)
    driver.set("slider", "window", (0.1, 0.4))
    driver.set("text_input", "sites", "up.*, mid")
    driver.set("toggle", "refinement", False)
    control: Any = driver.page.draft.control("attend_and_excite")
    assert (control.strength, control.window.start, control.window.stop) == (2.5, 0.1, 0.4)
    assert control.sites == ("up.*", "mid") and control.refinement is None
    driver.set("toggle", "refinement", True)
    driver.set("text_area", "refinement · targets", "[[0, 7]]")
    assert driver.at.button(key="generate").disabled and "targets" in driver.texts()
    driver.set("text_area", "refinement · targets", "[[0,")
    assert "no JSON" in driver.texts()
    driver.set("text_area", "refinement · targets", "[[0.0, 0.1]]")
    assert not driver.at.button(key="generate").disabled


def test_a_path_in_a_field_is_not_opened(driver: Driver) -> None:
    driver.set("multiselect", "Controls", ["attention_segregation"])
    driver.set("text_area", "layout", '[{"word": "ring", "mask": "/etc/hostname"}]')
    assert "which is not opened" in driver.texts() and driver.at.button(key="generate").disabled


def test_presets_touch_their_method_only_and_can_be_undone(driver: Driver) -> None:
    driver.set("text_area", "Prompt", "a green star")
    before = driver.page.draft.control("attention_segregation")
    driver.press("preset/attention_segregation/As published")
    draft = driver.page.draft
    assert draft.prompt == "a green star" and draft.fields["attention_segregation"] == {}
    assert "rivals words → default" in driver.texts() and draft.control("attention_segregation") != before
    driver.press("undo/attention_segregation")
    assert driver.page.draft.control("attention_segregation") == before
    assert driver.widget("text_area", "Prompt").value == "a green star"


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_examples_fill_everything_in(driver: Driver, example: Any) -> None:
    driver.set("text_area", "Prompt", "something else")
    driver.press(f"example/{example.name}")
    assert driver.page.draft.request() == example.recipe.request
    assert driver.page.draft.order().controls == example.recipe.controls
    assert driver.widget("number_input", "Seed").value == example.recipe.request.seed


def test_history_recalls_what_it_says(driver: Driver) -> None:
    quick(driver)
    driver.make()
    first = driver.page.shown
    made = driver.page.draft.order()
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
    assert driver.page.draft.seed == 9 and driver.page.draft.order().controls == made.controls
    driver.press(f"Use all settings/{first}")
    assert driver.page.draft.order() == made
    driver.press(f"Show/{first}")
    assert driver.page.shown == first
    driver.press(f"Pin/{first}")
    assert "pinned" in driver.texts()
    driver.press(f"Delete/{first}")
    assert driver.page.shown is None and "not there any more" in driver.texts()


def test_a_new_seed_for_every_picture_unless_it_is_kept(driver: Driver) -> None:
    quick(driver, 1)
    driver.set("toggle", "Keep it", False)
    driver.make()
    one = driver.widget("number_input", "Seed").value
    driver.make()
    other = driver.widget("number_input", "Seed").value
    assert len({135, one, other}) == 3 and f"Seed {other}" in driver.texts()
    driver.press("dice")
    assert driver.widget("number_input", "Seed").value not in (135, one, other)


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

    def broken(job: Job) -> None:
        raise BadSetting("It is *broken*.", "Do [something](http://x).")

    monkeypatch.setattr(editor.runner, "_work", broken)
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


def test_the_memory_estimate_warns_where_it_does_not_fit(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Takes about" in driver.texts() and not driver.at.warning
    driver.set("number_input", "Width", 4096)
    driver.set("number_input", "Height", 4096)
    assert not driver.at.warning or "lower the size first" in driver.at.warning[0].value
    from t2ictl.app.engine.memory import MemoryReport

    full = MemoryReport(device="CPU", dtype="", used=1, free=1, total=2)
    monkeypatch.setattr(Editor, "memory", lambda editor: full)
    driver.run()
    assert "lower the size first" in driver.at.warning[0].value


def test_models_that_cannot_be_used_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import streamlit as st

    st.cache_resource.clear()
    bad = tmp_path / "models" / "flux*"
    bad.mkdir(parents=True)
    (bad / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    made = Editor([tmp_path / "models"], folder=tmp_path / "results")
    monkeypatch.setattr("t2ictl.app.launch.new_editor", lambda: made)
    try:
        driver = Driver()
        assert r"**flux\***: FluxPipeline is not supported yet" in driver.texts()
        assert driver.widget("selectbox", "Model").options == [r"shapes \(embedded\)"]
    finally:
        made.close()

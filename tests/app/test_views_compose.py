"""Compose and the sidebar, by Streamlit's own test runner: chips, forms, presets, examples, seeds, models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import t2ictl
from t2ictl.app import launch
from t2ictl.app.engine.editor import Editor
from t2ictl.app.engine.memory import MemoryReport
from t2ictl.app.settings import examples, starting_fields
from tests.app.driver import Driver, driver, editor, quick

__all__ = ["driver", "editor"]


def test_a_first_visit_has_an_example_and_says_what_to_do(driver: Driver) -> None:
    first = examples()[0].recipe
    assert driver.widget("text_area", "Prompt").value == first.request.prompt
    assert driver.widget("number_input", "Seed").value == first.request.seed
    assert "Nothing here yet" in driver.texts() and "once there is an image" in driver.texts()
    assert not driver.at.button(key="generate").disabled and driver.at.button(key="generate").proto.type == "primary"
    assert driver.page.draft.job_request().controls == first.controls


def test_chips_follow_the_word_and_say_when_it_is_gone(driver: Driver) -> None:
    chips = driver.widget("button_group", "Words to steer")
    assert [option for option in chips.options if "ring" in option] == [":blue[**ring**]"]
    assert ":violet[*red*]" in chips.options
    driver.set("button_group", "Words to steer", ["ring", "cross"])
    assert driver.page.draft.job_request().controls[0].concepts == ("ring", "cross")  # type: ignore[attr-defined]
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
    cls, starting = t2ictl.list_controls()[name], starting_fields(name, "shapes")
    # The first page has an example with settings of its own.
    assert driver.page.draft.control(name) == cls(**starting, preset="none") or name == "attention_segregation"
    driver.page.draft.fields[name] = {}
    driver.page.draft.version += 1
    driver.run()
    assert driver.page.draft.control(name) == cls(preset="none")
    assert not driver.at.error
    shown = len(driver.at.main.get("slider")) + len(driver.at.number_input) + len(driver.at.selectbox)
    assert shown > 3


def test_a_field_that_is_changed_arrives_and_a_bad_one_is_marked(driver: Driver) -> None:
    driver.set("multiselect", "Controls", ["attend_and_excite"])
    driver.set("slider", "strength", 2.5)
    driver.set("slider", "window", (0.1, 0.4))
    driver.set("text_input", "layers", "up.*, mid")
    control: Any = driver.page.draft.control("attend_and_excite")
    assert (control.strength, control.window.start, control.window.stop) == (2.5, 0.1, 0.4)
    assert control.layers == ("up.*", "mid") and control.refinement is None
    driver.set("toggle", "refinement", True)
    driver.set("text_area", "refinement · thresholds", "[[0, 7]]")
    assert driver.at.button(key="generate").disabled and "thresholds" in driver.texts()
    driver.set("text_area", "refinement · thresholds", "[[0,")
    assert "no JSON" in driver.texts()
    driver.set("text_area", "refinement · thresholds", "[[0.0, 0.1]]")
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
    published = {"reduction": "mean", "region": "otsu_8bit_peak"}
    assert draft.prompt == "a green star" and draft.fields["attention_segregation"] == published
    assert "normalize_over prompt_words → default" in driver.texts().replace("\\", "")
    assert draft.control("attention_segregation") != before
    driver.press("undo/attention_segregation")
    assert driver.page.draft.control("attention_segregation") == before
    assert driver.widget("text_area", "Prompt").value == "a green star"


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_examples_fill_everything_in(driver: Driver, example: Any) -> None:
    driver.set("text_area", "Prompt", "something else")
    driver.press(f"example/{example.name}")
    assert driver.page.draft.request() == example.recipe.request
    assert driver.page.draft.job_request().controls == example.recipe.controls
    assert driver.widget("number_input", "Seed").value == example.recipe.request.seed


def test_a_new_seed_for_every_image_unless_it_is_kept(driver: Driver) -> None:
    quick(driver, 1)
    driver.set("toggle", "Keep it", False)
    driver.make()
    one = driver.widget("number_input", "Seed").value
    driver.make()
    other = driver.widget("number_input", "Seed").value
    assert len({135, one, other}) == 3 and f"Seed {other}" in driver.texts()
    driver.press("dice")
    assert driver.widget("number_input", "Seed").value not in (135, one, other)


def test_the_memory_estimate_warns_where_it_does_not_fit(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    some = MemoryReport(device="CPU", dtype="", used=2**20, free=2**31, total=2**33)
    monkeypatch.setattr(Editor, "memory", lambda editor: some)
    driver.run()
    assert "Takes about" in driver.texts() and not driver.at.warning
    driver.set("number_input", "Width", 4096)
    driver.set("number_input", "Height", 4096)
    assert "lower the size first" in driver.at.warning[0].value and "2.0 GiB are free" in driver.at.warning[0].value


def test_models_that_cannot_be_used_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import streamlit as st

    st.cache_resource.clear()
    bad = tmp_path / "models" / "flux*"
    bad.mkdir(parents=True)
    (bad / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    made = Editor([tmp_path / "models"], folder=tmp_path / "results")
    monkeypatch.setattr(launch, "new_editor", lambda: made)
    try:
        driver = Driver()
        assert r"**flux\***: FluxPipeline is not supported yet" in driver.texts()
        usable = [each.name for each in made.found() if not each.why_not]
        assert driver.widget("selectbox", "Model").options == usable and usable[0] == "shapes (embedded)"
    finally:
        made.close()

"""Settings inside images and JSON that were written before names changed are read, and mean what they meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import t2ictl
from t2ictl.controls.registry import control_from_dict, control_to_dict, list_controls
from t2ictl.guidance.rules import NoiseSearch, Refinement, StepSize
from t2ictl.processors.isolation_reposition.story.result import StoryImage
from t2ictl.processors.isolation_reposition.story.settings import read_story
from t2ictl.settings.files import SCHEMA_VERSION, read_settings
from t2ictl.settings.legacy import upgraded, upgraded_control

OLD = Path(__file__).parents[1] / "data" / "schema_1"


def controls_of(path: Path) -> dict[str, Any]:
    return {each["control"]: control_from_dict(each) for each in read_settings(path)["controls"]}


@pytest.mark.parametrize("name", ["generate.png", "controls.json"])
def test_every_renamed_field_has_its_old_value(name: str) -> None:
    found = controls_of(OLD / name)
    excite = found["attend_and_excite"]
    assert excite.step == StepSize(scale=5.0, final_scale_sq=0.9, max_norm=0.1, every=2)
    assert (excite.normalize_over, excite.layers) == ("prompt_words", ("up",))
    assert excite.refinement == Refinement(
        thresholds=((0.0, 0.6),), max_iterations=2, decide_before_update=True, check_every=2
    )
    assert found["box_diff"].topk_ratio == 0.4 and found["contrastive_attention"].previous_maps is False
    guidance = found["self_cross_guidance"]
    assert (guidance.presence_threshold, guidance.normalize_over) == (0.3, "all_tokens")
    merging = found["token_merging"]
    assert (merging.entropy_steps, merging.binding_steps, merging.thresholds) == (2, 1, (0.1,))
    assert found["initial_noise"].search == NoiseSearch(
        max_steps=2, lr=0.02, target=0.7, kl_threshold=0.002, kl_weight=400.0
    )
    isolation = found["isolation_reposition"]
    assert (isolation.ema, isolation.subject_text) == (0.3, "inserted")


def test_every_control_that_was_written_is_read() -> None:
    assert set(controls_of(OLD / "controls.json")) == set(list_controls())


def test_an_old_image_is_made_again_by_the_very_settings() -> None:
    old = read_settings(OLD / "generate.png")
    assert old["schema"] == 1 and old["image"] == 0 and "picture" not in old
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    again = t2ictl.replay(pipe, OLD / "generate.png")
    assert again.settings["schema"] == SCHEMA_VERSION == 3
    for now, before in zip(again.settings["controls"], old["controls"], strict=True):
        assert control_from_dict(now) == control_from_dict({**before, "preset": "none"})
    plain = t2ictl.generate(pipe, old["request"]["prompt"], seed=7, steps=4)
    assert again.image.tobytes() != plain.image.tobytes()


def test_an_image_of_a_story_is_read_and_belongs_to_the_same_story() -> None:
    scene = StoryImage.read(OLD / "story" / "scene-1.png")
    assert scene.name == "scene-1" and set(scene.places) == {"circle", "star"}
    given = scene.settings["story"]["control"]
    assert (given["subject_text"], given["ema"]) == ("in_full", 0.3)
    wanted, method = read_story(OLD / "story" / "scene-1.png")
    assert wanted.steps == 4 and control_from_dict({"control": "isolation_reposition", **method}).ema == 0.3  # type: ignore[attr-defined]
    assert read_settings(OLD / "story" / "story.json")["subjects_by_scene"] == [["circle", "star"]]


def test_settings_of_today_pass_through_unchanged() -> None:
    for cls in list_controls().values():
        written = json.loads(json.dumps(control_to_dict(cls())))
        assert upgraded_control(written) == written
        assert upgraded({"schema": 3, "controls": [written]}) == {"schema": 3, "controls": [written]}


def test_fields_that_were_left_out_before_presets_had_their_defaults() -> None:
    partial = {"control": "attend_and_excite", "strength": 0.5}
    for older in ({"controls": [partial]}, {"schema": 2, "controls": [partial]}):
        (data,) = upgraded(older)["controls"]
        control: Any = control_from_dict(data)
        assert control.preset == "none" and control.strength == 0.5 and control.refinement is not None


def test_newer_settings_are_not_touched() -> None:
    newer = {"schema": 4, "picture": 1, "controls": [{"control": "box_diff", "share": 2}]}
    assert upgraded(newer) == newer

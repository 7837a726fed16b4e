"""Plans: what is read, what is refused, and in what words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2ictl import list_controls
from t2ictl.benchmarks.runs.arms import measurable, resolve_arms
from t2ictl.benchmarks.runs.plan import make_plan, plan_items, read_plan_file
from t2ictl.errors import BadSetting


def test_arms_in_every_form_are_the_same() -> None:
    gentle = {"control": "attention_segregation", "settings": {"strength": 0.5}}
    mapping = make_plan({"arms": {"plain": None, "gentle": gentle}})
    listed = make_plan({"arms": ["plain", {"gentle": gentle}]})
    several = make_plan({"arms": {"plain": None, "gentle": {"controls": [gentle]}}})
    assert mapping == listed
    assert resolve_arms(mapping.arms) == resolve_arms(several.arms)
    assert list(make_plan({"arms": "plain, best-of-2"}).arms) == ["plain", "best-of-2"]


def test_settings_reach_the_control_and_are_told_in_full() -> None:
    arms = {"gentle": {"control": "attend_and_excite", "settings": {"step": {"scale": 5}, "refinement": None}}}
    (arm,) = resolve_arms(make_plan({"arms": arms}).arms)
    written = arm.to_dict()["controls"][0]
    assert written["step"] == {"scale": 5.0, "final_scale_sq": 0.5, "mode": "raw", "max_norm": None, "every": 1}
    assert written["refinement"] is None and written["strength"] == 1.0


def test_arms_stand_after_those_that_they_need() -> None:
    labels = ["best-of-3:a", "random:a", "best-of-2", "a", "plain"]
    specs: dict[str, Any] = {label: {"control": "attention_segregation"} if label == "a" else None for label in labels}
    arms = resolve_arms(make_plan({"arms": specs}).arms)
    assert [arm.label for arm in arms] == ["plain", "a", "random:a", "best-of-3:a", "best-of-2"]
    control = arms[1].controls[0]
    assert arms[2].controls[0] is control and arms[3].controls[0] is control


BAD = {
    "unknown field": ({"stepz": 3}, "no field 'stepz'"),
    "unknown field of an arm": ({"arms": {"a": {"contrl": "x"}}}, "no field 'contrl'"),
    "steps": ({"steps": 0}, "steps cannot be 0"),
    "text for a number": ({"seeds": "many"}, "seeds cannot be 'many'"),
    "split": ({"split": "train"}, "split cannot be 'train'"),
    "no arms": ({"arms": []}, "arms cannot be"),
    "arm twice": ({"arms": "plain,plain"}, "'plain' is there twice"),
    "both forms": (
        {"arms": {"a": {"control": "attention_segregation", "controls": [{"control": "attend_and_excite"}]}}},
        "give either control",
    ),
    "prompts": ({"prompts": "pair:3"}, "prompts cannot be 'pair:3'"),
    "no prompts": ({"prompts": 0}, "at least one prompt"),
}


@pytest.mark.parametrize("values, message", BAD.values(), ids=BAD)
def test_a_bad_plan_is_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting) as caught:
        make_plan(values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


BAD_ARMS = {
    "unknown": ("gentle", "no 'gentle'"),
    "random of an arm that is not there": ("random:attention_segregation", "needs the arm 'attention_segregation'"),
    "random of plain": ("plain,random:plain", "needs the arm 'plain'"),
    "selection by nothing": ("best-of-2:attend_and_excite", "needs the arm 'attend_and_excite'"),
    "best of none": ("best-of-0", "is no arm|no 'best-of-0'"),
    "a path": ("../up", "is no arm"),
}


@pytest.mark.parametrize("labels, message", BAD_ARMS.values(), ids=BAD_ARMS)
def test_an_unknown_arm_is_refused(labels: str, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        resolve_arms(make_plan({"arms": labels}).arms)


def test_settings_of_plain_are_refused() -> None:
    with pytest.raises(BadSetting, match="takes no settings"):
        resolve_arms(make_plan({"arms": {"plain": {"control": "attend_and_excite"}}}).arms)
    with pytest.raises(BadSetting, match="capitals"):
        resolve_arms(make_plan({"arms": {name: {"control": "attend_and_excite"} for name in ("Aa", "aa")}}).arms)
    with pytest.raises(BadSetting, match=r"AttendAndExcite\.strenth"):
        arms = {"a": {"control": "attend_and_excite", "settings": {"strenth": 2}}}
        resolve_arms(make_plan({"arms": arms}).arms)


def test_items_by_kind_limit_and_split() -> None:
    items = plan_items(make_plan({"kinds": "pair,single", "prompts": "pair=4,single=2"}))
    assert [item.category for item in items] == ["pair"] * 4 + ["single"] * 2
    limited = plan_items(make_plan({"kinds": "pair,single", "prompts": 5, "limit": 3}))
    assert [item.id for item in limited] == ["tune-pair-0000", "tune-pair-0001", "tune-single-0000"]
    assert [item.prompt for item in limited[:2]] == [item.prompt for item in items[:2]]
    report = plan_items(make_plan({"kinds": "pair", "prompts": 4, "split": "report"}))
    assert not {item.prompt for item in report} & {item.prompt for item in items}
    assert not {item.id for item in report} & {item.id for item in items}


@pytest.mark.parametrize("values", [{"suite": "x"}, {"kinds": "x"}, {"kinds": "pair", "prompts": {"single": 2}}])
def test_unknown_suites_and_kinds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BadSetting):
        plan_items(make_plan(values))


@pytest.mark.parametrize("text", ["- a list", "a: [1", "3: x"])
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadSetting):
        read_plan_file(path)
    with pytest.raises(BadSetting, match="cannot be read"):
        read_plan_file(tmp_path / "none.yaml")


def test_losses_that_need_passes_of_their_own_choose_nothing() -> None:
    arms = {"merging": {"control": "token_merging"}, "best-of-2:merging": None}
    with pytest.raises(BadSetting, match="extra passes"):
        resolve_arms(make_plan({"arms": arms}).arms)
    merging, apart = (list_controls()[name]() for name in ("token_merging", "attention_segregation"))
    assert measurable([merging, apart]) == (apart,)


@pytest.mark.parametrize(("label", "why"), [("best-of-2:guided", "no losses"), ("random:guided", "nothing to repeat")])
def test_a_control_without_losses_chooses_nothing_and_moves_nothing(label: str, why: str) -> None:
    guided = {"control": "structured_guidance"}
    with pytest.raises(BadSetting, match=why):
        resolve_arms(make_plan({"arms": {"guided": guided, label: None}}).arms)
    assert measurable([list_controls()["structured_guidance"]()]) == ()

"""The plans behind published figures can be run, and make as many images as they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import t2ictl
from t2ictl.benchmarks.runs.arms import resolve_arms
from t2ictl.benchmarks.runs.plan import make_plan, read_plan_file
from t2ictl.benchmarks.runs.runner import foretell

FOLDER = Path(__file__).parents[2] / "docs" / "evidence"
PLANS = [path for path in sorted(FOLDER.glob("*.yaml")) if "suite" in read_plan_file(path)]
#: Most images that each of the plans for models with text encoders of their own generates.
MOST = {"clip_tuning": 5_000, "dit_tuning": 5_000, "clip_report": 22_000, "dit_report": 22_000}
named = pytest.mark.parametrize("name", MOST)


def _plan(name: str) -> Any:
    return make_plan(read_plan_file(FOLDER / f"{name}.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_plan_can_be_run(path: Path) -> None:
    assert "images are generated" in foretell(make_plan(read_plan_file(path)))


@named
def test_plans_make_as_many_images_as_they_say(name: str) -> None:
    said = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").replace("\n# ", " ")
    made = int(foretell(_plan(name)).rpartition("; ")[2].split()[0])
    assert f"{made:,} images" in said
    assert made < MOST[name]


@named
def test_their_controls_act_on_the_family(name: str) -> None:
    family = t2ictl.list_families()["sd3" if name.startswith("dit") else "sd"]
    controls = {control for arm in resolve_arms(_plan(name).arms) for control in arm.controls}
    assert controls
    assert [control.name for control in controls if not type(control).needs <= family.offers] == []


@pytest.mark.parametrize("model", ["clip", "dit"])
def test_report_plans_use_settings_that_were_tried(model: str) -> None:
    """A setting of the report is one of the arms of the tuning plan, on other prompts."""
    tuning, report = _plan(f"{model}_tuning"), _plan(f"{model}_report")
    assert (tuning.split, report.split) == ("tune", "report")
    tried = [spec for spec in tuning.arms.values() if spec is not None]
    tuned = {label: spec for label, spec in report.arms.items() if spec is not None and "step" in spec.settings}
    assert set(tuned) == {"astar", "excite", "alignment", "linguistic"}
    assert [label for label, spec in tuned.items() if spec not in tried] == []


def test_labels_are_the_same_on_all_models() -> None:
    """Tables of several models match arms by label."""
    clip, dit = (_plan(f"{model}_report") for model in ("clip", "dit"))
    shared = {"plain", "attention_segregation", "astar", "excite", "alignment", "linguistic", "best-of-2", "best-of-4"}
    assert set(clip.arms) & set(dit.arms) >= shared
    for label in shared:
        names = [None if plan.arms[label] is None else plan.arms[label].control for plan in (clip, dit)]
        assert names[0] == names[1]
    assert not re.search("published", " ".join(dit.arms))

"""The registry: what is found, what is broken, what is refused; and a new control in one file."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import t2ictl
import t2ictl.processors
from t2ictl.controls.base import Control
from t2ictl.controls.registry import (
    broken_controls,
    control_from_dict,
    control_to_dict,
    get_control,
    list_controls,
    register_control,
)
from t2ictl.errors import BadSetting, ControlConflict
from t2ictl.settings.fields import setting, settings_class
from tests.controls.package_cases import install
from tests.repository.sources import ROOT
from tests.tiny import run, sd, sdxl

NEW = '''
"""Soften: the shares of the words come closer to each other."""

from __future__ import annotations

from torch import Tensor

from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.registry import register_control
from t2ictl.settings.fields import setting, settings_class
from t2ictl.attention.layers import select_layers


class _Soften(Edit):
    def __init__(self, strength: float) -> None:
        self.strength = strength

    def scores(self, call: AttentionCall, scores_BHQK: Tensor) -> Tensor:
        return scores_BHQK * (1 - self.strength)


@register_control("soften", paper="Nobody: A Control in One File, 2026")
@settings_class
class Soften(Control):
    """Divide all logits.

    Args:
        strength: how much; 0 is the untouched model.
        layers: layer filter.
    """

    strength: float = setting(0.5, help="how much; 0 is the untouched model", low=0.0, high=1.0)
    layers: tuple[str, ...] = setting(("cross",), help="layer filter")

    def plan(self, context: PlanContext) -> Plan:
        if self.strength == 0:
            return Plan()
        return Plan(edits=((select_layers(context.adapter.layers, self.layers), _Soften(self.strength)),))
'''


@pytest.fixture
def folder(tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A further folder of t2ictl.processors."""
    monkeypatch.setattr(t2ictl.processors, "__path__", [*t2ictl.processors.__path__, str(tmp_path)])
    return tmp_path


def test_every_method_is_listed_by_whoever_asks_first() -> None:
    """In an interpreter that has imported no method yet; packages of methods load their control late."""
    code = "import t2ictl; print(*t2ictl.list_controls(), *t2ictl.controls.registry.broken_controls())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    methods = [module.name for module in pkgutil.iter_modules(t2ictl.processors.__path__)]
    assert done.stdout.split() == sorted(methods), done.stderr


@pytest.mark.parametrize("build", [sd, sdxl])
def test_a_new_control_is_one_new_file(folder: Path, build: Any) -> None:
    (folder / "soften.py").write_text(NEW, encoding="utf-8")
    assert list_controls()["soften"].__name__ == "Soften"
    soften: Any = t2ictl.processors.Soften
    is_listed = soften is get_control("soften")
    assert is_listed and "Soften" in dir(t2ictl.processors)
    control = control_from_dict(json.loads(json.dumps(control_to_dict(soften(strength=0.25)))))
    assert control == soften(strength=0.25)
    pipe = build()
    plain = run(pipe, "a cat", steps=2)
    with t2ictl.controlled(pipe, [control]) as session:
        softened = run(pipe, "a cat", steps=2)
    assert (softened - plain).abs().max() > 1e-3 and session.cost.extra_forwards == 0
    with t2ictl.controlled(pipe, [soften(strength=0)]):
        assert torch.equal(run(pipe, "a cat", steps=2), plain)


def test_a_broken_module_is_listed_and_takes_no_other_down(folder: Path) -> None:
    before = dict(list_controls())
    (folder / "broken_one.py").write_text("import there_is_no_such_module\n", encoding="utf-8")
    (folder / "broken_two.py").write_text("def (\n", encoding="utf-8")
    (folder / "soften.py").write_text(NEW, encoding="utf-8")
    assert set(list_controls()) == {*before, "soften"}
    broken = broken_controls()
    assert "ModuleNotFoundError: No module named 'there_is_no_such_module'" in broken["t2ictl.processors.broken_one"]
    assert broken["t2ictl.processors.broken_two"].startswith("SyntaxError")
    with pytest.raises(BadSetting, match=r"no control 'nothing'.*broken_one failed to import.*Known: .*soften"):
        get_control("nothing")
    with pytest.raises(AttributeError, match="no control 'Nothing'.*broken_two"):
        _ = t2ictl.processors.Nothing
    (folder / "broken_one.py").write_text('"""Mended."""\n', encoding="utf-8")
    importlib.invalidate_caches()
    assert "t2ictl.processors.broken_one" not in broken_controls()


def test_an_installed_package_adds_controls_through_an_entry_point(
    tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stray_package.py").write_text(NEW, encoding="utf-8")
    points = {"soften": "stray_package:Soften", "gone": "stray_gone:Gone"}
    install(tmp_path, monkeypatch, {"t2ictl.controls": points})
    assert list_controls()["soften"].__module__ == "stray_package"
    assert "stray_gone" in broken_controls()["stray_gone:Gone"]


def imported_as(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_one_class_under_two_module_names_is_one_entry(folder: Path) -> None:
    (folder / "soften.py").write_text(NEW, encoding="utf-8")
    first = list_controls()["soften"]
    stray: Any = imported_as("stray_soften", folder / "soften.py").Soften
    assert stray is not first and stray.name == "soften"
    assert list_controls()["soften"] is first and len(list_controls()) == len(set(list_controls()))


def test_two_files_that_want_one_name_conflict_even_with_one_class_name(folder: Path, tmp_path: Path) -> None:
    (folder / "soften.py").write_text(NEW, encoding="utf-8")
    list_controls()
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(folder / "soften.py", other / "soften.py")
    with pytest.raises(ControlConflict, match=r"t2ictl\.processors\.soften\.Soften and stray_other\.Soften"):
        imported_as("stray_other", other / "soften.py")


def test_two_owners_of_a_name_conflict(clean: None) -> None:
    with pytest.raises(ControlConflict, match="'attention_segregation'"):

        @register_control("attention_segregation", paper="")
        @settings_class
        class Impostor(Control):
            strength: float = setting(1.0, help="none")

    assert list_controls()["attention_segregation"].__name__ == "AttentionSegregation"


def test_a_cell_that_is_run_again_brings_the_newer_class(clean: None) -> None:
    made = []
    for default in (1.0, 2.0):

        @register_control("cell", paper="")
        @settings_class
        class Cell(Control):
            strength: float = setting(default, help="none")

        made.append(Cell)
    assert get_control("cell") is made[1]
    assert control_from_dict({"control": "cell"}) == made[1](strength=2.0)


@pytest.mark.parametrize("name", ["Two Words", "Upper", "a-b", ""])
def test_names_are_plain(name: str, clean: None) -> None:
    with pytest.raises(BadSetting, match="cannot be a control's name"):
        register_control(name, paper="")(Control)


@pytest.mark.parametrize("data", [{}, {"control": ""}, {"control": "nothing"}, {"strength": 1}])
def test_data_without_a_known_control_lists_the_known_ones(data: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match="Known: .*attend_and_excite.*attention_segregation"):
        control_from_dict(data)


def test_data_with_an_unknown_field_are_refused_and_not_changed() -> None:
    data = {"control": "attend_and_excite", "future": 1}
    with pytest.raises(BadSetting, match=r"AttendAndExcite has no field \['future'\]"):
        control_from_dict(data)
    assert data == {"control": "attend_and_excite", "future": 1}


def test_the_bare_base_has_no_plan() -> None:
    with pytest.raises(NotImplementedError):
        Control().plan(None)  # type: ignore[arg-type]

"""The author's face: own losses and edits in a few lines, one typed import, and no method loaded for another."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any, assert_type

import pytest
import torch

import t2ictl
import t2ictl.controls
import t2ictl.losses
from t2ictl.controls import AttentionEdit, Edit, LossControl, Losses, Plan, StepSize
from t2ictl.errors import BadSetting
from t2ictl.processors import AttendAndExcite, TokenMerging
from tests.repository.sources import ROOT, sources
from tests.tiny import run, sd

PROMPT = "a red circle and a blue square"
PAGES = ("docs/your_own_control.md", "CONTRIBUTING.md")
SETUP = """
import t2ictl
pipe = t2ictl.load("shapes", device="cpu")
pipe.set_progress_bar_config(disable=True)
pipe.scheduler.set_timesteps(2)
"""


def examples(page: str) -> list[str]:
    return re.findall(r"```py\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def lines(example: str) -> int:
    """Lines that hold something; a formatter sets functions apart by empty ones."""
    return sum(bool(line.strip()) for line in example.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_are_as_short_as_promised(page: str) -> None:
    loss, edit = examples(page)
    assert "LossControl" in loss and lines(loss) <= 5
    assert "AttentionEdit" in edit and lines(edit) <= 8


@pytest.mark.parametrize("number", [0, 1])
def test_each_example_runs_in_a_fresh_interpreter_and_changes_the_image(number: int) -> None:
    assert examples(PAGES[0]) == examples(PAGES[1])
    example = examples(PAGES[0])[number].replace('square").images', 'square", generator=seeded(), **call).images')
    code = f"""{SETUP}
import torch
def seeded():
    return torch.Generator().manual_seed(1)
call = dict(num_inference_steps=2)
plain = pipe("{PROMPT}", generator=seeded(), **call).images[0]
{example}
assert image.tobytes() != plain.tobytes()
print("it acts")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip().endswith("it acts"), done.stderr


def test_a_method_is_loaded_alone_and_its_type_is_known() -> None:
    assert_type(AttendAndExcite(), AttendAndExcite)
    assert_type(TokenMerging().merge, bool)
    code = """
import sys
from t2ictl.processors import AttendAndExcite
found = {name.split(".")[2] for name in sys.modules if name.startswith("t2ictl.processors.")}
print(sorted(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.stdout.strip() == "['attend_and_excite']", done.stdout + done.stderr


def test_type_checkers_are_told_of_every_control() -> None:
    source = (ROOT / "processors" / "__init__.py").read_text(encoding="utf-8")
    told = set(re.findall(r"import (\w+) as \1\n", source))
    assert told == {cls.__name__ for cls in t2ictl.list_controls().values()}


def test_every_loss_is_importable_from_one_place() -> None:
    assert_type(t2ictl.losses.overlap_loss(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, dtype=torch.bool)), torch.Tensor)
    for source in sources("losses"):
        public = re.findall(r"^def ([a-z]\w*(?:_loss|_losses|_energy))\(", source.text, re.MULTILINE)
        assert [name for name in public if not callable(getattr(t2ictl.losses, name))] == []


def test_every_name_of_the_face_is_there() -> None:
    names = [name for name in dir(t2ictl.controls) if not name.startswith("_")]
    assert {"Control", "Plan", "PlanContext", "register_control", "setting", "settings_class", "Concepts"} <= set(names)
    assert all(getattr(t2ictl.controls, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = t2ictl.controls.Nothing  # type: ignore[attr-defined]


def larger(maps_BNYX: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
    return -(maps_BNYX.mean((2, 3)) * mask_BN).sum(1)


def test_a_loss_of_ones_own_goes_down_and_names_its_terms() -> None:
    control = LossControl(larger, concepts=("circle",), step=StepSize(mode="normalized", scale=0.02))
    pipe = sd()
    with t2ictl.controlled(pipe, [control]) as session:
        moved = run(pipe, PROMPT, steps=4)
    assert not torch.equal(moved, run(pipe, PROMPT, steps=4))
    assert list(session.trace[0].terms) == ["larger.larger"]
    named = LossControl(lambda maps, mask: Losses(terms={"one": larger(maps, mask)}), concepts=("circle",))
    with t2ictl.controlled(pipe, [named]) as session:
        run(pipe, PROMPT, steps=1)
    assert [name.split(".")[1] for name in session.trace[0].terms] == ["one"]


def test_an_edit_of_ones_own_at_chosen_layers_only() -> None:
    class Mute(Edit):
        def output(self, call: Any, out_BQC: torch.Tensor) -> torch.Tensor:
            seen.append(call.layer.address)
            return out_BQC * 0

    seen: list[str] = []
    pipe = sd()
    with t2ictl.controlled(pipe, [AttentionEdit("mid", Mute())]) as session:
        muted = run(pipe, PROMPT, steps=1)
    assert {address.split(".")[0] for address in seen} == {"mid"} and not torch.equal(muted, run(pipe, PROMPT, steps=1))
    assert {layer.address for layer in session.layers} == set(seen)


@pytest.mark.parametrize("bad", [(), (3,), (larger, larger)])
def test_a_loss_that_is_none_is_refused(bad: tuple[Any, ...]) -> None:
    with pytest.raises(BadSetting, match="needs one loss function"):
        LossControl(*bad)
    with pytest.raises(BadSetting, match=r"LossControl\.strength"):
        LossControl(larger, strength=9)
    with pytest.raises(BadSetting, match="not an edit"):
        AttentionEdit("mid", larger)  # type: ignore[arg-type]


def test_strength_0_of_a_loss_is_an_empty_plan() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, [LossControl(larger, strength=0)]) as session:
        still = run(pipe, PROMPT, steps=2)
    assert torch.equal(still, run(pipe, PROMPT, steps=2)) and session.layers == () and Plan() == Plan()


def test_sessions_and_results_show_what_they_are() -> None:
    pipe = t2ictl.load("shapes", device="cpu")
    result = t2ictl.generate(pipe, "a red circle", [AttendAndExcite()], seed=1, steps=1, record=True)
    assert "1 image" in repr(result) and "attend_and_excite" in repr(result) and "<img" in result._repr_html_()
    with t2ictl.controlled(pipe, [AttendAndExcite()]) as session:
        assert "AttendAndExcite" in repr(session) and "open" in repr(session)
    assert "closed" in repr(session)

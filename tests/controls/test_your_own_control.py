"""The page on a control of your own: the package on it is made and used through its entry point, as a user would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import t2ictl
from t2ictl.cli.app import main
from tests.controls.package_cases import write_metadata
from tests.repository.sources import ROOT

PAGE = (ROOT / "docs" / "your_own_control.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """What ``pip install .`` leaves behind: the module, and the metadata that names its entry point."""
    project = tomllib.loads(block("toml"))["project"]
    (tmp_path / "my_controls").mkdir()
    (tmp_path / "my_controls" / "__init__.py").write_text("")
    (tmp_path / "my_controls" / "centered.py").write_text(block("python"))
    write_metadata(tmp_path, project["entry-points"], name="my_controls")
    return tmp_path


@pytest.fixture
def installed(layer: Path, clean: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in this interpreter."""
    monkeypatch.syspath_prepend(str(layer))
    return layer


def command(layer: Path, *arguments: str) -> str:
    """A command in an interpreter of its own, as the user runs it."""
    path = os.pathsep.join([str(layer), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, "-m", "t2ictl", *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_it_is_listed_with_all_its_fields(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["controls", "centered", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["centered"]["fields"]["properties"]) >= {"concepts", "strength", "window", "step"}


def test_it_moves_objects_to_the_middle(layer: Path) -> None:
    options = ["a red circle", "--device", "cpu", "--steps", "10", "--guidance-scale", "3", "--seed", "4"]
    out = layer / "out.png"
    command(layer, "generate", *options, "--control", "centered", "--set", "centered.strength=2", "--out", str(out))
    assert t2ictl.read_settings(out)["controls"][0]["strength"] == 2.0
    assert main(["generate", *options, "--out", str(layer / "plain.png")]) == 0
    moved, plain = (np.asarray(Image.open(path), dtype=int) for path in (out, layer / "plain.png"))
    assert np.abs(moved - plain).max() > 20


def test_a_package_that_cannot_be_imported_takes_nothing_down(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed / "my_controls" / "centered.py").write_text("import no_such_module_at_all\n")
    assert main(["controls"]) == 0
    assert "attend_and_excite" in capsys.readouterr().out

"""The commands of ``t2ictl bench``: options, YAML, output, and one line for what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from t2ictl.benchmarks.commands import _plan
from t2ictl.cli.app import main
from tests.benchmarks.runs import bench
from tests.repository.sources import ROOT


def example() -> str:
    """The YAML of the documentation."""
    found = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "bench.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_yaml_of_the_documentation_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(example(), encoding="utf-8")
    short = ("--limit", "2", "--seeds", "1", "--steps", "2", "--device", "cpu")
    assert main(["bench", "run", str(path), "--out", str(tmp_path / "run"), *short]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("plan ") and "instrument" in lines[0]
    assert lines[1] == "limited run (--limit 2): not a result"
    assert any("best-of-4 (oracle)" in line for line in lines) and "is_strict %" in lines[2]
    assert "image/s" in err and "t2ictl" not in err


def test_options_replace_the_values_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(example(), encoding="utf-8")
    plan = _plan(path, {"steps": 3, "kinds": "single", "prompts": "2"}, "gentle,best-of-2,plain")
    assert (plan.steps, plan.kinds, plan.prompts) == (3, ("single",), 2)
    assert list(plan.arms) == ["gentle", "best-of-2", "plain"] and plan.arms["gentle"].control is not None
    assert plan.guidance == _plan(path, {}, None).guidance


def test_json_is_all_that_is_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert bench(out, "--json", arms="plain,best-of-2") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["failed"], found["missing_batches"]) == (12, 0, 0)
    assert found["note"] == "limited run (--limit 3): not a result"
    plain, best = found["table"]
    assert (plain["arm"], plain["n"], plain["forwards"]) == ("plain", 6, 4.0)
    assert (best["shown"], best["forwards"]) == ("best-of-2 (oracle)", 8.0)
    assert all(0 <= value <= 100 for value in plain["percent"].values())
    assert main(["bench", "merge", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == found["table"]


BAD = {
    "shard": ("--shard", "3/2"),
    "arm": ("--arms", "gentle"),
    "suite": ("--suite", "other"),
    "kind": ("--kinds", "other"),
    "steps": ("--steps", "0"),
    "prompts": ("--prompts", "all"),
    "too many prompts": ("--kinds", "single", "--prompts", "100000", "--arms", "plain"),
    "model": ("--model", "./none"),
    "split": ("--split", "other"),
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_status_2(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "run", "--out", str(tmp_path / "run"), "--device", "cpu", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1 and err.startswith("t2ictl: ")
    assert not (tmp_path / "run").exists()


def test_an_unknown_field_of_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text("armz: [plain]\n")
    assert main(["bench", "run", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "no field 'armz'" in capsys.readouterr().err
    assert main(["bench", "run", "--oout", str(tmp_path / "run")]) == 2
    assert main(["bench", "run"]) == 2


@pytest.mark.parametrize("module", ["pyarrow", "filelock"])
def test_a_missing_library_is_one_line_that_names_the_extra(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("arms: [plain]\n")
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["bench", "run", str(path), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err.strip()
    assert module in err and "t2ictl[bench]" in err and len(err.splitlines()) == 1


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from t2ictl.cli.app import main\n"
        "for words in ([], ['run'], ['speed'], ['study']):\n"
        "    assert main(['bench', *words, '--help']) == 0\n"
        "print('loaded:', [name for name in ('torch', 'diffusers', 'pandas', 'pyarrow') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("loaded: []") and "--retry-failed" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda:99"), "The device 'cuda:99' is not there"),
        (("--device", "toaster"), "There is no device 'toaster'"),
        (("--dtype", "float8"), "There is no precision 'float8'"),
    ],
)
def test_devices_and_precisions_that_are_not_there_are_named(
    options: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "run", "--arms", "plain", "--limit", "1", *options, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

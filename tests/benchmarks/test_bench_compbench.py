"""The README's command for people with weights: everything but the weights, on tiny models of the real classes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from t2ictl.cli.app import main
from tests.benchmarks.runs import fingerprint
from tests.repository.sources import ROOT

PROMPTS = ["a red circle and a blue square", "a green bench and a red cat", "a blue dog and a green bench"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """T2I-CompBench's own file, with lines of ours."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "color_val.txt").write_text("\r\n".join(PROMPTS) + "\r\n", encoding="utf-8")
    return folder


def command(**replaced: str) -> list[str]:
    """The README's command with some of its options replaced."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^t2ictl (bench run --suite t2i_compbench(?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert found is not None
    words = shlex.split(found[1].replace("\\\n", " "))
    for name, value in replaced.items():
        words[words.index(f"--{name}") + 1] = value
    return words


def test_dry_run_says_what_would_be_made(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"data": str(data), "prompts": "3", "score": "blip_vqa/grammar:any", "out": str(tmp_path / "run")}
    assert main([*command(**small), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 prompts x 10 seeds x 3 arms (plain, attend_and_excite, structured_guidance): 90 images")
    assert not (tmp_path / "run").exists()


def test_command_runs_scores_and_compares(
    data: Path,
    blip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    small = {"data": str(data), "prompts": "3", "seeds": "2", "steps": "2", "out": str(out)}
    local = {"model": "shapes", "device": "cpu", "dtype": "float32", "score": f"blip_vqa/grammar:{blip}"}
    assert main(command(**small, **local)) == 0
    said = capsys.readouterr().out
    rows = [line.split("|") for line in said.splitlines() if line.startswith("| color")]
    assert [row[2].strip() for row in rows] == ["plain", "attend_and_excite", "structured_guidance"]
    assert "blip_vqa[np8,grammar,blip" in said
    assert re.fullmatch(r"[+-]\d\.\d{4} \[[+-]\d\.\d{4}, [+-]\d\.\d{4}\]", rows[1][6].strip())
    made = fingerprint(out)
    assert len(made) == 1 + 3 * 2 * 3
    assert set(pd.read_parquet(out / "results.parquet")["prompt"]) == set(PROMPTS)
    assert main(["bench", "report", str(out)]) == 0  # and the page of it


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("fid:any", "There is no metric"),
        ("caption_cosine:one", "needs two models"),
        ("blip_vqa:any", "spacy"),
    ],
)
def test_metrics_that_cannot_be_computed_are_refused_before_the_run(
    metric: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(data=str(data), prompts="3", score=metric, out=str(tmp_path / "run"))]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_geneval_needs_its_metadata_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--arms", "plain", "--limit", "1", "--score", "geneval:one,other", "--out", str(tmp_path / "run")]
    assert main(["bench", "run", *options]) == 2
    assert "clauses are in its metadata" in capsys.readouterr().err


def test_json_is_one_document_with_the_scores(
    data: Path,
    blip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = {"data": str(data), "prompts": "2", "seeds": "1", "steps": "2", "out": str(tmp_path / "run")}
    local = {"model": "shapes", "device": "cpu", "dtype": "float32", "score": f"blip_vqa/grammar:{blip}"}
    assert main([*command(**small, **local, arms="plain,attend_and_excite"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 4 and said["missing_batches"] == 0
    assert [entry["arm"] for entry in said["scores"][0]["table"]] == ["plain", "attend_and_excite"]

"""The report of a run: what is in its files, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from t2ictl.benchmarks.results.report.sheets import CELL, GAP, HEAD, LINE, contact_sheet
from t2ictl.benchmarks.results.report.write import write_report
from t2ictl.benchmarks.scoring.base import Score
from t2ictl.benchmarks.scoring.run import score_run
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting
from tests.benchmarks.runs import bench

FILES = {"index.html", "tables.md", "tables.csv", "tables.json", "shares.png", "differences.png", "sheet-pair.png"}


class Redness:
    """A metric: mean of the red channel."""

    def __init__(self) -> None:
        self.name, self.facts = "red[</script><b>]", {"band": 0}

    def __call__(self, image: Image.Image, prompt: str) -> Score:
        return Score(value=float(np.asarray(image)[..., 0].mean()) / 255)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "a run"
    assert bench(out, arms="plain,attention_segregation,best-of-2") == 0
    return out


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_command_writes_the_report_beside_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", str(run)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == run / "report" / "index.html"
    assert {path.name for path in page.parent.iterdir()} == FILES
    text = page.read_text()
    assert "not a result" in text and "those of Stable Diffusion" in text
    assert not re.search(r"(src|href)=.?https?:", text)  # it fetches nothing


def test_page_holds_every_image_with_what_the_judge_said(run: Path) -> None:
    page = write_report(run, run / "report")
    data = data_of(page)
    rows = pd.read_parquet(run / "results.parquet").set_index(["arm", "prompt", "seed"])
    arms = ["plain", "attention_segregation", "best-of-2"]
    assert data["arms"] == ["plain", "attention_segregation", "best-of-2 (oracle)"]
    assert len(data["lines"]) == 3 * 2
    strict = [measure["name"] for measure in data["measures"]].index("is_strict")
    for line in data["lines"]:
        for arm, cell in zip(arms, line["cells"], strict=True):
            row = rows.loc[(arm, line["prompt"], line["seed"])]
            assert cell[2][strict] == int(row["is_strict"])
            assert cell[1] == (row["failure"] if isinstance(row["failure"], str) else "")
            assert (page.parent / unquote(data["base"]) / cell[0]).resolve() == (run / row["image"]).resolve()


def test_scores_of_learned_judges_are_in_it_and_only_for_their_own_images(run: Path, tmp_path: Path) -> None:
    scores = score_run(run, Redness())
    try:
        page = write_report(run, tmp_path / "out")
        data = data_of(page)
        number = [measure["name"] for measure in data["measures"]].index("red[</script><b>]")
        expected = scores.set_index(["arm", "prompt_id", "seed"])["score"]
        rows = pd.read_parquet(run / "results.parquet")
        line = data["lines"][0]
        own = rows[(rows["prompt"] == line["prompt"]) & (rows["arm"] == "plain") & (rows["seed"] == line["seed"])]
        value = expected["plain", own["prompt_id"].iloc[0], line["seed"]]
        assert line["cells"][0][2][number] == pytest.approx(value, abs=1e-4)
        assert (tmp_path / "out" / "scores.json").is_file() and "red[" in (tmp_path / "out" / "tables.md").read_text()
        table = next((run / "scores").glob("*.csv"))
        pd.read_csv(table).assign(sha256="of another image").to_csv(table, index=False)
        with pytest.raises(BadSetting, match="have no score"):
            write_report(run, tmp_path / "out")
    finally:
        for path in (run / "scores").iterdir():
            path.unlink()


def test_an_unknown_arm_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no arm 'nobody'"):
        write_report(run, tmp_path / "out", against=("nobody",))
    assert not (tmp_path / "out").exists()


def test_a_run_that_nobody_judged_asks_for_scores(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    rows = pd.read_parquet(run / "results.parquet")
    rows[[name for name in rows if not name.startswith(("has_", "is_"))]].to_parquet(copy / "results.parquet")
    (copy / "plan.json").write_text((run / "plan.json").read_text())
    (copy / "images").symlink_to(run / "images")
    with pytest.raises(BadSetting, match="Nobody has judged"):
        write_report(copy, copy / "report")
    score_run(copy, Redness())
    data = data_of(write_report(copy, copy / "report"))
    assert [measure["name"] for measure in data["measures"]] == ["red[</script><b>]"]
    assert not (copy / "report" / "tables.csv").exists()  # no outcomes, no shares


def test_sheet_has_the_first_prompts_with_the_judges_word_around_them(tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        for arm, level in (("plain", 40), ("other", 200)):
            Image.new("RGB", (8, 8), (level, number, 0)).save(tmp_path / f"{arm}-{number}.png")
            row = {"arm": arm, "prompt_id": f"p{number}", "prompt": "x", "seed": 0, "status": "ok"}
            rows.append({**row, "image": f"{arm}-{number}.png", "is_strict": arm == "other"})
    path = contact_sheet(tmp_path, pd.DataFrame(rows), ["plain", "other"], tmp_path / "sheet.png", prompts=2)
    sheet = Image.open(path)
    assert sheet.size == (GAP + 2 * (CELL + GAP), HEAD + 2 * (LINE + CELL + GAP))
    for line in range(2):
        for column, level in enumerate((40, 200)):
            left, top = GAP + column * (CELL + GAP), HEAD + line * (LINE + CELL + GAP) + LINE
            assert sheet.getpixel((left + CELL // 2, top + CELL // 2)) == (level, line, 0)
            assert sheet.getpixel((left, top)) == ((213, 94, 0) if column == 0 else (0, 158, 115))


def test_tensorboard_has_the_shares_of_every_arm_and_the_sheets(run: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    assert main(["bench", "report", str(run), "--out", str(tmp_path / "out"), "--tensorboard", str(logs)]) == 0
    shares = json.loads((tmp_path / "out" / "tables.json").read_text())["shares"]
    assert {path.name for path in logs.iterdir()} == {*{share["arm"] for share in shares}, "sheets"}
    for share in shares:
        events = EventAccumulator(str(logs / share["arm"])).Reload()
        found = events.Scalars(f"{share['category']}/{share['outcome']}")
        assert [event.value for event in found] == [pytest.approx(share["estimate"], abs=1e-6)]
    assert EventAccumulator(str(logs / "sheets")).Reload().Tags()["images"] == ["sheet-pair"]

"""Runs over a published set: T2I-CompBench color with two methods, everything but the weights of a large model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from t2ictl.cli.app import main
from t2ictl.generation import replay
from tests.benchmarks.runs import fingerprint
from tests.tiny import sd

COLOR = ["a red circle and a blue square", "a green cat and a red dog", "a blue bench and a black apple"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in a folder, as users have one, and the official prompt file beside it."""
    sd().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/color_val.txt").write_text("\r\n".join(COLOR), encoding="utf-8")
    (tmp_path / "data/color_train.txt").write_text("a red cat and a blue dog\n", encoding="utf-8")
    return tmp_path


def bench(folder: Path, out: str, *options: str) -> int:
    arms = () if "--arms" in options else ("--arms", "plain,token_flow")
    fixed = ("--suite", "t2i_compbench", "--data", str(folder / "data"), "--model", str(folder / "model"))
    small = ("--kinds", "color", "--prompts", "3", "--seeds", "2", "--steps", "2", "--batch", "2", "--device", "cpu")
    split = () if "--split" in options else ("--split", "report")
    return main(["bench", "run", *fixed, *small, *split, *arms, "--out", str(folder / out), *options])


def test_two_methods_on_official_prompts(folder: Path) -> None:
    assert bench(folder, "run") == 0
    rows = pd.read_parquet(folder / "run/results.parquet")
    assert len(rows) == 2 * 3 * 2 and set(rows["status"]) == {"ok"}
    assert list(rows["prompt"].unique()) == COLOR and set(rows["category"]) == {"color"}
    by_arm = {arm: set(own["sha256"]) for arm, own in rows.groupby("arm")}
    assert len(by_arm["plain"]) == 6 and not by_arm["plain"] & by_arm["token_flow"]
    plan = json.loads((folder / "run/plan.json").read_text())
    assert plan["instrument"].endswith("not judged") and str(folder / "data") not in json.dumps(plan["items"])
    assert "data" not in plan


def test_shards_and_a_moved_data_folder_give_the_same_bytes(folder: Path) -> None:
    assert bench(folder, "one") == 0
    assert bench(folder, "two", "--shard", "1/2") == 0
    (folder / "data").rename(folder / "elsewhere")
    assert bench(folder, "two", "--shard", "2/2", "--data", str(folder / "elsewhere")) == 0
    assert fingerprint(folder / "one") == fingerprint(folder / "two")


def test_tuning_prompts_are_those_of_the_training_set(folder: Path) -> None:
    assert bench(folder, "run", "--split", "tune", "--prompts", "1") == 0
    rows = pd.read_parquet(folder / "run/results.parquet")
    assert set(rows["prompt"]) == {"a red cat and a blue dog"}


def test_images_can_be_made_again(folder: Path) -> None:
    assert bench(folder, "run") == 0
    path = next((folder / "run/images/token_flow").iterdir())
    again = np.asarray(replay(sd(), path).images[0], dtype=int)
    assert np.abs(again - np.asarray(Image.open(path).convert("RGB"), dtype=int)).max() <= 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--arms", "plain,best-of-2"), "lets the judge choose"),
        (("--kinds", "shape"), "no kind 'shape'"),
        (("--prompts", "4"), "only 3 color prompts"),
        (("--suite", "geneval"), "No files of geneval"),
        (("--suite", "oracle"), "no suite 'oracle'"),
        (("--suite", "cc_500", "--split", "tune"), "no tuning prompts"),
    ],
)
def test_what_cannot_be_run_is_said_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], match: str
) -> None:
    (folder / "data/CC-500.txt").write_text("a red cat and a blue dog\n", encoding="utf-8")
    (folder / "model/model_index.json").unlink()
    more = ("--kinds", "conjunction") if "cc_500" in options else ()
    assert bench(folder, "run", *options, *more) == 2
    assert match in capsys.readouterr().err and not (folder / "run").exists()


def test_a_published_set_needs_its_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "run", "--suite", "geneval", "--out", str(tmp_path / "run")]) == 2
    assert "--data FOLDER" in capsys.readouterr().err


def test_comparing_what_nobody_judged_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(folder, "run") == 0
    assert main(["bench", "compare", str(folder / "run"), "--against", "plain"]) == 2
    assert "Judge the images first" in capsys.readouterr().err


# -- official layouts -------------------------------------------------------------------------------------------------


def export(folder: Path, layout: str, *options: str, arm: str = "token_flow") -> int:
    out = ("--out", str(folder / "official"))
    return main(["bench", "export", str(folder / "run"), "--arm", arm, "--layout", layout, *out, *options])


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_layout_of_compbench(folder: Path) -> None:
    assert bench(folder, "run") == 0 and export(folder, "t2i_compbench") == 0
    made = names(folder / "official")
    assert [name.rpartition("_")[0] for name in sorted(made, key=lambda name: name[-10:])] == [
        f"color/samples/{prompt}" for prompt in COLOR for _ in range(2)
    ]
    assert sorted(name.rpartition("_")[2] for name in made) == [f"{number:06d}.png" for number in range(6)]
    # The tool's own way back: the prompt before the first underscore, the order by the number behind.
    rows = pd.read_parquet(folder / "run/results.parquet")
    own = rows[(rows["arm"] == "token_flow") & (rows["prompt"] == COLOR[1])].sort_values("seed")
    for number, image in zip((2, 3), own["image"], strict=True):
        copied = folder / f"official/color/samples/{COLOR[1]}_{number:06d}.png"
        assert copied.read_bytes() == (folder / "run" / image).read_bytes()


def test_layout_of_attend_and_excite(folder: Path) -> None:
    assert bench(folder, "run") == 0 and export(folder, "attend_and_excite", arm="plain") == 0
    assert names(folder / "official") == sorted(f"{prompt}/{number}.png" for prompt in COLOR for number in range(2))


def test_layout_of_geneval(folder: Path) -> None:
    lines = [
        {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a photo of a red cat"},
        {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}],
         "prompt": "a photo of two dogs"},
    ]  # fmt: skip
    (folder / "data/evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ("--suite", "geneval", "--kinds", "colors,counting", "--prompts", "1")
    assert bench(folder, "run", *options) == 0
    assert export(folder, "geneval", "--data", str(folder / "data")) == 0
    assert names(folder / "official") == sorted(
        f"{prompt}/{file}"
        for prompt in ("00000", "00001")
        for file in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    )
    for number, line in enumerate(lines):
        assert json.loads((folder / f"official/{number:05d}/metadata.jsonl").read_text()) == line


@pytest.mark.parametrize(
    ("layout", "options", "match"),
    [
        ("oracle", (), "no layout 'oracle'"),
        ("geneval", (), "--data FOLDER"),
        ("t2i_compbench", ("--arm", "nobody"), "no arm 'nobody'"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_written(
    folder: Path, capsys: pytest.CaptureFixture[str], layout: str, options: tuple[str, ...], match: str
) -> None:
    assert bench(folder, "run") == 0 and export(folder, layout, *options) == 2
    assert match in capsys.readouterr().err and not (folder / "official").exists()


def test_names_that_cannot_be_read_back_full_folders_and_lost_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data/color_val.txt").write_text("a red_cat\na dog\na bird\n", encoding="utf-8")
    assert bench(folder, "run") == 0 and export(folder, "t2i_compbench") == 2
    assert "'a red_cat'" in capsys.readouterr().err
    (folder / "official").mkdir()
    (folder / "official/mine.txt").write_text("mine")
    assert export(folder, "attend_and_excite") == 2 and "not empty" in capsys.readouterr().err
    (folder / "official/mine.txt").unlink()
    next((folder / "run/images/token_flow").iterdir()).unlink()
    assert export(folder, "attend_and_excite") == 2 and "is not there" in capsys.readouterr().err
    assert names(folder / "official") == []

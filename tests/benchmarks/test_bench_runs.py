"""Runs: the same table and images however they were made, and failures that stay rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from t2ictl.benchmarks.runs.sampling import Sampler
from t2ictl.cli.app import main
from tests.benchmarks.runs import ARMS, bench, fingerprint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed: 3 batches of 2 images in 5 arms."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert bench(out) == 0
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def rows_file(out: Path) -> Path:
    return out / "rows" / "1of1.jsonl"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count batches that are made from here on."""
    made: list[int] = []
    original = Sampler.__call__

    def call(self: Any, prompts: Any, *rest: Any) -> Any:
        made.append(len(prompts))
        return original(self, prompts, *rest)

    monkeypatch.setattr(Sampler, "__call__", call)
    return made


def failing(monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool], error: BaseException) -> None:
    """Raise in the place of controlled batches."""
    original = Sampler.__call__

    def call(self: Any, prompts: Any, seeds: Any, controls: Any, measure: Any) -> Any:
        if when((list(prompts), controls)):
            raise error
        return original(self, prompts, seeds, controls, measure)

    monkeypatch.setattr(Sampler, "__call__", call)


def table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "results.parquet")


# -- what is in a folder ---------------------------------------------------------------------------


def test_rows_are_sorted_and_complete(whole: Path) -> None:
    rows = table(whole)
    key = ["arm", "category", "prompt_id", "seed"]
    assert len(rows) == 3 * 2 * 5 and rows[key].equals(rows[key].sort_values(key, ignore_index=True))
    assert set(rows["status"]) == {"ok"} and rows["has_all"].dtype == bool
    for row in rows.itertuples():
        assert (whole / row.image).is_file() and row.forwards >= 4
    plain, best = (rows[rows.arm == arm].reset_index() for arm in ("plain", "best-of-2"))
    assert (best.forwards == 2 * plain.forwards).all() and (plain.backwards == 0).all()
    first = best.chosen_seed == plain.noise_seed
    assert (best.sha256[first] == plain.sha256[first]).all() and (best.is_strict >= plain.is_strict).all()


def test_a_random_arm_repeats_the_lengths_of_its_base(whole: Path) -> None:
    rows = table(whole)
    base, random = (
        rows[rows.arm == arm].reset_index() for arm in ("attention_segregation", "random:attention_segregation")
    )
    for one, other in zip(base.itertuples(), random.itertuples(), strict=True):
        assert list(one.length_steps) == list(other.length_steps) and len(one.lengths) >= 1
        np.testing.assert_allclose(one.lengths, other.lengths, rtol=1e-6)
    assert (base.backwards > 0).all() and (random.backwards == 0).all() and base.loss.notna().all()


def test_no_time_host_or_batch_is_in_rows_and_images(whole: Path, tmp_path: Path) -> None:
    timings = [json.loads(line) for line in (whole / "timings" / "1of1.jsonl").read_text().splitlines()]
    assert len(timings) == 3 * 5 and {"seconds", "images_per_second", "peak_bytes"} <= set(timings[0])
    assert not {"seconds", "images_per_second", "peak_bytes", "batch"} & set(table(whole).columns)
    info = Image.open(whole / "images" / "plain" / "tune-pair-0000-0.png").info
    assert set(info) == {"t2ictl"} and not {"time", "date", "host", "batch"} & set(json.loads(info["t2ictl"]))


def test_an_image_can_be_made_again_from_its_own_settings(whole: Path, tmp_path: Path) -> None:
    for arm in ("attention_segregation", "best-of-2@attention_segregation"):
        path, again = whole / "images" / arm / "tune-pair-0001-1.png", tmp_path / "again.png"
        assert main(["generate", "--from", str(path), "--out", str(again), "--device", "cpu"]) == 0
        pixels = [np.asarray(Image.open(each), int) for each in (path, again)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_the_plan_says_what_reproduces_the_rows(whole: Path) -> None:
    plan = json.loads((whole / "plan.json").read_text())
    assert list(plan["arms"]) == ["plain", *ARMS.split(",")[1:]]
    assert plan["arms"]["random:attention_segregation"]["controls"][0]["strength"] == 1.0
    assert plan["limited"] and len(plan["items"]) == 3 and plan["batch"] == 2
    assert {"torch", "diffusers", "t2ictl", "python"} <= set(plan["versions"])
    assert {"hash", "instrument", "commit", "scheduler", "source"} <= set(plan)


# -- the same, however it was made -----------------------------------------------------------------


def test_shards_give_the_same_bytes_as_one_process(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert bench(out, "--shard", "2/2") == 0
    assert "2 batches are missing" in capsys.readouterr().out and not (out / "results.parquet").exists()
    assert main(["bench", "merge", str(out)]) == 2
    assert "2 of 3 batches" in capsys.readouterr().err
    assert bench(out, "--shard", "1/2") == 0
    assert fingerprint(out) == fingerprint(whole)
    (out / "results.parquet").unlink()
    assert main(["bench", "merge", str(out)]) == 0
    assert fingerprint(out) == fingerprint(whole)
    assert {path.name for path in (out / "rows").iterdir()} == {"1of2.jsonl", "2of2.jsonl"}


def test_a_run_that_is_done_makes_nothing(run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    assert bench(run) == 0 and made == []
    assert bench(run, "--shard", "1/3") == 0 and made == []
    assert fingerprint(run) == fingerprint(whole)


@pytest.mark.parametrize("cut", [1, 2000, 12000])
def test_a_torn_write_is_cut_off_and_made_again(
    cut: int, run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = rows_file(run).read_bytes()
    rows_file(run).write_bytes(content[:-cut])
    (run / "results.parquet").unlink()
    made = counted(monkeypatch)
    assert bench(run) == 0
    lost = sum(len(line) for line in content.splitlines(keepends=True)[-10:])
    assert len(made) == 4 * (1 if cut <= lost else 2)
    assert fingerprint(run) == fingerprint(whole) and rows_file(run).read_bytes() == content


def test_damaged_images_are_made_again(run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run / "images" / "best-of-2"
    (folder / "tune-pair-0000-0.png").unlink()
    cut = run / "images" / "plain" / "tune-pair-0002-1.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    made = counted(monkeypatch)
    assert bench(run) == 0 and len(made) == 2 * 4
    assert fingerprint(run) == fingerprint(whole)


# -- failures --------------------------------------------------------------------------------------


def test_a_failure_is_a_row_and_can_be_retried(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, prompts = tmp_path / "run", table(whole).drop_duplicates("prompt_id").prompt.tolist()
    with monkeypatch.context() as patch:
        failing(patch, lambda call: call[0][0] == prompts[1] and bool(call[1]), RuntimeError("a\nbad day"))
        assert bench(out) == 1
    rows = table(out)
    bad = rows[rows.status == "error"]
    assert set(bad.arm) == {"attention_segregation", "random:attention_segregation"} and len(bad) == 4
    assert set(bad.prompt) == {prompts[1]} and bad.has_all.isna().all() and bad.image.isna().all()
    assert bad[bad.arm == "attention_segregation"].error.tolist() == ["RuntimeError: a bad day"] * 2
    assert "whose moves this one repeats, failed" in bad[bad.arm.str.startswith("random")].error.iloc[0]
    made = counted(monkeypatch)
    assert bench(out) == 1 and made == []  # not retried unasked
    assert bench(out, "--retry-failed") == 0 and len(made) == 4
    assert fingerprint(out) == fingerprint(whole)


def test_an_error_of_a_control_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("arms: {lost: {control: attend_and_excite, settings: {concepts: [zebra]}}, plain: }\n")
    options = ("--limit", "1", "--seeds", "1", "--steps", "2", "--device", "cpu", "--json")
    assert main(["bench", "run", str(path), "--out", str(tmp_path / "run"), *options]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["failed"]) == (2, 1)
    rows = table(tmp_path / "run").set_index("arm")
    assert rows.error["lost"].startswith("SpanNotFound: ") and rows.status["plain"] == "ok"


@pytest.mark.parametrize("how", ["interrupt", "terminate"])
def test_a_stop_is_clean_and_the_run_goes_on(
    how: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    prompt = table(whole).drop_duplicates("prompt_id").prompt.tolist()[2]

    def stop(call: Any) -> bool:
        if call[0][0] == prompt and how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        return call[0][0] == prompt

    with monkeypatch.context() as patch:
        failing(patch, stop, KeyboardInterrupt())
        assert bench(out) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("t2ictl: The run was stopped.")
    assert signal.getsignal(signal.SIGTERM) is before and not (out / "results.parquet").exists()
    assert bench(out) == 0
    assert fingerprint(out) == fingerprint(whole)


# -- refusals --------------------------------------------------------------------------------------

OTHER_PLANS = {
    "steps": ("--steps", "3"),
    "seeds": ("--seeds", "1"),
    "batch": ("--batch", "3"),
    "guidance": ("--guidance", "2"),
    "limit": ("--limit", "2"),
    "split": ("--split", "report"),
}


@pytest.mark.parametrize("key", OTHER_PLANS)
def test_another_plan_is_refused_with_the_key(key: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(run, *OTHER_PLANS[key]) == 2
    error = capsys.readouterr().err
    assert f"{key} was " in error and len(error.strip().splitlines()) == 1


def test_other_arms_and_versions_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(run, arms="plain,attention_segregation") == 2
    assert "arms.best-of-2 was " in capsys.readouterr().err
    plan = json.loads((run / "plan.json").read_text())
    for key, value in {"versions": {**plan["versions"], "torch": "1.0"}, "source": "0", "instrument": "0"}.items():
        (run / "plan.json").write_text(json.dumps({**plan, key: value}))
        assert bench(run) == 2 and key in capsys.readouterr().err
    (run / "plan.json").write_text(json.dumps({**plan, "commit": "another"}))
    assert bench(run, "--threads", "1") == 0


def test_one_shard_has_one_process(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with filelock.FileLock(run / "locks" / "1of1.lock"):
        assert bench(run) == 2
        assert "at work on shard 1/1" in capsys.readouterr().err
        assert bench(run, "--shard", "1/2") == 0
    assert bench(run) == 0


def test_a_folder_with_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert bench(tmp_path) == 2 and "holds something else" in capsys.readouterr().err
    assert main(["bench", "merge", str(tmp_path)]) == 2 and "no plan.json" in capsys.readouterr().err


def test_a_folder_that_another_shard_is_making_is_no_other_thing(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("locks", "rows", "images", "timings"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"")
    assert bench(tmp_path) == 2 and "holds something else" in capsys.readouterr().err
    (tmp_path / "images" / "holiday.png").unlink()
    assert bench(tmp_path) == 0 and fingerprint(tmp_path) == fingerprint(whole)

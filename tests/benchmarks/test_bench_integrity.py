"""Rows, tables and images that belong together: what a disk, a lost file or another worker did to them is found."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from t2ictl import Generation
from t2ictl.benchmarks.results.export import export_run
from t2ictl.benchmarks.runs import runner
from t2ictl.benchmarks.runs.manifest import check_same
from t2ictl.benchmarks.runs.sampling import Sampler
from t2ictl.benchmarks.runs.store import Folder, Key
from t2ictl.benchmarks.runs.table import RESULTS, checked_image, flat_rows, read_table, write_results
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting
from t2ictl.session.cost import Cost
from t2ictl.settings.store import file_hash
from tests.benchmarks.runs import bench, fingerprint

ARMS = "plain,best-of-2"
FACTS = dict.fromkeys(("hash", "limited", "instrument", "commit", "suite", "model", "split"), "x")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed: 3 batches of 2 images in 2 arms."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert bench(out, arms=ARMS) == 0
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def agrees(out: Path) -> bool:
    """Whether each row of the table describes the image that is on disk."""
    rows = pd.read_parquet(out / RESULTS)
    return all(file_hash(out / row.image) == row.file_sha256 for row in rows.itertuples())


def other_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From here on images come out otherwise, as on another processor; gives the sizes of the batches."""
    made: list[int] = []
    original = Sampler.__call__

    def call(self: Any, prompts: Any, *rest: Any) -> Any:
        made.append(len(prompts))
        sample = original(self, prompts, *rest)
        sample.images[:] = [ImageOps.mirror(image) for image in sample.images]
        return sample

    monkeypatch.setattr(Sampler, "__call__", call)
    return made


# -- rows are chosen by what they say ----------------------------------------------------------------


@pytest.mark.parametrize("shards", [("1/1", "1/2", "2/2"), ("1/2", "2/2", "1/1"), ("2/3", "1/3", "3/3")])
@pytest.mark.parametrize("loss", ["lost", "changed"])
def test_rows_say_what_the_images_are_after_the_number_of_shards_changed(
    loss: str, shards: tuple[str, ...], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever name the file has in which the batch was made again, and whichever the one of before."""
    name = f"{shards[0].replace('/', 'of')}.jsonl"
    (run / "rows" / "1of1.jsonl").rename(run / "rows" / name)
    path = run / "images" / "plain" / "tune-pair-0001-0.png"
    path.unlink() if loss == "lost" else path.write_bytes(b"another image")
    made = other_images(monkeypatch)
    with pytest.warns(UserWarning, match="changed images: 1"):
        assert [bench(run, "--shard", shard, arms=ARMS) for shard in shards[1:]] == [0] * (len(shards) - 1)
    if (run / RESULTS).exists():
        assert len(made) == 2
    else:
        assert bench(run, "--shard", shards[0], arms=ARMS) == 0
    assert agrees(run)
    made.clear()
    assert bench(run, arms=ARMS) == 0 and made == []


def blocks_of(folder: Folder, *written: tuple[str, str]) -> dict[int, Any]:
    """Write blocks of one unit, each a file and a status, and read them."""
    folder.prepare()
    key: Key = ("plain", "a", 0)
    for worker, status in written:
        row = {"arm": "plain", "category": "pair", "prompt_id": "a", "prompt": "a", "seed": 0, "status": status}
        ok = saved(folder, "a", len(worker)) if status == "ok" else {"error": "bad"}
        folder.append(worker, 0, [row | ok])
    return folder.read({0: [key]}).blocks


def saved(folder: Folder, prompt_id: str, shade: int = 0) -> dict[str, str]:
    made = Generation(images=[Image.new("RGB", (4, 4), (shade, 0, 0))], settings={}, cost=Cost(), trace=())
    return folder.save_image(made, {"arm": "plain", "prompt_id": prompt_id, "seed": 0})


@pytest.mark.parametrize("files", [("1of1", "1of2"), ("1of2", "1of1"), ("1of1", "1of1")])
@pytest.mark.parametrize("first, last", [("ok", "error"), ("error", "ok")])
def test_a_failed_batch_never_wins_over_a_good_one(
    first: str, last: str, files: tuple[str, str], tmp_path: Path
) -> None:
    found = blocks_of(Folder(tmp_path), (files[0], first), (files[1], last))
    assert [row["status"] for row in found[0].rows] == ["ok"]


def test_of_two_failures_the_last_of_a_file_counts(tmp_path: Path) -> None:
    found = blocks_of(Folder(tmp_path), ("1of1", "error"), ("1of1", "failed"))
    assert [row["status"] for row in found[0].rows] == ["failed"]


def test_a_batch_is_complete_only_with_each_of_its_rows(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.prepare()
    keys: list[Key] = [("plain", "a", 0), ("plain", "b", 0)]
    row = {"arm": "plain", "category": "pair", "prompt": "a", "seed": 0, "status": "error"}
    a, b, other = ({**row, "prompt_id": name} for name in "abc")
    for rows in ([a, a], [a, other], [b | {"seed": 1}, a], [a | {"arm": "best"}, b], [a | {"status": None}, b]):
        folder.append("1of1", 0, rows)
        assert not folder.read({0: keys}).blocks
    # An attempt that was torn right before does not spoil the one that follows it.
    folder.append("1of1", 0, [a, b])
    found = folder.read({0: keys})
    assert [each["prompt_id"] for each in found.blocks[0].rows] == ["a", "b"] and found.torn == 10


# -- damage ------------------------------------------------------------------------------------------


def test_no_flipped_bit_of_the_rows_gives_other_rows(whole: Path, tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(whole, tmp_path / "run")))
    manifest = json.loads(folder.plan.read_text())
    expected = runner._expected(manifest, runner._units(manifest))
    known = folder.read(expected).blocks
    assert len(known) == 3
    path, generator = folder.root / "rows" / "1of1.jsonl", np.random.default_rng(0)
    content = path.read_bytes()
    for place in generator.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        found = folder.read(expected)
        assert len(found.blocks) < 3 and found.note
        assert all(block.rows == known[unit].rows for unit, block in found.blocks.items())


@pytest.mark.parametrize("damage", ["flip", "tear", "empty line"])
def test_damaged_rows_are_made_again_with_a_note(damage: str, run: Path, whole: Path) -> None:
    path = run / "rows" / "1of1.jsonl"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(b'"seed": 0') + 8] ^= 1
    path.write_bytes({"flip": content, "tear": content[:-9], "empty line": b"\n" + content[40:]}[damage])
    with pytest.warns(UserWarning, match="Damaged or incomplete rows: [1-9].* made again"):
        assert bench(run, arms=ARMS) == 0
    assert fingerprint(run) == fingerprint(whole)


def test_rows_without_checksums_are_still_read(run: Path, whole: Path) -> None:
    path = run / "rows" / "1of1.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(row.pop("checksum") for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (run / RESULTS).unlink()
    assert main(["bench", "merge", str(run)]) == 0 and fingerprint(run) == fingerprint(whole)


def test_no_flipped_bit_of_the_table_gives_other_content(run: Path) -> None:
    path, generator = run / RESULTS, np.random.default_rng(1)
    content, known, refused = path.read_bytes(), read_table(run), 0
    for place in generator.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        try:
            pd.testing.assert_frame_equal(read_table(run), known)
        except BadSetting:
            refused += 1
    assert refused > 150  # the other bits are of statistics and padding
    assert main(["bench", "merge", str(run)]) == 0 and path.read_bytes() == content


def test_a_damaged_table_is_named_with_the_way_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (run / RESULTS).read_bytes()
    (run / RESULTS).write_bytes(content[: len(content) // 2])
    assert main(["bench", "compare", str(run)]) == 2
    said = capsys.readouterr().err
    assert "results.parquet' is damaged" in said and "bench merge" in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x")])
def test_merge_compares_images_with_their_rows(
    damage: Callable[[Path], Any], run: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "images" / "best-of-2" / "tune-pair-0002-1.png")
    assert main(["bench", "merge", str(run)]) == 2
    assert "1 of 3 batches" in (said := capsys.readouterr().err) and "lost or changed images: 1" in said
    with pytest.warns(UserWarning, match="made again"):
        assert bench(run, arms=ARMS) == 0
    assert main(["bench", "merge", str(run)]) == 0 and fingerprint(run) == fingerprint(whole)


def test_readers_of_images_compare_them_with_the_table(run: Path, tmp_path: Path) -> None:
    row = read_table(run).iloc[0].to_dict()
    assert checked_image(run, row) == run / row["image"]
    (run / row["image"]).write_bytes((run / "images" / "plain" / "tune-pair-0002-1.png").read_bytes())
    with pytest.raises(BadSetting, match="not the one that its row describes"):
        checked_image(run, row)
    with pytest.raises(BadSetting, match="not the one that its row describes"):
        export_run(run, row["arm"], "attend_and_excite", tmp_path / "out")


def test_a_table_of_before_does_not_stay_beside_images_that_change(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "images" / "plain" / "tune-pair-0001-0.png").unlink()

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "__call__", stop)
    with pytest.warns(UserWarning, match="made again"):
        assert bench(run, arms=ARMS) == 1
    assert not (run / RESULTS).exists()


# -- ids and names -----------------------------------------------------------------------------------

IDS = ("a/b", "a-b", "a b", "../../a", ".a", "é", "a" * 200)


def test_ids_have_images_of_their_own_inside_of_the_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "run")
    folder.prepare()
    made = [saved(folder, name, shade) for shade, name in enumerate(IDS)]
    assert len({each["image"] for each in made}) == len(IDS)
    for each in made:
        path = (folder.root / each["image"]).resolve()
        assert path.parent == (folder.root / "images" / "plain").resolve() and file_hash(path) == each["file_sha256"]


def test_prompts_whose_ids_differ_in_signs_stay_two(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines = [{"id": name, "prompt": "a red circle and a blue square"} for name in ("a/b", "a-b")]
    (tmp_path / "data" / "multi_subject.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    source = ("--suite", "multi_subject", "--data", str(tmp_path / "data"), "--split", "report")
    kinds = ("--kinds", "multi_subject", "--limit", "2")
    out = tmp_path / "run"
    assert main(["bench", "run", *source, *kinds, "--seeds", "1", "--steps", "1", "--out", str(out)]) == 0
    rows = pd.read_parquet(out / RESULTS)
    assert list(rows["prompt_id"]) == ["report-a-b", "report-a/b"] and rows["image"].nunique() == 2
    assert rows["sha256"].nunique() == 2 and agrees(out)


# -- what no test noticed ----------------------------------------------------------------------------


def row(**fields: Any) -> dict[str, Any]:
    return {"arm": "plain", "category": "pair", "prompt_id": "a", "seed": 0, "status": "ok", "outcomes": {}} | fields


def test_the_table_is_sorted_by_arm_category_prompt_and_seed(tmp_path: Path) -> None:
    sorted_rows = [
        row(arm=arm, category=category, prompt_id=prompt, seed=seed)
        for arm in "ab"
        for category in "cd"
        for prompt in "ef"
        for seed in (2, 10)
    ]
    keys = ("arm", "category", "prompt_id", "seed")
    wanted = [[each[key] for key in keys] for each in sorted_rows]
    shuffled = [sorted_rows[place] for place in np.random.default_rng(0).permutation(len(sorted_rows))]
    for order in (sorted_rows[::-1], shuffled):
        assert [[each[key] for key in keys] for each in flat_rows(order)] == wanted
        write_results(order, FACTS, tmp_path / RESULTS)
        assert read_table(tmp_path)[list(keys)].to_numpy().tolist() == wanted


@pytest.mark.parametrize("key", ["versions.torch", "versions.new", "source", "instrument", "arms.plain", "schema"])
def test_each_thing_that_decides_rows_is_compared(key: str) -> None:
    old: dict[str, Any] = {"versions": {"torch": "1"}, "source": "0", "instrument": "0", "arms": {"plain": {"a": 1}}}
    new = json.loads(json.dumps(old | {"commit": "b", "hash": "c"}))
    check_same(old | {"commit": "a"}, new, Path("run"))
    owner, *name = key.split(".")
    (new[owner] if name else new)[name[0] if name else owner] = "another"
    for one, other in ((old, new), (new, old)):
        with pytest.raises(BadSetting, match=f"{key} was "):
            check_same(one, other, Path("run"))


def test_the_plan_and_the_table_are_written_under_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = []

    def watched(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with pytest.raises(filelock.Timeout):
                filelock.FileLock(tmp_path / "run" / "locks" / "plan.lock").acquire(timeout=0)
            locked.append(write.__name__)
            return write(*arguments)

        return call

    for name in ("write_text", "write_results"):
        monkeypatch.setattr(runner, name, watched(getattr(runner, name)))
    assert bench(tmp_path / "run", "--limit", "1", "--seeds", "1", arms="plain") == 0
    assert locked == ["write_text", "write_results"]


def test_a_lock_that_is_waited_for_is_waited_for_as_long_as_it_takes(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.prepare()
    is_held, end, over = threading.Event(), threading.Event(), []

    def hold() -> None:
        with filelock.FileLock(tmp_path / "locks" / "plan.lock"):
            is_held.set()
            end.wait(30)
            over.append(True)

    other = threading.Thread(target=hold)
    other.start()
    assert is_held.wait(30)
    with pytest.raises(BadSetting, match="at work"):
        folder.lock("plan", wait=False)
    threading.Timer(1.5, end.set).start()
    with folder.lock("plan", wait=True):
        assert over
    other.join()


# -- moves longer than a number ----------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["1.0e+25", "1.0e+38", "1.0e+308"])
def test_a_move_longer_than_a_number_is_null_and_counted(
    scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "run"
    plan.write_text(
        f"arms: {{plain: , far: {{control: token_merging, settings: {{step: {{mode: raw, scale: {scale}}}}}}}}}"
    )
    options = ("--limit", "1", "--seeds", "2", "--steps", "2", "--device", "cpu", "--json")
    assert main(["bench", "run", str(plan), "--out", str(out), *options]) == 0
    counts = json.loads(capsys.readouterr().out)
    lengths = [length for own in read_table(out)["lengths"] for length in own]
    endless = sum(not length < np.inf for length in lengths)  # pandas reads null as not a number
    assert counts["overflowed_moves"] == endless and (endless > 0) == (scale != "1.0e+308")
    assert main(["bench", "merge", str(out)]) == 0
    assert (f"{endless} moves were longer" in capsys.readouterr().out) == (endless > 0)

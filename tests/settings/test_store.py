"""The store that every resumable run uses: torn writes, damaged files, kills in the middle of a write."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2ictl.settings import store as module
from t2ictl.settings.files import read_settings
from t2ictl.settings.store import CHECKSUM, Store, file_hash, file_name
from tests.repository.sources import ROOT

ROWS: list[dict[str, Any]] = [{"key": "a", "text": "é\n"}, {"key": "b", "value": 0.1}, {"key": "c", "list": [1, None]}]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "run")
    store.append("rows/one", ROWS)
    return store


def file(store: Store) -> Path:
    return store.root / "rows" / "one.jsonl"


def test_rows_are_lines_of_json_that_are_read_back(store: Store) -> None:
    assert store.rows("rows/one") == ROWS and store.rows("rows/other") == []
    lines = file(store).read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    assert all(len(row.pop(CHECKSUM)) == 16 for row in read) and read == ROWS and "é" in lines[0]
    ends = [line.end for line in store.lines("rows/one")]
    assert ends == np.cumsum([len(line.encode()) + 1 for line in lines]).tolist()
    assert ends[-1] == file(store).stat().st_size


def test_a_torn_write_anywhere_is_not_read_and_cut_off_before_the_next_row(store: Store) -> None:
    whole = file(store).read_bytes()
    ends = [0, *(line.end for line in store.lines("rows/one"))]
    for length in range(len(whole)):
        file(store).write_bytes(whole[:length])
        complete = sum(end <= length for end in ends) - 1
        assert store.rows("rows/one") == ROWS[:complete]
        assert file(store).stat().st_size == length  # reading changes nothing
        store.append("rows/one", ROWS[complete:])
        assert file(store).read_bytes() == whole


def test_a_damaged_line_counts_as_absent_and_the_others_stay(store: Store) -> None:
    lines = file(store).read_bytes().splitlines(keepends=True)
    for damaged in (b"{\n", b"\xff\xfe\n", b"[1]\n", b"\n"):
        file(store).write_bytes(lines[0] + damaged + lines[2])
        assert store.rows("rows/one") == [ROWS[0], ROWS[2]]
        assert [line.row is None for line in store.lines("rows/one")] == [False, True, False]
        store.append("rows/one", ROWS[1:2])
        assert store.rows("rows/one") == [ROWS[0], ROWS[2], ROWS[1]]


def test_no_flipped_bit_gives_other_content(store: Store) -> None:
    """Of a line with any one bit changed, also in its checksum, nothing is taken but the line as it was."""
    whole = file(store).read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            file(store).write_bytes(changed)
            assert all(row in ROWS for row in store.rows("rows/one")) and len(store.rows("rows/one")) < 3


def test_damage_of_several_bytes_gives_no_other_content(store: Store) -> None:
    generator = np.random.default_rng(0)
    whole = np.frombuffer(file(store).read_bytes(), np.uint8)
    for _ in range(500):
        changed = whole.copy()
        places = generator.integers(0, len(whole), 3)
        changed[places] = generator.integers(32, 127, 3)
        file(store).write_bytes(changed.tobytes())
        assert all(row in ROWS for row in store.rows("rows/one"))


def test_rows_from_before_there_were_checksums_are_read_and_added_to(store: Store) -> None:
    old: list[dict[str, Any]] = [{"key": "old", "arm_hash": "0123456789abcdef"}, {"a": 1}, {}]
    file(store).write_text("".join(json.dumps(row) + "\n" for row in old), encoding="utf-8")
    assert store.rows("rows/one") == old
    store.append("rows/one", [*ROWS, {}])
    assert store.rows("rows/one") == [*old, *ROWS, {}]


@pytest.mark.parametrize("key, is_old", [("cheCKSum", False), ("chECKSum", True)])
def test_a_seal_may_have_three_damaged_bytes_before_it_passes_for_another_key(
    key: str, is_old: bool, store: Store
) -> None:
    content = file(store).read_bytes()
    file(store).write_bytes(content.replace(b"checksum", key.encode()))
    assert len(store.rows("rows/one")) == (3 if is_old else 0)


def test_a_row_cannot_bring_a_checksum_of_its_own(store: Store) -> None:
    before = file(store).read_bytes()
    with pytest.raises(ValueError, match="checksum"):
        store.append("rows/one", [ROWS[0], {CHECKSUM: ""}])
    assert file(store).read_bytes() == before


KEYS = ("a-b", "a/b", "a b", "a=2Fb", "a--b", "a_b", "é", "..", ".a", "=2E.", "a\0", "a\nb", "x" * 300, "x" * 299 + "y")


def test_keys_have_file_names_of_their_own_that_stay_in_their_folder(tmp_path: Path) -> None:
    names = [file_name(key) for key in KEYS]
    assert len(set(names)) == len(KEYS) and names[0] == "a-b"
    for name in names:
        (tmp_path / f"{name}-0.png").write_bytes(name.encode())
    assert {path.stem for path in tmp_path.iterdir()} == {f"{name}-0" for name in names}


def test_long_keys_are_cut_where_a_file_name_may_be_too_long() -> None:
    assert file_name("x" * 150) == "x" * 150
    assert len(file_name("x" * 151)) == len(file_name("é" * 99)) == 150
    assert file_name("x" * 151)[:133] == "x" * 133 and file_name("x" * 151)[133] == "="


def test_files_are_known_by_their_bytes(tmp_path: Path) -> None:
    for content in (b"", b"abc"):
        (tmp_path / "a").write_bytes(content)
        assert file_hash(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_folders_are_made_when_they_are_first_written_to(tmp_path: Path) -> None:
    store, image = Store(tmp_path / "new"), Image.new("RGB", (2, 2))
    for name in ("a", "b"):
        store.write_image(f"images/plain/{name}", image, {})
        store.write_file(f"files/deep/{name}.txt", b"")
        store.append(f"rows/deep/{name}", ROWS)
    assert len([path for path in store.root.rglob("*") if path.is_file()]) == 6


def test_what_is_written_is_on_the_disk_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, done = Store(tmp_path), []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append(("fsync", os.fstat(handle).st_size))
        fsync(handle)

    def replaced(old: Path, new: Path) -> None:
        done.append(("replace", Path(old).stat().st_size))
        replace(old, new)

    monkeypatch.setattr(module.os, "fsync", synced)
    monkeypatch.setattr(module.os, "replace", replaced)
    store.append("rows", ROWS)
    assert done == [("fsync", (tmp_path / "rows.jsonl").stat().st_size)]
    store.append("times", ROWS, sync=False)
    assert len(done) == 1
    done.clear()
    store.write_file("plan.json", b"12345")
    assert done == [("fsync", 5), ("replace", 5)]
    done.clear()
    store.cut("rows", end=0)
    assert done == [("fsync", 0)]


def test_more_than_a_line_is_cut_off_where_the_caller_says(store: Store) -> None:
    first = next(iter(store.lines("rows/one")))
    store.cut("rows/one", end=first.end)
    assert store.rows("rows/one") == ROWS[:1]
    store.cut("rows/one", end=10**6)
    assert store.rows("rows/one") == ROWS[:1]
    store.cut("rows/other")
    assert not (store.root / "rows" / "other.jsonl").exists()


def test_numbers_that_json_has_not_are_refused_and_nothing_is_written(store: Store) -> None:
    before = file(store).read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        store.append("rows/one", [ROWS[0], {"value": float("nan")}])
    assert file(store).read_bytes() == before


def test_images_carry_their_settings_and_a_damaged_one_counts_as_absent(store: Store) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    path = store.write_image("images/plain/cat-0", image, {"schema": 1, "cell": ["full", 0]})
    assert path == store.image_path("images/plain/cat-0") and read_settings(path)["cell"] == ["full", 0]
    kept = store.read_image("images/plain/cat-0")
    assert kept is not None and np.array_equal(np.asarray(kept), np.asarray(image))
    path.write_bytes(path.read_bytes()[:-30])
    assert store.read_image("images/plain/cat-0") is None and store.read_image("images/plain/cat-1") is None


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_file("folder/plan.json", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            store.write_file("folder/plan.json", b"new")
    assert (store.root / "folder" / "plan.json").read_bytes() == b"old"
    store.write_file("folder/plan.json", b"new")
    assert {path.name: path.read_bytes() for path in (store.root / "folder").iterdir()} == {"plan.json": b"new"}


WRITER = """
import sys
from pathlib import Path
from PIL import Image
from t2ictl.settings.store import Store
store = Store(Path(sys.argv[1]))
number = len(store.rows("rows"))
while True:
    store.write_image(f"{number}", Image.new("RGB", (64, 64), (number % 256, 0, 0)), {"cell": number})
    store.append("rows", [{"number": number, "text": "x" * 3000}])
    number += 1
"""


def test_a_writer_that_is_killed_again_and_again_goes_on_where_it_was(tmp_path: Path) -> None:
    """What is in the rows has its image, no number is missing, and none comes twice."""
    store, count = Store(tmp_path), 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT)
        deadline = time.monotonic() + 60
        while len(store.rows("rows")) <= count + 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        rows = store.rows("rows")
        assert len(rows) > count + 5 and [row["number"] for row in rows] == list(range(len(rows)))
        assert all(store.read_image(str(row["number"])) is not None for row in rows)
        count = len(rows)

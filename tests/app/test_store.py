"""Results of the editor on disk: bounded, one session apart from another, gone when they should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

import t2ictl
from t2ictl import Generation
from t2ictl.app.engine.store import ResultStore
from t2ictl.errors import BadSetting

PROMPT = "a red circle and a blue square"


@pytest.fixture(scope="module")
def made() -> Generation:
    return t2ictl.generate(t2ictl.load("shapes", device="cpu"), PROMPT, seed=1, steps=1)


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_result_is_a_png_with_its_settings_and_a_small_jpeg(tmp_path: Path, made: Generation) -> None:
    store = ResultStore(tmp_path / "new")
    result = store.add("me", made, PROMPT)
    with Image.open(result.path) as image:
        assert image.tobytes() == made.image.tobytes() and image.info  # the settings
    with Image.open(result.thumbnail) as image:
        assert image.format == "JPEG" and max(image.size) <= 128
    assert store.find("me", result.number) == result == store.results("me")[0]
    assert result.size == sum(path.stat().st_size for path in result.files)


def test_the_oldest_that_is_not_pinned_makes_room(tmp_path: Path, made: Generation) -> None:
    store = ResultStore(tmp_path, most=3)
    first = store.add("me", made, "1")
    store.pin("me", first.number)
    for prompt in ("2", "3", "4", "5"):
        store.add("me", made, prompt)
    assert [each.prompt for each in store.results("me")] == ["5", "4", "1"]
    assert len(files(tmp_path)) == 9
    store.pin("me", first.number, False)
    store.add("me", made, "6")
    assert [each.prompt for each in store.results("me")] == ["6", "5", "4"]


def test_bytes_are_bounded_but_one_result_always_fits(tmp_path: Path, made: Generation) -> None:
    size = ResultStore(tmp_path / "a").add("me", made, "1").size
    store = ResultStore(tmp_path / "b", most_bytes=int(2.5 * size))
    for prompt in "123":
        store.add("me", made, prompt)
    assert [each.prompt for each in store.results("me")] == ["3", "2"]
    tight = ResultStore(tmp_path / "c", most_bytes=1)
    tight.add("me", made, "1"), tight.add("me", made, "2")
    assert [each.prompt for each in tight.results("me")] == ["2"]


def test_pinned_results_are_never_lost_to_a_new_one(tmp_path: Path, made: Generation) -> None:
    store = ResultStore(tmp_path, most=1)
    store.pin("me", store.add("me", made, "1").number)
    with pytest.raises(BadSetting, match="all older images are pinned"):
        store.add("me", made, "2")
    assert [each.prompt for each in store.results("me")] == ["1"] and len(files(tmp_path)) == 3


def test_sessions_do_not_see_each_other(tmp_path: Path, made: Generation) -> None:
    store = ResultStore(tmp_path, most=1)
    mine, other = store.add("me", made, "mine"), store.add("you", made, "yours")
    with pytest.raises(BadSetting, match="not there any more"):
        store.find("you", mine.number)
    store.delete("you", mine.number)
    assert store.find("me", mine.number) == mine
    store.drop("me")
    assert store.results("me") == [] and store.find("you", other.number) == other
    assert files(tmp_path) == [f"you/{other.number}.{ending}" for ending in ("jpg", "npz", "png")]


@pytest.mark.parametrize("session", ["", "..", "a/b", "../me", "x" * 65, "a b"])
def test_names_that_are_paths_are_refused(session: str, tmp_path: Path, made: Generation) -> None:
    store = ResultStore(tmp_path / "root")
    with pytest.raises(BadSetting, match="no session"):
        store.add(session, made, PROMPT)
    with pytest.raises(BadSetting, match="no session"):
        store.drop(session)
    assert files(tmp_path) == []


def test_sweep_removes_what_nobody_looks_at_and_what_an_earlier_run_left(tmp_path: Path, made: Generation) -> None:
    clock = Clock()
    store = ResultStore(tmp_path, clock=clock)
    store.add("old", made, "1"), store.add("looked_at", made, "2")
    for name in ("stale", "fresh"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (clock.now, clock.now))
    clock.now += 100
    os.utime(tmp_path / "fresh", (clock.now, clock.now))
    store.results("looked_at"), store.results("../nobody")
    (tmp_path / "not a session").mkdir()
    os.utime(tmp_path / "not a session", (0, 0))
    assert store.sweep(60) == ["old", "stale"]
    assert {path.name for path in tmp_path.iterdir()} == {"looked_at", "fresh", "not a session"}
    assert store.sweep(60) == []


def test_a_plain_image_lives_as_long_as_one_that_is_compared_with_it(tmp_path: Path, made: Generation) -> None:
    store = ResultStore(tmp_path, most=2)
    first = store.add("me", made, "1", details=b"maps")
    plain = store.add("me", made, "1", key="k", is_listed=False)
    assert store.compare("me", first.number, plain.number).plain == plain.number
    second = store.add("me", made, "2")
    store.compare("me", second.number, plain.number)
    assert store.plain("me", "k") == plain and store.plain("you", "k") is None and store.plain("me", "") != plain
    assert [each.prompt for each in store.results("me")] == ["2", "1"]  # the plain one is not listed
    assert store.find("me", first.number).details.read_bytes() == b"maps"
    store.delete("me", first.number)
    assert store.find("me", plain.number) == plain
    store.delete("me", second.number)
    with pytest.raises(BadSetting, match="not there any more"):
        store.find("me", plain.number)
    assert files(tmp_path) == []


def test_a_plain_image_that_is_wanted_itself_stays(tmp_path: Path, made: Generation) -> None:
    store = ResultStore(tmp_path)
    result, plain = store.add("me", made, "1"), store.add("me", made, "1", key="k", is_listed=False)
    store.compare("me", result.number, plain.number)
    store.list_it("me", plain.number)
    store.delete("me", result.number)
    assert [each.number for each in store.results("me")] == [plain.number]


def test_room_is_asked_for_before_the_work(tmp_path: Path, made: Generation) -> None:
    store = ResultStore(tmp_path, most=2)
    store.require_room("me")
    for prompt in "12":
        store.pin("me", store.add("me", made, prompt).number)
    with pytest.raises(BadSetting, match="all older images are pinned"):
        store.require_room("me")
    store.require_room("you")

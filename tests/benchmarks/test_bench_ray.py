"""The engine ``ray``: the same bytes as one process, also when workers are killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from t2ictl.benchmarks.runs import ray_engine
from t2ictl.benchmarks.runs.units import Unit
from t2ictl.errors import MissingExtra
from tests.benchmarks.runs import bench, fingerprint

ON_RAY = ("--engine", "ray", "--workers", "2")


@pytest.mark.slow
def test_two_workers_two_shards_and_one_process_give_the_same_bytes(tmp_path: Path) -> None:
    assert bench(tmp_path / "local") == 0
    assert bench(tmp_path / "ray", *ON_RAY) == 0
    for shard in ("1/2", "2/2"):
        assert bench(tmp_path / "shards", "--shard", shard) == 0
    whole = fingerprint(tmp_path / "local")
    assert len(whole) == 1 + 3 * 2 * 5  # the table, and an image for each prompt, seed and arm
    assert fingerprint(tmp_path / "ray") == whole == fingerprint(tmp_path / "shards")
    assert len(list((tmp_path / "ray" / "rows").glob("ray-*.jsonl"))) == 1
    assert bench(tmp_path / "ray", "--retry-failed") == 0  # the other engine takes the folder as its own


@pytest.mark.slow
def test_workers_killed_amid_the_run_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = ray_engine.RayWorkers.make
    killed: list[int] = []
    after: list[int] = []

    def make_and_kill(
        self: ray_engine.RayWorkers, units: Sequence[Unit], write: Callable[[ray_engine.Made], None]
    ) -> None:
        before = self.pids()

        def write_and_kill(made: ray_engine.Made) -> None:
            write(made)
            if not killed:  # the one that is at work on the next unit, and the one that waits
                for pid in before:
                    os.kill(pid, signal.SIGKILL)
                killed.extend(before)

        make(self, units, write_and_kill)
        after.extend(self.pids())

    monkeypatch.setattr(ray_engine.RayWorkers, "make", make_and_kill)
    assert bench(tmp_path / "killed", *ON_RAY) == 0
    monkeypatch.undo()
    assert len(killed) == 2 and not set(killed) & set(after)
    assert bench(tmp_path / "whole") == 0
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")


class Fatal(ray_engine._Worker):
    """A worker that no unit leaves alive."""

    def make(self, unit: Unit) -> ray_engine.Made:
        os._exit(1)


@pytest.mark.slow
def test_a_unit_that_always_ends_its_worker_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_engine, "_Worker", Fatal)
    assert bench(tmp_path / "run", "--engine", "ray", arms="plain") == 2
    assert "Batch 0 ended its worker 3 times" in capsys.readouterr().err


@pytest.mark.slow
def test_what_the_cluster_cannot_give_and_bad_input_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path / "run", "--engine", "ray", "--workers", "1000", arms="plain") == 2
    assert "1000 workers need 1000 CPU, and ray has" in capsys.readouterr().err
    assert bench(tmp_path / "run", "--engine", "ray", "--dtype", "float8", arms="plain") == 2
    assert "There is no precision 'float8'." in capsys.readouterr().err
    assert bench(tmp_path / "run", "--engine", "ray", "--device", "cuda:1", arms="plain") == 2
    assert "On ray there is no device 'cuda:1'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (("--engine", "dask"), "There is no engine 'dask'"),
        (("--workers", "2"), "Workers are of ray"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path / "run", *options, arms="plain") == 2
    assert message in capsys.readouterr().err


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"t2ictl\[ray\]"), ray_engine.started(None, None, 1):  # type: ignore[arg-type]
        pass

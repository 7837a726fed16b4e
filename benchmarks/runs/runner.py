"""The run: take the units of a shard that are not done, put them through all arms, and merge when all are there.

It may be killed at any moment. What it goes on from is on disk: a unit is done if all its rows are
there and its pictures are as they were written; any other is made again, whole.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from t2ictl.benchmarks.arms import Arm, resolve_arms
from t2ictl.benchmarks.extras import need
from t2ictl.benchmarks.runs.files import write_whole
from t2ictl.benchmarks.runs.manifest import check_same, make_manifest, read_manifest
from t2ictl.benchmarks.runs.plan import RunPlan, plan_items
from t2ictl.benchmarks.runs.sampling import Sampler
from t2ictl.benchmarks.runs.store import Block, Folder, Key
from t2ictl.benchmarks.runs.table import write_results
from t2ictl.benchmarks.runs.unit_run import Judge, UnitRun
from t2ictl.benchmarks.runs.units import Shard, Unit, units_of
from t2ictl.benchmarks.suites import Item, Judgement, find_suite
from t2ictl.errors import BadSetting, Cancelled

__all__ = ["Outcome", "merge", "run"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a folder holds after a command.

    Args:
        manifest: data of plan.json.
        rows: the rows of all units that are done, as they were written.
        missing: number of units that are not.
    """

    manifest: dict[str, Any]
    rows: list[dict[str, Any]]
    missing: int

    @property
    def failed(self) -> int:
        """Number of rows that are errors."""
        return sum(row["status"] != "ok" for row in self.rows)


def run(
    plan: RunPlan,
    out: Path,
    *,
    shard: Shard | None = None,
    retry_failed: bool = False,
    threads: int = 1,
    device: str | None = None,
) -> Outcome:
    """Run a plan, or go on with it.

    Args:
        plan: what to run.
        out: the folder.
        shard: the share of the work to do; None for all of it.
        retry_failed: make units with failed rows again.
        threads: threads of torch; not part of the plan, but rounding may depend on it.
        device: where the model runs; None for CUDA where there is one.

    Returns:
        What the folder then holds, also of other shards.

    Raises:
        BadSetting: if the plan cannot be run, the folder belongs to another plan, or the shard is being worked on.
        Cancelled: on an interrupt or SIGTERM; the same command goes on from there.
        MissingExtra: if a library of the extra ``bench`` is missing.

    Example:
        >>> from t2ictl.benchmarks.runs.plan import make_plan
        >>> plan = make_plan({"arms": "plain,best-of-2", "limit": 1, "seeds": 1, "steps": 2})
        >>> outcome = run(plan, Path("smoke"), device="cpu")
        >>> len(outcome.rows), outcome.failed, merge(Path("smoke")).missing
        (2, 0, 0)
    """
    for module in ("pyarrow", "filelock"):
        need(module)
    shard = shard or Shard()
    arms, items, suite = resolve_arms(plan.arms), plan_items(plan), find_suite(plan.suite, plan.data)
    if suite.judge is None and (oracles := [arm.label for arm in arms if arm.kind == "best" and arm.base is None]):
        raise BadSetting(
            f"{oracles[0]} lets the judge choose, and pictures of {plan.suite} are judged later.",
            "Leave it out, or choose by a control's loss: best-of-N:<arm>.",
        )
    with _pipeline(plan.model, device, threads) as pipe:
        manifest = make_manifest(plan, arms, items, pipe)
        folder = Folder(out)
        folder.prepare()
        with folder.lock(shard.name, wait=False):
            _settle(folder, manifest)
            units = _units(manifest)
            expected = _expected(manifest, units)
            folder.cut(shard.name, expected)
            mine = [unit for unit in units if shard.takes(unit)]
            done = _done(folder, folder.blocks(expected), retry_failed)
            worker = _Worker(
                folder=folder,
                name=shard.name,
                arms=arms,
                sampler=Sampler(pipe=pipe, steps=plan.steps, guidance=plan.guidance),
                judge=suite.judge or _not_judged,
            )
            with _stoppable():
                worker.work(mine, done)
    return merge(out, partial=True)


def _not_judged(image: Any, prompt: str) -> Judgement:
    return Judgement(outcomes={})


def merge(out: Path, *, partial: bool = False) -> Outcome:
    """Write results.parquet from the rows of all workers.

    Args:
        out: the folder of a run.
        partial: do not refuse if units are missing; then no table is written.

    Returns:
        What the folder holds.

    Raises:
        BadSetting: if there is no run, or units are missing.
    """
    folder = Folder(out)
    manifest = read_manifest(folder.plan)
    units = _units(manifest)
    with folder.lock("plan", wait=True):
        blocks = folder.blocks(_expected(manifest, units))
        missing = len(units) - len(blocks)
        rows = [row for unit in sorted(blocks) for row in blocks[unit].rows]
        if not missing:
            write_results(rows, manifest, folder.results)
        elif not partial:
            raise BadSetting(
                f"{missing} of {len(units)} batches of {str(out)!r} are not there.",
                "Run the missing shards, or the run without --shard, to the end first.",
            )
    return Outcome(manifest=manifest, rows=rows, missing=missing)


def _settle(folder: Folder, manifest: dict[str, Any]) -> None:
    """Write the plan, or compare with the one that is there."""
    with folder.lock("plan", wait=True):
        if folder.plan.exists():
            check_same(read_manifest(folder.plan), manifest, folder.root)
        else:
            write_whole(folder.plan, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


def _units(manifest: Mapping[str, Any]) -> tuple[Unit, ...]:
    """The units, from the plan alone."""
    items = [Item(**entry) for entry in manifest["items"]]
    seeds = range(manifest["first_seed"], manifest["first_seed"] + manifest["seeds"])
    return units_of(items, seeds, manifest["batch"])


def _expected(manifest: Mapping[str, Any], units: Sequence[Unit]) -> dict[int, frozenset[Key]]:
    """The keys of the rows of each unit."""
    return {
        unit.number: frozenset((arm, pair.item.id, pair.seed) for arm in manifest["arms"] for pair in unit.pairs)
        for unit in units
    }


def _done(folder: Folder, blocks: Mapping[int, Block], retry_failed: bool) -> set[int]:
    """The units that need not be made again."""
    return {
        unit for unit, block in blocks.items() if folder.has_images(block) and not (retry_failed and block.has_failed)
    }


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """One process at its share of the units."""

    folder: Folder
    name: str
    arms: Sequence[Arm]
    sampler: Sampler
    judge: Judge

    def work(self, units: Sequence[Unit], done: set[int]) -> None:
        """Put every unit that is not done through all arms."""
        from tqdm import tqdm

        sizes = {unit.number: len(unit.pairs) * len(self.arms) for unit in units}
        finished = sum(size for number, size in sizes.items() if number in done)
        with tqdm(total=sum(sizes.values()), initial=finished, unit="image", file=sys.stderr, smoothing=0.1) as bar:
            for unit in units:
                if unit.number not in done:
                    self.folder.append(self.name, unit.number, list(self._rows(unit, bar)))

    def _rows(self, unit: Unit, bar: Any) -> Iterator[dict[str, Any]]:
        """Make one unit. Pictures are on disk before their rows are."""
        steps = UnitRun(unit=unit, arms=self.arms, sampler=self.sampler, judge=self.judge)
        for result in steps.results():
            for picture in result.pictures:
                made = picture.generation
                yield picture.row | ({} if made is None else self.folder.save_image(made, picture.row))
            count = len(result.pictures)
            timing = {
                "unit": unit.number,
                "arm": result.arm.label,
                "images": count,
                "seconds": round(result.seconds, 4),
                "images_per_second": round(count / result.seconds, 4) if result.seconds else None,
                "peak_bytes": result.peak_bytes,
            }
            self.folder.add_timing(self.name, timing)
            bar.set_postfix_str(result.arm.label, refresh=False)
            bar.update(count)


@contextmanager
def _pipeline(model: str, device: str | None, threads: int) -> Iterator[Any]:
    """The model, without progress bars of its own, on a fixed number of threads."""
    import diffusers
    import torch
    import transformers

    import t2ictl

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    try:
        pipe = t2ictl.load(model, device=device)
        pipe.set_progress_bar_config(disable=True)
        yield pipe
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn an interrupt and SIGTERM into one clean end. Rows of the unit at hand are made again later."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Cancelled("The run was stopped.", "The same command goes on from the last whole batch.") from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)

"""The run: take the units of a shard that are not done, put them through all arms, and merge when all are there.

It may be killed at any moment. What it goes on from is on disk: a unit is done if all its rows are
there and its images are as they were written; any other is made again, whole.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from t2ictl.benchmarks.extras import need
from t2ictl.benchmarks.runs.arms import Arm, resolve_arms
from t2ictl.benchmarks.runs.making import Runtime, UnitMaker, opened
from t2ictl.benchmarks.runs.manifest import check_same, read_manifest
from t2ictl.benchmarks.runs.plan import RunPlan, plan_items
from t2ictl.benchmarks.runs.store import Folder, Key
from t2ictl.benchmarks.runs.table import write_results
from t2ictl.benchmarks.runs.units import Shard, Unit, units_of
from t2ictl.benchmarks.suites.base import Item, Suite, find_suite
from t2ictl.errors import BadSetting, Cancelled
from t2ictl.settings.files import write_text
from t2ictl.settings.store import CHECKSUM

if TYPE_CHECKING:
    from t2ictl.benchmarks.runs.ray_engine import Made, RayWorkers

__all__ = ["ENGINES", "Outcome", "Runtime", "foretell", "merge", "run"]

ENGINES = ("local", "ray")


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

    @property
    def overflowed(self) -> int:
        """Number of moves whose length is more than a number holds; it is null in the table."""
        return sum(length is None for row in self.rows for length in row.get("lengths") or ())


def run(
    plan: RunPlan,
    out: Path,
    *,
    shard: Shard | None = None,
    retry_failed: bool = False,
    runtime: Runtime | None = None,
    engine: str = "local",
    workers: int = 1,
) -> Outcome:
    """Run a plan, or go on with it.

    Args:
        plan: what to run.
        out: the folder.
        shard: the share of the work to do; None for all of it.
        retry_failed: make units with failed rows again.
        runtime: device, precision and threads.
        engine: ``"local"``, in this process, or ``"ray"``, in workers; images and rows are the same.
        workers: of ray.

    Returns:
        What the folder then holds, also of other shards.

    Raises:
        BadSetting: if the plan cannot be run, the folder belongs to another plan, or the shard is being worked on.
        Cancelled: on an interrupt or SIGTERM; the same command goes on from there.
        MissingExtra: if a library of the extra ``bench`` is missing.

    Example:
        >>> from t2ictl.benchmarks.runs.plan import make_plan
        >>> plan = make_plan({"arms": "plain,best-of-2", "limit": 1, "seeds": 1, "steps": 2})
        >>> outcome = run(plan, Path("smoke"), runtime=Runtime(device="cpu"))
        >>> len(outcome.rows), outcome.failed, merge(Path("smoke")).missing
        (2, 0, 0)
    """
    _check_engine(engine, workers)
    shard = shard or Shard()
    arms, _ = _checked(plan)
    with _engine(plan, runtime or Runtime(), engine, workers, shard) as worker:
        manifest = worker.manifest
        folder = Folder(out)
        folder.prepare()
        with folder.lock(shard.name, wait=False):
            _settle(folder, manifest)
            units = _units(manifest)
            expected = _expected(manifest, units)
            mine = [unit for unit in units if shard.takes(unit)]
            there = folder.read(expected)
            done = {number for number, block in there.blocks.items() if not (retry_failed and block.has_failed)}
            todo = [unit for unit in mine if unit.number not in done]
            if len(done) < len(units) and there.note:
                warnings.warn(f"{there.note} What is missing by it is made again.", stacklevel=2)
            _make_room(folder, worker.name, expected, is_whole=len(done) == len(units))
            with _stoppable(), _bar(mine, done, len(arms)) as bar:
                worker.work(folder, todo, bar)
    return merge(out, partial=True)


def _check_engine(engine: str, workers: int) -> None:
    for module in ("pyarrow", "filelock"):
        need(module)
    if engine not in ENGINES:
        raise BadSetting(f"There is no engine {engine!r}.", f"Engines: {', '.join(ENGINES)}.")
    if workers < 1 or (workers > 1 and engine != "ray"):
        raise BadSetting(f"{workers} workers make no sense here.", "Workers are of ray: --engine ray --workers 2.")


def foretell(plan: RunPlan) -> str:
    """Check a plan without a model, and say what running it would make.

    Args:
        plan: what to run.

    Returns:
        A line for a terminal.

    Raises:
        BadSetting: if the plan cannot be run.

    Example:
        >>> from t2ictl.benchmarks.runs.plan import make_plan
        >>> foretell(make_plan({"arms": "plain,best-of-2", "limit": 3, "seeds": 2, "batch": 4}))
        '3 prompts x 2 seeds x 2 arms (plain, best-of-2): 12 images in 2 batches; 12 images are generated'
    """
    arms, _ = _checked(plan)
    items = plan_items(plan)
    pairs = len(items) * plan.seeds
    batches = -(-pairs // plan.batch)
    # Best-of arms share their candidates, the first of which is the plain arm's image.
    shared = max((arm.candidates for arm in arms if arm.kind in ("plain", "best")), default=0)
    made = pairs * (shared + sum(arm.kind not in ("plain", "best") for arm in arms))
    return (
        f"{len(items)} prompts x {plan.seeds} seeds x {len(arms)} arms ({', '.join(arm.label for arm in arms)}): "
        f"{pairs * len(arms)} images in {batches} batches; {made} images are generated"
    )


def _checked(plan: RunPlan) -> tuple[tuple[Arm, ...], Suite]:
    """Arms and suite; what cannot be run is named before a model is loaded."""
    arms, suite = resolve_arms(plan.arms), find_suite(plan.suite, plan.data)
    plan_items(plan)
    if suite.judge is None and (oracles := [arm.label for arm in arms if arm.kind == "best" and arm.base is None]):
        raise BadSetting(
            f"{oracles[0]} lets the judge choose, and images of {plan.suite} are judged later.",
            "Leave it out, or choose by a control's loss: best-of-N:<arm>.",
        )
    return arms, suite


def merge(out: Path, *, partial: bool = False) -> Outcome:
    """Write results.parquet from the rows of all workers.

    Args:
        out: the folder of a run.
        partial: do not refuse if units are missing; then no table is written.

    Returns:
        What the folder holds.

    Raises:
        BadSetting: if there is no run, or units are missing: not made yet, with damaged rows, or with images that are
            lost or others than those of their rows.
    """
    folder = Folder(out)
    manifest = read_manifest(folder.plan)
    units = _units(manifest)
    with folder.lock("plan", wait=True):
        there = folder.read(_expected(manifest, units))
        missing = len(units) - len(there.blocks)
        rows = [row for unit in sorted(there.blocks) for row in there.blocks[unit].rows]
        if not missing:
            write_results(rows, manifest, folder.results)
        elif not partial:
            raise BadSetting(
                f"{missing} of {len(units)} batches of {str(out)!r} are not there. {there.note or ''}".strip(),
                "Run the missing shards, or the run without --shard, to the end first; what is damaged is made again.",
            )
    return Outcome(manifest=manifest, rows=rows, missing=missing)


def _settle(folder: Folder, manifest: dict[str, Any]) -> None:
    """Write the plan, or compare with the one that is there."""
    with folder.lock("plan", wait=True):
        if folder.plan.exists():
            check_same(read_manifest(folder.plan), manifest, folder.root)
        else:
            # Not strict: settings of some schedulers are infinite.
            write_text(folder.plan, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _units(manifest: Mapping[str, Any]) -> tuple[Unit, ...]:
    """The units, from the plan alone."""
    items = [Item(**entry) for entry in manifest["items"]]
    seeds = range(manifest["first_seed"], manifest["first_seed"] + manifest["seeds"])
    return units_of(items, seeds, manifest["batch"])


def _expected(manifest: Mapping[str, Any], units: Sequence[Unit]) -> dict[int, tuple[Key, ...]]:
    """The keys of the rows of each unit, in the order in which they are made."""
    return {
        unit.number: tuple((arm, pair.item.id, pair.seed) for arm in manifest["arms"] for pair in unit.pairs)
        for unit in units
    }


def _make_room(folder: Folder, worker: str, expected: Mapping[int, Sequence[Key]], *, is_whole: bool) -> None:
    """Remove what must not stay beside the rows and images that are about to be written."""
    folder.cut(worker, expected)
    if not is_whole:  # if this is killed, the table of before would describe images of another time
        folder.results.unlink(missing_ok=True)


def _bar(units: Sequence[Unit], done: set[int], arms: int) -> Any:
    """Progress in images; what was there before counts as done."""
    from tqdm import tqdm

    sizes = {unit.number: len(unit.pairs) * arms for unit in units}
    finished = sum(size for number, size in sizes.items() if number in done)
    return tqdm(total=sum(sizes.values()), initial=finished, unit="image", file=sys.stderr, smoothing=0.1)


@dataclass(frozen=True)
class _Local:
    """The engine ``local``: units one after the other in this process."""

    maker: UnitMaker
    name: str

    @property
    def manifest(self) -> dict[str, Any]:
        return self.maker.manifest()

    def work(self, folder: Folder, units: Sequence[Unit], bar: Any) -> None:
        """Make units and write them."""

        def tell(arm: str, count: int) -> None:
            bar.set_postfix_str(arm, refresh=False)
            bar.update(count)

        for unit in units:
            folder.append(self.name, unit.number, self.maker.make(unit, folder, self.name, tell))


@dataclass(frozen=True)
class _OnRay:
    """The engine ``ray``: workers make units, this process writes them."""

    workers: RayWorkers
    name: str

    @property
    def manifest(self) -> dict[str, Any]:
        return self.workers.manifest

    def work(self, folder: Folder, units: Sequence[Unit], bar: Any) -> None:
        """Make units and write them."""

        def write(made: Made) -> None:
            """Images first: a row on disk means that its image is there."""
            for inside, content in made.files.items():
                if inside.startswith("timings/"):
                    for line in content.splitlines():
                        record = json.loads(line)
                        folder.add_timing(self.name, {key: record[key] for key in record if key != CHECKSUM})
                else:
                    folder.store.write_file(inside, content)
            folder.append(self.name, made.unit, made.rows)
            bar.update(len(made.rows))

        self.workers.make(units, write)


@contextmanager
def _engine(plan: RunPlan, runtime: Runtime, engine: str, workers: int, shard: Shard) -> Iterator[_Local | _OnRay]:
    if engine == "ray":
        from t2ictl.benchmarks.runs import ray_engine

        with ray_engine.started(plan, runtime, workers) as found:
            yield _OnRay(found, f"{ray_engine.NAME}-{shard.name}")
    else:
        with opened(plan, runtime) as maker:
            yield _Local(maker, shard.name)


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

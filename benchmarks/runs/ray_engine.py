"""The engine ``ray``: workers of their own processes, on this machine or on a cluster, and one writer.

A worker is an actor that loads the model once. It makes a unit in a folder of its own and gives rows and files
back; only the process that was started writes to the run's folder, so workers need no common disk. In place of
a worker that dies ray starts another one, which makes the lost unit again from its beginning.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ictl.benchmarks.extras import need
from t2ictl.benchmarks.runs.making import Runtime, opened
from t2ictl.benchmarks.runs.manifest import check_same
from t2ictl.benchmarks.runs.plan import RunPlan
from t2ictl.benchmarks.runs.store import Folder
from t2ictl.benchmarks.runs.units import Unit
from t2ictl.errors import BadSetting, T2ictlError

__all__ = ["Made", "RayWorkers", "started"]

# A unit that takes its worker down with it this often (memory, a broken driver) will do so again.
TRIES = 3
NAME = "ray"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A unit as a worker gives it back.

    Args:
        unit: its number.
        rows: its rows.
        files: images and times by path in the folder.
        problem: what went wrong in the worker, as cause and remedy; nothing else is there then.
    """

    unit: int
    rows: list[dict[str, Any]]
    files: dict[str, bytes]
    problem: tuple[str, str] | None = None


class _Worker:
    """What runs in a worker's process."""

    def __init__(self, plan: RunPlan, runtime: Runtime) -> None:
        self._context = opened(plan, runtime)
        self._maker = self._context.__enter__()  # for as long as the process lives

    def manifest(self) -> dict[str, Any]:
        """Collect everything that decides the rows."""
        return self._maker.manifest()

    def pid(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def make(self, unit: Unit) -> Made:
        """Make one unit, and give back what would be in the run's folder."""
        try:
            with tempfile.TemporaryDirectory() as there:
                root = Path(there)
                for name in ("images", "timings"):
                    (root / name).mkdir()
                rows = self._maker.make(unit, Folder(root), NAME)
                files = {path.relative_to(root).as_posix(): path.read_bytes() for path in _files(root)}
        except T2ictlError as error:  # their text goes through; ray would wrap it in a traceback
            return Made(unit=unit.number, rows=[], files={}, problem=(error.cause, error.remedy))
        return Made(unit=unit.number, rows=rows, files=files)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@dataclass(frozen=True)
class RayWorkers:
    """Workers that have the model loaded.

    Args:
        actors: the workers.
        manifest: everything that decides the rows, as the first worker sees it.
    """

    actors: Sequence[Any]
    manifest: dict[str, Any]

    def pids(self) -> list[int]:
        """Return the ids of the processes of the workers."""
        found: list[int] = need("ray").get([actor.pid.remote() for actor in self.actors])
        return found

    def make(self, units: Sequence[Unit], write: Callable[[Made], None]) -> None:
        """Make units, whoever is free the next one.

        Args:
            units: which.
            write: gets each as soon as it is made.

        Raises:
            BadSetting: if a unit failed, or took its worker down with it again and again.
        """
        ray = need("ray")
        waiting = list(reversed(units))
        running: dict[Any, tuple[Any, Unit]] = {}
        free = list(self.actors)
        while waiting or running:
            while free and waiting:
                actor, unit = free.pop(), waiting.pop()
                running[actor.make.remote(unit)] = (actor, unit)
            done, _ = ray.wait(list(running), num_returns=1)
            actor, unit = running.pop(done[0])
            try:
                made = ray.get(done[0])
            except ray.exceptions.RayActorError as error:
                raise BadSetting(
                    f"Batch {unit.number} ended its worker {TRIES} times: {str(error).splitlines()[0]}",
                    "It may need more memory than there is: use a smaller batch, or fewer workers.",
                ) from None
            if made.problem is not None:
                raise BadSetting(*made.problem)
            write(made)
            free.append(actor)


@contextmanager
def started(plan: RunPlan, runtime: Runtime, workers: int) -> Iterator[RayWorkers]:
    """Start workers, in the cluster that ray's own settings name (RAY_ADDRESS), or else on this machine.

    Args:
        plan: what is run.
        runtime: what each worker computes with; with CUDA, or with None where the cluster has GPUs, each takes one.
        workers: how many.

    Yields:
        The workers.

    Raises:
        BadSetting: if the cluster has too few processors or GPUs, or workers differ in what decides the rows.
        MissingExtra: if ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone unless the user says so
    ray = need("ray", extra="ray")
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadSetting(f"Ray did not start: {reason}", "Look at RAY_ADDRESS, or unset it.") from None
    try:
        resources = _resources(ray, runtime, workers)
        actor = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **resources)(_Worker)
        actors = [actor.remote(plan, runtime) for _ in range(workers)]
        try:
            manifests = ray.get([each.manifest.remote() for each in actors])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, T2ictlError):
                raise BadSetting(cause.cause, cause.remedy) from None
            raise BadSetting(
                f"The workers did not start: {str(error).strip().splitlines()[-1]}", "See the logs of ray."
            ) from None
        for other in manifests[1:]:
            check_same(manifests[0], other, Path("of another worker"))
        yield RayWorkers(actors, manifests[0])
    finally:
        if began:
            ray.shutdown()


def _resources(ray: Any, runtime: Runtime, workers: int) -> dict[str, float]:
    """What each worker takes; refused at once if the cluster can never give it."""
    if runtime.device is not None and ":" in runtime.device:
        raise BadSetting(
            f"On ray there is no device {runtime.device!r}.",
            "Use --device cuda: ray gives each worker a GPU of its own.",
        )
    there = ray.cluster_resources()
    gpus = there.get("GPU", 0)
    wants_gpu = runtime.device.startswith("cuda") if runtime.device else gpus > 0
    wanted = {"CPU": float(runtime.threads), **({"GPU": 1.0} if wants_gpu else {})}
    for kind, each in wanted.items():
        if workers * each > there.get(kind, 0):
            raise BadSetting(
                f"{workers} workers need {workers * each:g} {kind}, and ray has {there.get(kind, 0):g}.",
                "Use fewer --workers or --threads, or a larger cluster.",
            )
    return {"num_cpus": wanted["CPU"], "num_gpus": wanted.get("GPU", 0.0)}

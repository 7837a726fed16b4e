"""What a process needs to make units: the model, the arms and the judge. Both engines work with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from t2ictl import controlled
from t2ictl.benchmarks.runs.arms import Arm, resolve_arms
from t2ictl.benchmarks.runs.manifest import make_manifest
from t2ictl.benchmarks.runs.plan import RunPlan, plan_items
from t2ictl.benchmarks.runs.sampling import Sampler
from t2ictl.benchmarks.runs.store import Folder
from t2ictl.benchmarks.runs.unit_run import UnitRun
from t2ictl.benchmarks.runs.units import Unit
from t2ictl.benchmarks.suites.base import Judgement, Suite, find_suite
from t2ictl.errors import BadSetting
from t2ictl.shapes import MODELS

__all__ = ["Runtime", "UnitMaker", "opened"]

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What images are computed with; rounding may depend on it.

    Args:
        device: of torch; None for CUDA where there is one.
        dtype: precision of the weights.
        threads: threads of torch in one process.
    """

    device: str | None = None
    dtype: str = "float32"
    threads: int = 1


@dataclass(frozen=True)
class UnitMaker:
    """Makes units with one pipeline.

    Args:
        plan: what is run.
        pipe: a diffusers pipeline.
    """

    plan: RunPlan
    pipe: Any

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of the plan, with what presets mean for this model: plan.json and images hold it."""
        arms = resolve_arms(self.plan.arms)
        named = {id(control): control for arm in arms for control in arm.controls}
        filled = dict(zip(named, controlled(self.pipe, tuple(named.values())).controls, strict=True))
        return tuple(replace(arm, controls=tuple(filled[id(each)] for each in arm.controls)) for arm in arms)

    @cached_property
    def suite(self) -> Suite:
        """The suite of the plan."""
        return find_suite(self.plan.suite, self.plan.data)

    def manifest(self) -> dict[str, Any]:
        """Collect everything that decides the rows."""
        return make_manifest(self.plan, self.arms, plan_items(self.plan), self.pipe)

    def make(
        self, unit: Unit, folder: Folder, worker: str, tell: Callable[[str, int], None] = lambda arm, count: None
    ) -> list[dict[str, Any]]:
        """Put a unit through all arms. Images are on disk before their rows are.

        Args:
            unit: the unit.
            folder: gets the images and the times.
            worker: name of the file with the times.
            tell: gets an arm's label and number of images, when they are made.

        Returns:
            The rows, which are not written yet.
        """
        sampler = Sampler(pipe=self.pipe, steps=self.plan.steps, guidance=self.plan.guidance)
        model = self.plan.model if self.plan.model in MODELS else ""
        steps = UnitRun(unit=unit, arms=self.arms, sampler=sampler, judge=self.suite.judge or _not_judged, model=model)
        rows = []
        for result in steps.results():
            for image in result.images:
                made = image.generation
                rows.append(image.row | ({} if made is None else folder.save_image(made, image.row)))
            count = len(result.images)
            timing = {
                "unit": unit.number,
                "arm": result.arm.label,
                "images": count,
                "seconds": round(result.seconds, 4),
                "images_per_second": round(count / result.seconds, 4) if result.seconds else None,
                "peak_bytes": result.peak_bytes,
            }
            folder.add_timing(worker, timing)
            tell(result.arm.label, count)
        return rows


def _not_judged(image: Any, prompt: str) -> Judgement:
    return Judgement(outcomes={})


def _check(runtime: Runtime) -> None:
    """Name a precision or device that is not there."""
    import torch

    if runtime.dtype not in DTYPES:
        raise BadSetting(f"There is no precision {runtime.dtype!r}.", f"Use one of {', '.join(DTYPES)}.")
    if runtime.device is None:
        return
    try:
        device = torch.device(runtime.device)
    except RuntimeError:
        raise BadSetting(f"There is no device {runtime.device!r}.", "Use cpu, cuda, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadSetting(f"The device {runtime.device!r} is not there.", "`t2ictl doctor` lists the devices; use cpu.")


@contextmanager
def opened(plan: RunPlan, runtime: Runtime) -> Iterator[UnitMaker]:
    """Load the model of a plan, without progress bars of its own, on a fixed number of threads.

    Args:
        plan: what is run.
        runtime: device, precision and threads.

    Yields:
        What makes its units.

    Raises:
        BadSetting: if there is no such model, precision or device.
    """
    import diffusers
    import torch
    import transformers

    import t2ictl

    _check(runtime)
    before = torch.get_num_threads()
    torch.set_num_threads(runtime.threads)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    try:
        pipe = t2ictl.load(plan.model, dtype=getattr(torch, runtime.dtype), device=runtime.device)
        pipe.set_progress_bar_config(disable=True)
        yield UnitMaker(plan, pipe)
    finally:
        torch.set_num_threads(before)

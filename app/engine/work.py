"""What the worker does with a job: first the controlled image, then the plain one of the same seed.

The plain image is kept by what it is made of, so switching controls uses it again. Probes leave images bit-equal,
so the maps of both come from the passes that make them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

import t2ictl
from t2ictl import Checkpointing, Control, Generation, Recording, Request
from t2ictl.app.engine.details import details_of
from t2ictl.app.engine.jobs import Job
from t2ictl.app.engine.models import ModelManager
from t2ictl.app.engine.preview import LatentColors
from t2ictl.app.engine.store import Result, ResultStore
from t2ictl.errors import BadSetting, BudgetExceeded, Cancelled

__all__ = ["JobRequest", "JobResult", "Worker"]

#: All layers whose maps together point best; the middle block is left out, as in DAAM.
RECORDED = ("down.*", "up.*")
PREVIEW_SECONDS = 1.0


def _asked(request: Request) -> dict[str, Any]:
    return {each.name: getattr(request, each.name) for each in fields(request)}


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a page asks for.

    Args:
        model: source of a found model.
        request: what the pipeline is asked for; one prompt, one image.
        controls: what to do.
        compare: whether the plain image of the same seed is wanted too.
    """

    model: str
    request: Request
    controls: tuple[Control, ...] = ()
    compare: bool = True

    @property
    def plain_key(self) -> str:
        """What the plain image is made of."""
        return json.dumps([self.model, _asked(self.request)], sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What the worker made.

    Args:
        number: the image's result.
        plain: the plain image's result, if there is one.
    """

    number: int
    plain: int | None = None


class Worker:
    """Makes images; only the thread of the jobs calls it.

    Args:
        models: gives the model.
        store: keeps the results.
        checkpointing: less memory for more work, as in :func:`t2ictl.controlled`.
    """

    def __init__(self, models: ModelManager, store: ResultStore, checkpointing: Checkpointing = "off") -> None:
        self._models, self._store, self._checkpointing = models, store, checkpointing
        self._colors: tuple[str, LatentColors] | None = None

    def __call__(self, job: Job) -> JobResult:
        """Do a job.

        Args:
            job: its request is an :class:`JobRequest`.

        Returns:
            What was made; it is in ``job.result`` already while the plain image is being made.

        Raises:
            Cancelled: if the job was.
            BadSetting: if something cannot be done, or memory ran out.
        """
        wanted: JobRequest = job.request
        job.tell("loading")
        pipe = self._models.use(wanted.model)
        plain = self._store.plain(job.session, wanted.plain_key)
        if plain is not None and not wanted.controls:
            job.result = JobResult(number=self._keep_listed(job.session, plain))
            return job.result
        result = self._image(job, pipe, wanted, wanted.controls, "")
        job.result = JobResult(number=result.number)
        if wanted.controls and wanted.compare:
            plain = plain or self._image(job, pipe, wanted, (), "plain image to compare with")
            self._store.compare(job.session, result.number, plain.number)
            job.result = JobResult(number=result.number, plain=plain.number)
        return job.result

    def _keep_listed(self, session: str, plain: Result) -> int:
        """A plain image that was made to compare with, and is now asked for itself."""
        return self._store.list_it(session, plain.number).number

    def _image(self, job: Job, pipe: Any, wanted: JobRequest, controls: Sequence[Control], part: str) -> Result:
        job.tell("running", part=part, step=0, steps=wanted.request.steps)
        try:
            made = self._generate(job, pipe, wanted.request, controls)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise _out_of_memory(error) from error
        key = "" if controls else wanted.plain_key
        text = str(wanted.request.prompt)
        listed = bool(controls) or not wanted.controls
        details = details_of(made).to_bytes()
        return self._store.add(job.session, made, text, details=details, key=key, is_listed=listed)

    def _generate(self, job: Job, pipe: Any, request: Request, controls: Sequence[Control]) -> Generation:
        colors = self._colors_of(pipe)
        last, seen = None, time.monotonic()

        def on_step(progress: Any) -> bool:
            """Report how far it is, at times with a small image."""
            nonlocal last, seen
            preview = None
            last = progress.latents[0]
            if time.monotonic() - seen >= PREVIEW_SECONDS:
                preview, seen = colors.preview(last), time.monotonic()
            ends = progress.step >= progress.total
            try:
                job.tell("decoding" if ends else "running", step=progress.step, steps=progress.total, preview=preview)
            except Cancelled:
                return False
            return True

        asked = {**_asked(request), "on_step": on_step, "checkpointing": self._checkpointing}
        asked["is_cancelled"] = lambda: job.is_cancelled
        prompt = asked.pop("prompt")
        try:
            made = t2ictl.generate(pipe, prompt, controls, record=Recording(layers=RECORDED, by="size"), **asked)
        except BudgetExceeded:  # a long prompt on a large image: the mean over steps is still worth having
            recording = Recording(layers=RECORDED, by="size", per_step=False)
            made = t2ictl.generate(pipe, prompt, controls, record=recording, **asked)
        if last is not None:
            colors.fit(last, made.image)
        return made

    def _colors_of(self, pipe: Any) -> LatentColors:
        source = str(self._models.loaded)
        if self._colors is None or self._colors[0] != source:
            self._colors = (source, LatentColors.from_pipeline(pipe))
        return self._colors[1]


def _out_of_memory(error: Exception) -> Exception:
    """Memory that ran out, as something to do about; any other error as it is."""
    text = str(error)
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in text:
        return error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return BadSetting(
        "There was not enough memory for this image.",
        "Lower the size first; then start the editor with --checkpointing block, or leave out what moves latents.",
    )

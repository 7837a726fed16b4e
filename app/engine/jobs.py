"""Jobs and the one worker that does them.

A pipeline is not safe for two threads, and a page is run again at every click. So pages put jobs into a queue and
read their state; one thread takes them in turn and is the only one that touches a model.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from t2ictl.errors import BadSetting, Cancelled, T2ictlError

__all__ = ["ENDED", "Job", "JobRunner", "State", "Work"]

State = Literal["queued", "loading", "running", "decoding", "done", "cancelled", "failed"]
#: States that a job does not leave.
ENDED = frozenset({"done", "cancelled", "failed"})
# One at work and two waiting for each session: more is a finger that stayed on the button.
MOST_WAITING = 2
_LOG = logging.getLogger(__name__)
UNEXPECTED = "This is a fault of the program. The terminal that it was started from says more."


@dataclass(eq=False)
class Job:
    """One job: what was asked for, and how far it is. The worker writes it, pages read it.

    Args:
        number: counts up; never used twice.
        session: whose job it is.
        request: what was asked for; nobody changes it.
        state: where it is.
        part: which of its images it is at; empty where there is one.
        step: steps done.
        steps: steps in all; 0 until known.
        preview: bytes of a small image of the way.
        result: what the work gave; what it gave so far, while it is at work or if it was cancelled.
        error: cause and remedy, if it failed.
        began: when it was taken from the queue (seconds of a clock that only counts up), or None.
        ended: when it ended, or None.
    """

    number: int
    session: str
    request: Any
    state: State = "queued"
    part: str = ""
    step: int = 0
    steps: int = 0
    preview: bytes | None = None
    result: Any = None
    error: tuple[str, str] | None = None
    began: float | None = None
    ended: float | None = None
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def is_live(self) -> bool:
        """Whether it waits or is at work."""
        return self.state not in ENDED

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the steps done so far; None before the first one."""
        if self.began is None or not self.step or not self.steps or self.state != "running":
            return None
        return (time.monotonic() - self.began) / self.step * (self.steps - self.step)

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has asked to end it."""
        return self._stop.is_set()

    def tell(
        self, state: State | None = None, *, part: str | None = None, step: int | None = None, steps: int | None = None,
        preview: bytes | None = None,
    ) -> None:  # fmt: skip
        """Report how far it is; called by the work, at every step.

        Args:
            state: what it does now.
            part: which of its images it is at.
            step: steps done.
            steps: steps in all.
            preview: bytes of a small image.

        Raises:
            Cancelled: if somebody has asked to end it. The work lets this through.
        """
        if self.is_cancelled:
            raise Cancelled("The job was cancelled.")
        self.state = state or self.state
        self.part = self.part if part is None else part
        self.step = self.step if step is None else step
        self.steps = self.steps if steps is None else steps
        self.preview = preview or self.preview


#: Does a job and gives its result; it calls :meth:`Job.tell` at every step.
Work = Callable[[Job], Any]


class JobRunner:
    """A queue and the thread that works through it.

    Args:
        work: does one job.

    Example:
        >>> runner = JobRunner(lambda job: job.request + 1)
        >>> job = runner.submit("me", 41)
        >>> runner.wait(job, 10), job.state, job.result
        (True, 'done', 42)
        >>> runner.close()
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._queue: list[Job] = []
        self._current: Job | None = None
        self._closed = False
        # A daemon: a page that hangs in a driver call must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="t2ictl-worker", daemon=True)
        self._thread.start()

    def submit(self, session: str, request: Any) -> Job:
        """Put a job at the end of the queue.

        Args:
            session: whose job it is.
            request: what is asked for.

        Returns:
            The job.

        Raises:
            BadSetting: if the session has too many jobs already, or the runner was closed.
        """
        with self._changed:
            if self._closed:
                raise BadSetting("The editor is shutting down.", "Start it again.")
            if sum(job.session == session for job in self._queue) >= MOST_WAITING:
                raise BadSetting(
                    f"{MOST_WAITING} of your images are waiting already.", "Wait for one of them, or cancel it."
                )
            job = Job(number=next(self._numbers), session=session, request=request)
            self._queue.append(job)
            self._changed.notify_all()
            return job

    def position(self, job: Job) -> int | None:
        """Count the jobs that come before one.

        Args:
            job: the job.

        Returns:
            0 if it is at work, the number of jobs before it if it waits, None if it has ended.
        """
        with self._changed:
            if job is self._current:
                return 0
            return self._queue.index(job) + (self._current is not None) if job in self._queue else None

    def load(self) -> tuple[int, int]:
        """Count the jobs at work and those that wait.

        Returns:
            How many jobs are at work (0 or 1), and how many wait.
        """
        with self._changed:
            return int(self._current is not None), len(self._queue)

    def cancel(self, job: Job) -> None:
        """End a job: one that waits at once, one that is at work at its next step. One that has ended stays as it is.

        Args:
            job: the job.
        """
        with self._changed:
            job._stop.set()
            if job in self._queue:
                self._queue.remove(job)
                self._end(job, "cancelled")

    def drop(self, session: str) -> None:
        """End all jobs of a session that is gone.

        Args:
            session: whose.
        """
        with self._changed:
            own = [job for job in (*self._queue, self._current) if job is not None and job.session == session]
            for job in own:
                self.cancel(job)

    def wait(self, job: Job, seconds: float) -> bool:
        """Wait for a job to end. Pages do not: they look again later.

        Args:
            job: the job.
            seconds: how long at most.

        Returns:
            Whether it has ended.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not job.is_live, timeout=seconds)

    def close(self) -> None:
        """Cancel everything and end the worker at its next step."""
        with self._changed:
            self._closed = True
            for job in [*self._queue, *([self._current] if self._current else [])]:
                self.cancel(job)
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            state: State = "done"
            try:
                job.result = self._work(job)
            except Cancelled:
                state = "cancelled"
            except T2ictlError as error:
                state, job.error = "failed", (error.cause, error.remedy)
            except Exception as error:  # the worker outlives what one job does wrong; its page says so
                _LOG.exception("Job %d failed.", job.number)
                state, job.error = "failed", (f"{type(error).__name__}: {error}", UNEXPECTED)
            with self._changed:
                self._current = None
                self._end(job, state)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return None
            self._current = job = self._queue.pop(0)
            job.state, job.began = "running", time.monotonic()
            return job

    def _end(self, job: Job, state: State) -> None:
        """Whoever sees a job ended sees its result too: the state is written last. Called with the lock held."""
        job.ended = time.monotonic()
        job.preview = None
        job.state = state
        self._changed.notify_all()

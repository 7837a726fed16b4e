"""The queue: order, cancel, failure, sessions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import t2ictl
from t2ictl.app.engine.jobs import ENDED, Job, JobRunner
from t2ictl.errors import BadSetting, Cancelled

SECONDS = 60


class Steps:
    """Work that takes one step whenever the test lets it."""

    def __init__(self) -> None:
        self.may_step = threading.Semaphore(0)
        self.stepped = threading.Semaphore(0)
        self.order: list[Any] = []

    def __call__(self, job: Job) -> str:
        self.order.append(job.request)
        for step in range(1, 4):
            assert self.may_step.acquire(timeout=SECONDS)
            job.tell(step=step, steps=3, preview=b"small")
            self.stepped.release()
        return f"image of {job.request}"

    def let(self, steps: int) -> None:
        for _ in range(steps):
            self.may_step.release()

    def step(self) -> None:
        self.let(1)
        assert self.stepped.acquire(timeout=SECONDS)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def runner(steps: Steps) -> Iterator[JobRunner]:
    made = JobRunner(steps)
    yield made
    steps.let(100)
    made.close()
    assert not made._thread.is_alive()


def test_jobs_are_done_in_their_order_and_say_how_far_they_are(runner: JobRunner, steps: Steps) -> None:
    first, second = runner.submit("a", "cat"), runner.submit("b", "dog")
    steps.step()
    assert (first.state, first.step, first.steps, first.preview) == ("running", 1, 3, b"small")
    assert first.seconds_left is not None and first.seconds_left > 0
    assert (runner.position(first), runner.position(second), second.state) == (0, 1, "queued")
    steps.let(5)
    assert runner.wait(second, SECONDS)
    assert (first.result, second.result) == ("image of cat", "image of dog")
    assert steps.order == ["cat", "dog"] and first.preview is None and runner.position(first) is None
    assert first.number < second.number


def test_cancel_at_work_answers_within_one_step_and_the_next_job_goes_on(runner: JobRunner, steps: Steps) -> None:
    first, second = runner.submit("a", "cat"), runner.submit("a", "dog")
    steps.step()
    runner.cancel(first)
    steps.let(1)
    assert runner.wait(first, SECONDS)
    assert (first.state, first.step, first.result) == ("cancelled", 1, None)
    steps.let(3)
    assert runner.wait(second, SECONDS) and second.state == "done"
    runner.cancel(second)  # too late: what is there stays
    assert (second.state, second.result) == ("done", "image of dog")


def test_cancel_of_a_waiting_job_is_at_once_and_nobody_elses(runner: JobRunner, steps: Steps) -> None:
    running, mine, other = runner.submit("a", "cat"), runner.submit("a", "dog"), runner.submit("b", "owl")
    steps.step()
    runner.cancel(mine)
    assert (mine.state, runner.position(other)) == ("cancelled", 1)
    steps.let(5)
    assert runner.wait(other, SECONDS)
    assert steps.order == ["cat", "owl"] and running.state == other.state == "done"


def test_a_session_has_one_job_at_work_and_two_waiting(runner: JobRunner, steps: Steps) -> None:
    runner.submit("a", 1)
    steps.step()
    runner.submit("a", 2), runner.submit("a", 3)
    with pytest.raises(BadSetting, match="2 of your images are waiting"):
        runner.submit("a", 4)
    runner.submit("b", 5)  # another session is not hindered


def test_a_closed_tab_leaves_no_job_behind(runner: JobRunner, steps: Steps) -> None:
    jobs = [runner.submit("gone", number) for number in (1, 2)]
    stays = runner.submit("here", 3)
    steps.step()
    runner.drop("gone")
    steps.let(4)
    assert runner.wait(stays, SECONDS)
    assert [job.state for job in jobs] == ["cancelled", "cancelled"] and stays.state == "done"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadSetting("There is no word 'cat'.", "Use a word of the prompt."), "There is no word 'cat'."),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    ],
)
def test_the_worker_outlives_a_failed_job(error: Exception, said: str, caplog: pytest.LogCaptureFixture) -> None:
    def work(job: Job) -> int:
        if job.request == "bad":
            raise error
        return 7

    runner = JobRunner(work)
    bad, good = runner.submit("a", "bad"), runner.submit("a", "good")
    assert runner.wait(good, SECONDS)
    assert bad.state == "failed" and bad.error is not None and bad.error[0] == said and bad.error[1]
    assert (good.state, good.result) == ("done", 7)
    runner.close()
    # What nobody expected is in the terminal with its traceback, as the page says; a named error needs none.
    assert [record.exc_info is not None for record in caplog.records] == [True] * isinstance(error, RuntimeError)


def test_closing_ends_what_waits_and_what_is_at_work(steps: Steps) -> None:
    runner = JobRunner(steps)
    jobs = [runner.submit("a", number) for number in (1, 2)]
    steps.step()
    threading.Timer(0.05, steps.let, (1,)).start()
    runner.close()
    assert {job.state for job in jobs} == {"cancelled"} and not runner._thread.is_alive()
    with pytest.raises(BadSetting, match="shutting down"):
        runner.submit("a", 3)


def test_states_of_jobs_that_ended_are_final() -> None:
    job = Job(number=1, session="a", request=None)
    assert job.is_live and job.seconds_left is None
    job._stop.set()
    with pytest.raises(Cancelled):
        job.tell("running", step=5)
    assert job.step == 0 and not any(state in ENDED for state in ("queued", "loading", "running", "decoding"))


def test_a_real_generation_is_cancelled_within_one_step_and_the_pipeline_serves_the_next() -> None:
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    seen: list[int] = []

    def work(job: Job) -> Any:
        def on_step(progress: Any) -> None:
            seen.append(progress.step)
            job.tell(step=progress.step, steps=progress.total)
            if job.request == "cancelled" and progress.step == 2:
                queue.cancel(job)

        return t2ictl.generate(pipe, "a red circle and a blue square", seed=1, steps=4, on_step=on_step)

    plain = t2ictl.generate(pipe, "a red circle and a blue square", seed=1, steps=4).image
    queue = JobRunner(work)
    cancelled, whole = queue.submit("a", "cancelled"), queue.submit("a", "whole")
    assert queue.wait(whole, SECONDS)
    assert (cancelled.state, seen) == ("cancelled", [1, 2, 3, 1, 2, 3, 4])
    assert whole.state == "done" and whole.result.image.tobytes() == plain.tobytes()
    queue.close()

"""What a page holds: results are taken once, and none is lost between two looks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from t2ictl.app.engine.jobs import Job
from t2ictl.app.state import Page


class EndsWhileItIsCollected(Job):
    """A job whose work ends right after a page has asked whether it goes on."""

    @property
    def is_live(self) -> bool:
        was = self.state == "running"
        if was:
            self.finish()
        return was

    def finish(self) -> None:
        self.result, self.state = SimpleNamespace(number=7), "done"


class FailsWhileItIsCollected(EndsWhileItIsCollected):
    def finish(self) -> None:
        self.error, self.state = ("No memory.", "Lower the size."), "failed"


def job(kind: type[Job] = Job, **fields: Any) -> Job:
    return kind(number=3, session="me", request=None, **fields)


def test_an_image_of_a_job_that_ends_while_it_is_collected_is_not_lost() -> None:
    page = Page(jobs=[job(EndsWhileItIsCollected, state="running")])
    page.collect()
    page.collect()
    assert page.shown == 7 and not page.jobs and not page.notes


def test_an_error_of_a_job_that_fails_while_it_is_collected_is_said_once() -> None:
    page = Page(jobs=[job(FailsWhileItIsCollected, state="running")])
    page.collect()
    page.collect()
    page.collect()
    assert [kind for kind, _ in page.notes] == ["error"] and "No memory" in page.notes[0][1] and not page.jobs


def test_the_controlled_image_is_shown_while_the_plain_one_is_made_and_once() -> None:
    at_work = job(state="running", result=SimpleNamespace(number=4))
    page = Page(jobs=[at_work])
    page.collect()
    assert page.shown == 4 and page.jobs == [at_work]
    page.shown = 1  # the user opened another one meanwhile
    page.collect()
    assert page.shown == 1
    at_work.state = "cancelled"
    page.collect()
    assert page.shown == 1 and not page.jobs and "plain image was cancelled" in page.notes[0][1]

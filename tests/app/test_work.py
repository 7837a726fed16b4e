"""The worker with real images: controlled first, the plain one kept, progress, previews, cancel, failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import t2ictl
from t2ictl import Generation, Recording, Request
from t2ictl.app.engine import work
from t2ictl.app.engine.editor import FORGOTTEN, Editor, SessionHandle
from t2ictl.app.engine.jobs import Job
from t2ictl.app.engine.work import JobRequest
from t2ictl.errors import BadSetting, NotRecorded
from t2ictl.guidance.rules import Refinement
from t2ictl.processors import AttendAndExcite, StructuredGuidance

PROMPT = "a red circle and a blue square"


@pytest.fixture
def editor(tmp_path: Path) -> Iterator[Editor]:
    made = Editor(folder=tmp_path, device="cpu", grace=0)
    yield made
    made.close()


def job_request(*controls: Any, steps: int = 2, **more: Any) -> JobRequest:
    compare = more.pop("compare", True)
    return JobRequest(
        model="shapes", request=Request(prompt=PROMPT, seed=5, steps=steps, **more), controls=controls, compare=compare
    )


def done(editor: Editor, asked: JobRequest, session: str = "me") -> Job:
    job = editor.submit(session, asked)
    assert editor.runner.wait(job, 120) and job.state == "done", job.error
    return job


def pixels(editor: Editor, number: int, session: str = "me") -> bytes:
    with Image.open(editor.store.find(session, number).path) as image:
        return image.tobytes()


def test_both_images_are_those_of_the_library(editor: Editor) -> None:
    control = AttendAndExcite(refinement=None)
    job = done(editor, job_request(control))
    pipe = t2ictl.load("shapes", device="cpu")
    for number, controls in ((job.result.number, [control]), (job.result.plain, [])):
        expected = t2ictl.generate(pipe, PROMPT, controls, seed=5, steps=2)
        assert pixels(editor, number) == expected.image.tobytes()
    result = editor.store.find("me", job.result.number)
    assert result.plain == job.result.plain and editor.store.results("me") == [result]
    assert t2ictl.replay(pipe, result.path).image.tobytes() == pixels(editor, result.number)
    details = editor.details(result)
    assert details.record is not None and details.record.single_steps == 2 and details.losses
    plain = editor.details(editor.store.find("me", job.result.plain))
    assert plain.record is not None and plain.losses == ()


def test_checkpointing_is_of_the_editor_and_leaves_images_as_they_are(
    editor: Editor, tmp_path: Path, ways: list[str]
) -> None:
    asked = job_request(AttendAndExcite(refinement=None), compare=False)
    usual = done(editor, asked).result.number
    assert set(ways) == {"off"}
    ways.clear()
    short = Editor(folder=tmp_path / "short", device="cpu", grace=0, checkpointing="all")
    try:
        assert pixels(short, done(short, asked).result.number) == pixels(editor, usual)
        assert set(ways) == {"all"} and short.estimate(asked, 2).work < editor.estimate(asked, 2).work
    finally:
        short.close()


def test_another_control_uses_the_plain_image_again(editor: Editor) -> None:
    first = done(editor, job_request(AttendAndExcite(refinement=None)))
    second = done(editor, job_request(StructuredGuidance()))
    assert second.result.plain == first.result.plain and second.result.number != first.result.number
    other_seed = done(editor, job_request(StructuredGuidance(), guidance_scale=3.0))
    assert other_seed.result.plain != first.result.plain
    mine = done(editor, job_request(StructuredGuidance()), session="you")
    assert mine.result.plain not in (first.result.plain, other_seed.result.plain)


def test_the_plain_image_itself_is_not_made_twice(editor: Editor) -> None:
    plain = done(editor, job_request(AttendAndExcite(refinement=None))).result.plain
    again = done(editor, job_request())
    assert again.result.number == plain and again.result.plain is None
    assert [each.number for each in editor.store.results("me")][0] == plain


def test_without_compare_there_is_no_plain_image(editor: Editor) -> None:
    job = done(editor, job_request(StructuredGuidance(), compare=False))
    assert job.result.plain is None and editor.store.find("me", job.result.number).plain is None


def test_cancelled_during_the_plain_image_the_controlled_one_is_kept(editor: Editor) -> None:
    job = editor.submit("me", job_request(StructuredGuidance(), steps=60))
    until = time.monotonic() + 120
    while job.result is None and time.monotonic() < until:
        time.sleep(0.01)
    editor.runner.cancel(job)
    assert editor.runner.wait(job, 60) and job.state == "cancelled"
    assert [each.number for each in editor.store.results("me")] == [job.result.number]
    assert editor.details(editor.store.results("me")[0]).record is not None


def test_cancel_answers_within_a_step_and_leaves_the_model_usable(editor: Editor) -> None:
    done(editor, job_request())
    job = editor.submit("me", job_request(steps=150))
    until = time.monotonic() + 60
    while not job.step and time.monotonic() < until:
        time.sleep(0.005)
    seen = job.step
    editor.runner.cancel(job)
    assert editor.runner.wait(job, 30) and job.state == "cancelled" and job.result is None
    assert seen <= job.step <= seen + 3 < 150
    assert done(editor, job_request(StructuredGuidance())).state == "done"


def test_previews_come_on_the_way(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PREVIEW_SECONDS", 0.0)
    seen: list[dict[str, Any]] = []
    tell = Job.tell

    def spy(job: Job, *args: Any, **more: Any) -> None:
        seen.append(more)
        tell(job, *args, **more)

    monkeypatch.setattr(Job, "tell", spy)
    done(editor, job_request(steps=3))
    previews = [each["preview"] for each in seen if each.get("preview")]
    assert len(previews) == 3 and all(each.startswith(b"\xff\xd8") and len(each) < 10_000 for each in previews)
    assert [(each["step"], each["steps"]) for each in seen if each.get("step")] == [(1, 3), (2, 3), (3, 3)]


def test_a_word_that_is_not_there_is_said_and_the_worker_goes_on(editor: Editor) -> None:
    job = editor.submit("me", job_request(AttendAndExcite(concepts=("dog",))))
    assert editor.runner.wait(job, 60) and job.state == "failed"
    assert job.error is not None and "dog" in job.error[0]
    assert done(editor, job_request()).state == "done" and len(editor.store.results("me")) == 1


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_names_the_first_thing_to_lower(
    editor: Editor, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(t2ictl, "generate", full, raising=False)
        job = editor.submit("me", job_request())
        assert editor.runner.wait(job, 60)
    assert job.state == "failed" and job.error is not None and "Lower the size first" in job.error[1]
    assert done(editor, job_request()).state == "done"


def test_another_runtime_error_stays_itself(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(t2ictl, "generate", broken, raising=False)
    job = editor.submit("me", job_request())
    assert editor.runner.wait(job, 60) and job.error is not None and "shapes do not fit" in job.error[0]


def test_maps_that_are_too_large_by_step_are_kept_as_their_mean(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = t2ictl.generate

    def tight(*given: Any, record: Recording, **asked: Any) -> Generation:
        return generate(*given, record=replace(record, budget_mb=0.05) if record.per_step else record, **asked)

    monkeypatch.setattr(t2ictl, "generate", tight, raising=False)
    job = done(editor, job_request(steps=6))
    record = editor.details(editor.store.find("me", job.result.number)).record
    assert record is not None and record.steps == 6 and record.single_steps == 0


def test_a_session_that_leaves_takes_its_jobs_and_results_along(editor: Editor) -> None:
    mine, other = SessionHandle(editor, "me"), SessionHandle(editor, "you")
    kept = done(editor, job_request(), other.session)
    done(editor, job_request(), mine.session)
    running, waiting = (editor.submit(mine.session, job_request(steps=150)) for _ in range(2))
    mine.leave()
    assert editor.runner.wait(running, 60) and editor.runner.wait(waiting, 60)
    assert {running.state, waiting.state} == {"cancelled"} and editor.runner.load() == (0, 0)
    assert editor.store.results(mine.session) == []
    assert editor.store.find(other.session, kept.result.number).path.is_file()


def test_a_session_ends_with_its_last_tab(editor: Editor) -> None:
    first, again = SessionHandle(editor, "me"), SessionHandle(editor, "me")  # a page that was loaded again
    made = done(editor, job_request())
    editor.pages["me"] = object()
    first.leave()
    assert editor.store.find("me", made.result.number) and "me" in editor.pages
    again.leave()
    assert editor.store.results("me") == [] and "me" not in editor.pages


def test_a_session_that_is_opened_again_in_time_stays(tmp_path: Path) -> None:
    editor = Editor(folder=tmp_path, device="cpu", grace=0.5, work=lambda job: None)
    try:
        for name in ("again", "gone"):
            editor.pages[name] = object()
            SessionHandle(editor, name).leave()
        SessionHandle(editor, "again")
        until = time.monotonic() + 20
        while "gone" in editor.pages and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        assert set(editor.pages) == {"again"}
    finally:
        editor.close()


def test_a_tab_that_was_left_open_for_days_keeps_its_images(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    SessionHandle(editor, "me"), SessionHandle(editor, "other")
    mine, others = (done(editor, job_request(), name).result.number for name in ("me", "other"))
    done(editor, job_request(), "nobody")
    now = time.time()
    monkeypatch.setattr(editor.store, "_clock", lambda: now + 3 * FORGOTTEN)
    new = done(editor, job_request(steps=3)).result.number
    assert {each.number for each in editor.store.results("me")} == {mine, new}
    assert editor.store.find("other", others).path.is_file()
    assert editor.store.results("nobody") == []


def test_cancel_is_heard_in_a_refinement_of_a_stranger(editor: Editor) -> None:
    endless = Refinement(thresholds=((0.0, 1.0),), max_iterations=1000)
    job = editor.submit("me", job_request(AttendAndExcite(refinement=endless)))
    until = time.monotonic() + 60
    while job.state != "running" and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    editor.runner.cancel(job)
    assert editor.runner.wait(job, 5) and job.state == "cancelled" and job.step == 0


def test_details_of_a_result_that_is_gone_are_an_error_and_not_a_crash(editor: Editor) -> None:
    result = editor.store.find("me", done(editor, job_request()).result.number)
    editor.store.delete("me", result.number)
    with pytest.raises(NotRecorded):
        editor.details(result)


def test_a_model_that_may_not_be_used_is_refused_before_it_waits(editor: Editor) -> None:
    with pytest.raises(BadSetting, match="no model"):
        editor.submit("me", JobRequest(model="/etc", request=Request(prompt="a cat")))
    assert editor.runner.load() == (0, 0)

"""Image: the stage with its ways to compare, the download, and how far the work is."""

from __future__ import annotations

import base64

import streamlit as st

import t2ictl
from t2ictl.app.components.stage import Pane, stage
from t2ictl.app.engine.details import Details
from t2ictl.app.engine.editor import SessionHandle
from t2ictl.app.engine.jobs import Job
from t2ictl.app.engine.store import Result
from t2ictl.app.images import LEGEND, PIXELATED, data_uri, difference_uri, image_size, image_uri
from t2ictl.app.settings import from_settings, to_settings
from t2ictl.app.state import Page
from t2ictl.app.views.inspect import MapChoice
from t2ictl.app.views.shown import Shown

__all__ = ["image_panel", "progress"]

MODES = {"one": "Image", "side": "Side by side", "slider": "Slider", "flick": "Flick", "difference": "Difference"}
#: How often the page looks how far the work is (seconds).
LOOK_AGAIN = 0.5


def progress(page: Page, handle: SessionHandle) -> None:
    """Show the jobs of this session that are not done, each with a button that cancels it.

    Args:
        page: of this session.
        handle: of this session.
    """
    live = [job for job in page.jobs if job.is_live]
    if not live:
        return

    @st.fragment(run_every=LOOK_AGAIN)
    def watch() -> None:
        if any(not job.is_live or _has_news(page, job) for job in live):
            st.rerun()  # what was made is collected at the top of the page, and this stops looking
        for job in live:
            _job(job, handle)

    watch()


def _has_news(page: Page, job: Job) -> bool:
    return job.result is not None and job.result.number != page.shown and job.number not in page.collected


def _job(job: Job, handle: SessionHandle) -> None:
    before = handle.editor.runner.position(job) or 0
    words = {
        "queued": f"Waiting, {before} before it",
        "loading": "Loading the model",
        "running": f"Step {job.step} of {job.steps}",
        "decoding": "Decoding",
    }
    left = job.seconds_left
    text = words.get(job.state, "Ending") + (f", {job.part}" if job.part else "")
    text += f", about {left:.0f} s left" if left is not None and left >= 1 else ""
    with st.container(border=True):
        preview, bar, cancel = st.columns([1, 5, 2], vertical_alignment="center")
        if job.preview:
            # Inside of the page: a file of its own may be replaced by the next one before the browser asks for it.
            address = "data:image/jpeg;base64," + base64.b64encode(job.preview).decode()
            preview.image(address, width=64, alt="A rough preview of the image on its way")
        bar.progress(job.step / job.steps if job.steps else 0.0, text="Cancelling" if job.is_cancelled else text)
        cancel.button(
            "Cancel", key=f"cancel/{job.number}", on_click=handle.editor.runner.cancel, args=(job,), width="stretch",
            disabled=job.is_cancelled,
        )  # fmt: skip


def image_panel(page: Page, handle: SessionHandle, shown: Shown | None, look: MapChoice) -> None:
    """Show the stage.

    Args:
        page: of this session.
        handle: of this session.
        shown: what is on it.
        look: which map lies over it.
    """
    st.markdown("##### Image")
    progress(page, handle)
    if shown is None:
        if not any(job.is_live for job in page.jobs):
            with st.container(border=True):
                st.markdown("**Nothing here yet.** An example is filled in at the left: press **Generate**.")
        return
    modes = ["one"] if shown.plain is None else list(MODES)
    mode = st.segmented_control(
        "View", modes, default="one" if shown.plain is None else "side", format_func=MODES.__getitem__, required=True,
        key=f"mode/{shown.plain is not None}", label_visibility="collapsed",
    )  # fmt: skip
    _stage(page, shown, look, mode or "one")
    if shown.plain is None and _has_controls(shown):
        st.caption("There is no plain image to compare with. Tick the box above **Generate** and make it again.")
    _below(shown)


def _has_controls(shown: Shown) -> bool:
    return not shown.result.key


def _stage(page: Page, shown: Shown, look: MapChoice, mode: str) -> None:
    width, height = image_size(shown.result.path)
    label = "controlled" if _has_controls(shown) else "plain"
    panes = [_pane(shown.result, shown.details, look, label, 0)]
    if shown.plain is not None and shown.plain_details is not None:
        panes.append(_pane(shown.plain, shown.plain_details, look, "plain", 1))
        if mode == "difference":
            src = difference_uri(shown.result.path, shown.plain.path)
            panes = [Pane(src=src, alt="Where the two images differ", label="difference", note="black: equal")]
    if look.top and mode != "difference":
        peak = f"up to {look.top:.3f}"
        st.html(
            f"<div style='display:flex;gap:.5rem;align-items:center;font-size:.85rem'><span>0</span>"
            f"<div role='img' aria-label='Scale of the heat map, dark to bright' "
            f"style='flex:1;height:.6rem;border-radius:3px;background:{LEGEND}'></div><span>{peak}</span></div>"
        )
    point = stage(
        panes if mode != "one" else panes[:1], mode="one" if mode == "difference" else mode, aspect=width / height,
        opacity=look.opacity, point=page.point, pixelated=max(width, height) <= PIXELATED, key="stage",
        on_point=lambda: None,
    )  # fmt: skip
    if point is not None and dict(point) != page.seen_point:
        page.seen_point = dict(point)
        page.point = dict(point)
        st.rerun()  # the ranked words stand in another column, which was drawn already


def _pane(result: Result, details: Details, look: MapChoice, label: str, which: int) -> Pane:
    alt = f"The {label} image of “{result.prompt}”."
    heat, note = "", ""
    record = details.record
    if look.word and record is not None and look.word in record.names():
        heat = data_uri(record.plot(look.word, top=look.top or None, **record.nearest(look.block, look.step)))
        note = f"{look.word}: peak {record.peak([look.word], look.block, look.step):.3f}"
    return Pane(src=image_uri(result.path), alt=alt, label=label, note=note, heat=heat, which=which)


def _below(shown: Shown) -> None:
    settings = t2ictl.read_settings(shown.result.path)
    seed, cost = settings["request"]["seed"], shown.details.cost
    st.caption(
        f"Seed {seed} · {cost['forwards'] + cost['extra_forwards']} forward and {cost['backwards']} backward rows · "
        f"{cost['seconds']:.1f} s"
    )
    png, as_json = st.columns(2)
    name = f"t2ictl-{seed}-{shown.result.number}"
    png.download_button(
        "Download PNG", shown.result.path.read_bytes(), f"{name}.png", "image/png", on_click="ignore", width="stretch",
        help="The file itself, with its settings inside", key="download-png",
    )  # fmt: skip
    as_json.download_button(
        "Download settings", to_settings(from_settings(settings)), f"{name}.json", "application/json",
        on_click="ignore", width="stretch", help="JSON; `t2ictl generate --from` reads it too", key="download-json",
    )  # fmt: skip

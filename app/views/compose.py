"""Compose: prompt, chips, seed, controls, and the one button."""

from __future__ import annotations

import re
from typing import Any

import streamlit as st

import t2ictl
from t2ictl.app.engine.editor import SessionHandle
from t2ictl.app.engine.reading import ReadPrompt, ReadWord
from t2ictl.app.forms import control_form
from t2ictl.app.settings import LIMITS, LONGEST_PROMPT, examples, presets, starting_fields, what_changed
from t2ictl.app.state import Page, new_seed
from t2ictl.app.text import plain
from t2ictl.app.views.sidebar import estimate_line
from t2ictl.errors import T2ictlError

__all__ = ["compose", "example_choice"]

_COLORS = {"object": ":blue[**{}**]", "attribute": ":violet[*{}*]", "word": "{}"}


def compose(page: Page, handle: SessionHandle) -> None:
    """Show everything that makes the next image, and the button that asks for it.

    Args:
        page: of this session.
        handle: of this session.
    """
    st.markdown("##### Compose")
    draft = page.draft
    draft.prompt = st.text_area(
        "Prompt", value=draft.prompt, key=page.key("prompt"), height=80, max_chars=LONGEST_PROMPT,
        placeholder="a red circle and a blue square",
    )  # fmt: skip
    read = _chips(page, handle)
    _seed(page)
    button = st.container(gap="small")  # high on the page, and filled last: it takes what all the others say
    problems = _controls(page)
    _more(page, read)
    with button:
        _generate(page, handle, read, problems)


def example_choice(page: Page, handle: SessionHandle) -> None:
    """Offer the examples; each fills in prompt, seed and controls.

    Args:
        page: of this session.
        handle: of this session.
    """
    with st.popover("Examples", width="stretch"):
        st.caption("Each makes an image and the plain one of the same seed.")
        for example in examples():
            st.button(
                f"**{plain(example.name)}**: {plain(example.about)}", key=f"example/{example.name}", width="stretch",
                on_click=_take_example, args=(page, handle, example),
            )  # fmt: skip


def _take_example(page: Page, handle: SessionHandle, example: Any) -> None:
    page.remember()
    page.draft.take(example.recipe, handle.editor)


def _chips(page: Page, handle: SessionHandle) -> ReadPrompt | None:
    """The words of the prompt; what was chosen is kept by word and occurrence, so an edit elsewhere moves nothing."""
    draft = page.draft
    if not draft.prompt.strip():
        st.caption("Describe the image; the words of the prompt appear here.")
        return None
    try:
        read = handle.editor.read(draft.model, draft.prompt)
    except T2ictlError as error:
        st.error(plain(str(error), 500))
        return None
    words = [word for word in read.words if word.tokens]
    phrases = [name for name, _ in read.objects if name not in {word.name for word in words}]
    options = [word.name for word in words] + phrases
    lost = [word for word in draft.words if word not in options]
    labels = {word.name: _label(word) for word in words} | {
        name: _COLORS["object"].format(plain(name)) for name in phrases
    }
    chosen = st.pills(
        "Words to steer", options, selection_mode="multi", format_func=lambda name: labels.get(name, plain(name)),
        default=[word for word in draft.words if word in options], key=page.key(f"words/{draft.prompt}"), wrap=True,
        help="None chosen: every object of the prompt. **Objects** are bold, *what describes them* is italic; "
        "a number says of how many tokens a word is made.",
    )  # fmt: skip
    draft.words = list(chosen or ())
    if lost:
        st.caption(f"Not in the prompt any more, and not steered: {plain(', '.join(lost))}")
    if read.cut:
        st.warning(f"The model does not read all of it: cut off from “{plain(read.cut)}” on.")
    return read


def _label(word: ReadWord) -> str:
    count = f" {word.tokens}" if word.tokens > 1 else ""
    return _COLORS[word.role].format(plain(word.text)) + count


def _tokens(read: ReadPrompt) -> None:
    with st.popover("Tokens of the prompt"):
        rows = [
            {"position": each.position, "token": each.text, "word": each.word or f"({each.kind})"}
            for each in read.tokens
        ]
        st.dataframe(rows, hide_index=True, height=300)
        st.caption("The first text encoder's row; what follows the end is padding.")


def _seed(page: Page) -> None:
    draft = page.draft
    number, dice, lock = st.columns([5, 2, 4], vertical_alignment="bottom", gap="small")
    low, high = (int(limit) for limit in LIMITS["seed"])
    with number:
        draft.seed = st.number_input("Seed", low, high, value=draft.seed, step=1, key=page.key("seed"))
    with dice:
        st.button(
            "",
            icon=":material/casino:",
            key="dice",
            help="Another seed. With “Keep it” off, every image has a new one.",
            on_click=_roll,
            args=(page,),
        )
    with lock:
        draft.is_locked = st.toggle("Keep it", value=draft.is_locked, key=page.key("lock"))


def _roll(page: Page) -> None:
    page.draft.seed = new_seed()
    page.draft.version += 1


def _more(page: Page, read: ReadPrompt | None) -> None:
    draft = page.draft
    with st.expander("Steps, guidance, size, tokens"):
        left, right = st.columns(2)
        with left:
            low, high = (int(limit) for limit in LIMITS["steps"])
            draft.steps = st.number_input("Steps", low, high, value=draft.steps, step=1, key=page.key("steps"))
            draft.width = _side(page, "Width", draft.width)
        with right:
            low_, high_ = LIMITS["guidance_scale"]
            draft.guidance = st.number_input(
                "Guidance", low_, high_, value=float(draft.guidance), step=0.5, format="%g", key=page.key("guidance")
            )
            draft.height = _side(page, "Height", draft.height)
        draft.negative = st.text_input(
            "Negative prompt", value=draft.negative, key=page.key("negative"), max_chars=LONGEST_PROMPT
        )
        if read is not None:
            _tokens(read)


def _side(page: Page, name: str, value: int | None) -> int | None:
    low, high = (int(limit) for limit in LIMITS[name.lower()])
    found = st.number_input(
        name, low, high, value=value, step=8, key=page.key(name), placeholder="the model's own", help="In pixels"
    )
    return None if found is None else int(found)


def _controls(page: Page) -> list[str]:
    """Which controls, and their forms; gives what cannot be used."""
    draft, known = page.draft, t2ictl.list_controls()
    draft.chosen = st.multiselect(
        "Controls", list(known), default=[name for name in draft.chosen if name in known], key=page.key("controls"),
        format_func=lambda name: name.replace("_", " "), placeholder="none: the plain model",
    )  # fmt: skip
    problems = []
    for name in draft.chosen:
        with st.container(border=True):
            _heading(name, known[name])
            _presets(page, name)
            values = draft.fields.setdefault(name, starting_fields(name, draft.model))
            found = control_form(known[name], values, page.key(name))
            try:
                draft.control(name)
            except T2ictlError as error:
                found.append(str(error))
            for problem in found:
                st.error(plain(problem, 500))
            problems += found
    return problems


def _heading(name: str, cls: Any) -> None:
    paper = re.search(r"arXiv (\d{4}\.\d{4,5})", cls.paper)
    link = f" · [paper](https://arxiv.org/abs/{paper[1]})" if paper else ""
    about = (cls.__doc__ or "").strip().splitlines()[0]
    st.markdown(f"**{name.replace('_', ' ').capitalize()}**{link}", help=f"{plain(about)}\n\n{plain(cls.paper, 400)}")


def _presets(page: Page, name: str) -> None:
    offered = presets(name)
    if not offered:
        return
    columns = st.columns(len(offered))
    for column, preset in zip(columns, offered, strict=True):
        with column:
            st.button(
                preset.name, key=f"preset/{name}/{preset.name}", help=preset.about, width="stretch",
                on_click=_take_preset, args=(page, name, preset.name),
            )  # fmt: skip
    if page.changed.startswith(f"{name}: "):
        text, undo = st.columns([4, 1], vertical_alignment="center")
        text.caption(f"Changed: {page.changed.removeprefix(f'{name}: ') or 'nothing'}")
        undo.button("Undo", key=f"undo/{name}", on_click=page.undo)


def _take_preset(page: Page, name: str, preset: str) -> None:
    """A preset sets fields of its method; prompt, seed and words stay."""
    page.remember()
    before = page.draft.fields.get(name, {})
    after = dict(next(each.settings for each in presets(name) if each.name == preset))
    page.draft.fields[name] = after
    page.changed = f"{name}: {what_changed(before, after)}"
    page.draft.version += 1


def _generate(page: Page, handle: SessionHandle, read: ReadPrompt | None, problems: list[str]) -> None:
    draft = page.draft
    why = "" if read is not None else "Write a prompt first."
    why = "Put right what is marked below." if problems else why
    pressed = st.button(
        "Generate", type="primary", width="stretch", key="generate", disabled=bool(why), help=why or None,
        shortcut="Ctrl+Enter",
    )  # fmt: skip
    draft.compare = st.checkbox(
        "and the plain image of the same seed", value=draft.compare, key=page.key("compare"),
        disabled=not draft.chosen,
        help=None if draft.chosen else "Choose a control first; without one the image itself is plain.",
    )  # fmt: skip
    if why:
        st.caption(why)
        return
    estimate_line(page, handle, len(read.words) if read else 0)
    if pressed:
        _submit(page, handle)


def _submit(page: Page, handle: SessionHandle) -> None:
    draft = page.draft
    page.notes.clear()
    if not draft.is_locked:
        draft.seed = new_seed()
        draft.version += 1
    try:
        page.jobs.append(handle.editor.submit(handle.session, draft.job_request()))
    except T2ictlError as error:
        page.say("error", plain(str(error), 500))
    st.rerun()

"""Inspect: the heat map of a word by step and layers, the words at a position, what shares positions, the losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from t2ictl.app.engine.details import CachedRecord, Details
from t2ictl.app.engine.reading import ReadPrompt
from t2ictl.app.state import Page
from t2ictl.app.text import plain

if TYPE_CHECKING:
    from t2ictl.app.views.shown import Shown

__all__ = ["MapChoice", "inspect"]

#: All blocks of layers together.
ALL = "all"
TABS = {"words": "Words", "overlap": "Overlap", "losses": "Losses"}


@dataclass(frozen=True, kw_only=True)
class MapChoice:
    """Which heat map lies over the image.

    Args:
        word: whose; empty for none.
        block: block of layers; None for all.
        step: from 0; None for the mean over all.
        opacity: in [0, 1].
        top: the value that is shown brightest; 0 if nothing is shown.
    """

    word: str = ""
    block: str | None = None
    step: int | None = None
    opacity: float = 0.7
    top: float = 0.0


def inspect(page: Page, shown: Shown | None, read: ReadPrompt | None) -> MapChoice:
    """Show the attention maps of words, and what they have in common, and the losses.

    Args:
        page: of this session.
        shown: what is on the stage.
        read: its prompt, for the roles of words.

    Returns:
        The map to lay over the image.
    """
    st.markdown("##### Inspect")
    if shown is None or shown.details.record is None:
        with st.container(border=True):
            st.markdown("The heat map of each word appears here, once there is an image.")
        return MapChoice()
    look = _map_choice(shown, shown.details.record, read)
    tab = st.segmented_control(
        "What", list(TABS), default="words", required=True, format_func=TABS.__getitem__, key="tab",
        label_visibility="collapsed",
    )  # fmt: skip
    if tab == "overlap":
        _overlap(shown.details.record, look, read)
    elif tab == "losses":
        _losses(shown.details)
    else:
        _ranked(page, shown, look, read)
    return look


def content_words(record: CachedRecord, read: ReadPrompt | None) -> list[str]:
    """Objects and what describes them; all words where the prompt has neither, or where all are asked for."""
    words, roles = record.names(), {word.name: word.role for word in read.words} if read else {}
    content = [word for word in words if roles.get(word, "word") != "word"]
    return words if st.session_state.get("all-words") else content or words


def _map_choice(shown: Shown, record: CachedRecord, read: ReadPrompt | None) -> MapChoice:
    options = content_words(record, read)
    word = st.pills("Heat map of", options, key=f"word/{shown.result.number}", format_func=plain) or ""
    st.toggle("All words, also “a” and “and”", key="all-words")
    left, right = st.columns(2)
    with left:
        blocks = (ALL, *record.maps)
        name = st.selectbox(
            "Layers", blocks, key=f"block/{blocks}", format_func=lambda each: _layers(record, each),
            help="All layers, or those of one part of the U-Net and one size of map",
        )  # fmt: skip
    with right:
        step = _step(record)
    scale, opacity = st.columns(2)
    with scale:
        stretch = st.toggle(
            "Stretch this word", key="stretch",
            help="Off: one scale for all words, so a weak word looks weak. On: the word's own peak is brightest.",
        )  # fmt: skip
    with opacity:
        strength = st.slider("Opacity", 0.0, 1.0, 0.7, 0.05, key="opacity")
    block = None if name == ALL else name
    top = 0.0
    if word:
        top = max(each.peak([word] if stretch else options, block, step) for each in _both(shown))
        if word in (merged := record.merged()):
            st.caption(f"It was merged into {plain(merged[word])!s}: this is the map of the whole.")
    return MapChoice(word=word, block=block, step=step, opacity=strength, top=top)


def _both(shown: Shown) -> list[CachedRecord]:
    """The image and the plain one have one scale, or they could not be compared."""
    details = (shown.details, shown.plain_details)
    return [each.record for each in details if each is not None and each.record is not None]


def _step(record: CachedRecord) -> int | None:
    if not record.single_steps:
        st.caption("Only the mean over steps was kept: the maps of single steps would have been too large.")
        return None
    steps = record.single_steps
    options = ["mean", *range(1, steps + 1)]
    found = st.select_slider("Step", options, value="mean", key=f"step/{steps}", help="The mean, or one step")
    return None if found == "mean" else int(found) - 1


def _layers(record: CachedRecord, name: str) -> str:
    if name == ALL:
        return "all layers"
    height, width = record.maps[name].shape[-2:]
    return f"{name.partition('@')[0]} {width}×{height}"


def _ranked(page: Page, shown: Shown, look: MapChoice, read: ReadPrompt | None) -> None:
    if page.point is None:
        _position_by_numbers(page)
        return
    is_plain = page.point["pane"] == 1 and shown.plain_details is not None
    details = shown.plain_details if is_plain else shown.details
    if details is None or details.record is None:
        return
    x, y = page.point["x"], page.point["y"]
    position, clear = st.columns([3, 1], vertical_alignment="center")
    position.caption(f"At {x:.0%} from the left and {y:.0%} from the top of the {'plain ' if is_plain else ''}image:")
    clear.button("Clear", key="point-clear", on_click=_clear, args=(page,))
    record = details.record
    ranked = record.at(x, y, words=content_words(record, read), **record.nearest(look.block, look.step))
    rows = [{"word": each.word, "share of attention": each.attention, "times its mean": each.lift} for each in ranked]
    top = max((each.attention for each in ranked), default=0.0) or 1.0
    st.dataframe(
        rows, hide_index=True, key="ranked",
        column_config={
            "share of attention": st.column_config.ProgressColumn(format="%.4f", min_value=0.0, max_value=top),
            "times its mean": st.column_config.NumberColumn(format="%.2f", help="Above 1: more here than elsewhere"),
        },
    )  # fmt: skip


def _position_by_numbers(page: Page) -> None:
    st.caption("Click on the image to rank the words by the attention that they get there.")
    with st.expander("Or enter the position"):
        x = st.slider("From the left", 0.0, 1.0, 0.5, 0.01, key="point-x")
        y = st.slider("From the top", 0.0, 1.0, 0.5, 0.01, key="point-y")
        if st.button("Rank the words there", key="point-go"):
            page.point = {"x": x, "y": y, "pane": 0}
            st.rerun()


def _clear(page: Page) -> None:
    page.point = None


def _overlap(record: CachedRecord, look: MapChoice, read: ReadPrompt | None) -> None:
    """Which words share positions: the pairs first, then the table."""
    words = content_words(record, read)
    if len(words) < 2:
        st.caption("There is one word only; nothing to compare it with.")
        return
    overlap_NN = record.overlap(words, block=look.block, step=look.step).tolist()
    pairs = [(overlap_NN[row][column], words[row], words[column]) for row in range(len(words)) for column in range(row)]
    value, one, other = max(pairs)
    st.caption(
        f"Most shared: **{plain(one)}** and **{plain(other)}**, {value:.0%} of their attention lies at the same "
        "positions."
    )
    percent_NN = [[round(100 * value) for value in row] for row in overlap_NN]
    table = [{"": word, **dict(zip(words, row, strict=True))} for word, row in zip(words, percent_NN, strict=True)]
    config = {word: st.column_config.ProgressColumn(format="%d %%", min_value=0, max_value=100) for word in words}
    st.dataframe(table, hide_index=True, column_config=config, key="overlap")
    st.caption("Maps are brought to the same sum first. 100 %: the same positions; 0 %: none in common.")


def short_names(names: Collection[str]) -> dict[str, str]:
    """Terms without their control, where no two controls have a term of that name."""
    terms = {name: name.partition(".")[2] or name for name in names}
    times = Counter(terms.values())
    return {name: term if times[term] == 1 else name for name, term in terms.items()}


def _losses(details: Details) -> None:
    if not details.losses:
        st.caption("No control of this image moves anything by a loss.")
        return
    first = [loss for loss in details.losses if loss.iteration == 0]
    names = short_names({name for loss in first for name in loss.terms})
    rows = [{"step": loss.step + 1, **{names[key]: value for key, value in loss.terms.items()}} for loss in first]
    if len(names) > 1:
        rows = [{**row, "sum": loss.total} for row, loss in zip(rows, first, strict=True)]
    st.line_chart(rows, x="step", y=[name for name in rows[0] if name != "step"], y_label="loss", height=220)
    more, skipped = len(details.losses) - len(first), sum(loss.skipped for loss in details.losses)
    st.caption(f"Before the first move of each step; refinements: {more}; moves skipped: {skipped}.")
    moves = [{"step": loss.step + 1, "move": loss.length} for loss in first]
    st.line_chart(moves, x="step", y="move", height=170)

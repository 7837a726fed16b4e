"""Inspect: the map of a word by step and layer, the words at a place, what shares places, and the losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from t2ictl.app.engine.details import ALL, Details, Maps
from t2ictl.app.engine.reading import ReadPrompt
from t2ictl.app.state import Page
from t2ictl.app.text import plain

if TYPE_CHECKING:
    from t2ictl.app.views.shown import Shown

__all__ = ["MapChoice", "inspect"]

TABS = {"words": "Words", "overlap": "Overlap", "losses": "Losses"}


@dataclass(frozen=True, kw_only=True)
class MapChoice:
    """Which map lies over the image.

    Args:
        word: whose; empty for none.
        place: group of layers.
        step: from 0; None for the mean over all.
        opacity: in [0, 1].
        heat_top: the value that is shown brightest; 0 if nothing is shown.
    """

    word: str = ""
    place: str = ALL
    step: int | None = None
    opacity: float = 0.7
    heat_top: float = 0.0


def inspect(page: Page, shown: Shown | None, read: ReadPrompt | None) -> MapChoice:
    """Show what the words of an image look at.

    Args:
        page: of this session.
        shown: what is on the stage.
        read: its prompt, for the roles of words.

    Returns:
        The map to lay over the image.
    """
    st.markdown("##### Inspect")
    if shown is None or shown.details.maps is None:
        with st.container(border=True):
            st.markdown("What each word looks at appears here, once there is an image.")
        return MapChoice()
    look = _map_choice(shown, read)
    tab = st.segmented_control(
        "What", list(TABS), default="words", required=True, format_func=TABS.__getitem__, key="tab",
        label_visibility="collapsed",
    )  # fmt: skip
    if tab == "overlap":
        _overlap(shown.details.maps, look, read)
    elif tab == "losses":
        _losses(shown.details)
    else:
        _ranked(page, shown, look, read)
    return look


def content_words(maps: Maps, read: ReadPrompt | None) -> list[str]:
    """Objects and what describes them; all words where the prompt has neither."""
    roles = {word.name: word.role for word in read.words} if read else {}
    content = [word for word in maps.words if roles.get(word, "word") != "word"]
    return content or list(maps.words)


def _map_choice(shown: Shown, read: ReadPrompt | None) -> MapChoice:
    maps = shown.details.maps
    assert maps is not None
    everything = st.session_state.get("all-words", False)
    options = list(maps.words) if everything else content_words(maps, read)
    word = st.pills("Map of", options, key=f"word/{shown.result.number}", format_func=plain) or ""
    st.toggle("All words, also “a” and “and”", key="all-words")
    left, right = st.columns(2)
    with left:
        place = st.selectbox(
            "Layers", maps.places, key=f"place/{maps.places}", format_func=lambda name: _layers(maps, name),
            help="All layers, or those of one part of the U-Net and one size of map",
        )  # fmt: skip
    with right:
        step = _step(maps)
    scale, opacity = st.columns(2)
    with scale:
        stretch = st.toggle(
            "Stretch this word", key="stretch",
            help="Off: one scale for all words, so a weak word looks weak. On: the word's own peak is brightest.",
        )  # fmt: skip
    with opacity:
        strength = st.slider("Opacity", 0.0, 1.0, 0.7, 0.05, key="opacity")
    top = 0.0
    if word:
        tops = [_peak(details, word if stretch else None, place, step, options) for details in _both(shown)]
        top = max(tops)
        if word in maps.merged:
            st.caption(f"It was merged into {plain(maps.merged[word])!s}: this is the map of the whole.")
    return MapChoice(word=word, place=place, step=step, opacity=strength, heat_top=top)


def _both(shown: Shown) -> list[Details]:
    """The image and the plain one have one scale, or they could not be compared."""
    return [each for each in (shown.details, shown.plain_details) if each is not None and each.maps is not None]


def _peak(details: Details, word: str | None, place: str, step: int | None, words: list[str]) -> float:
    maps = details.maps
    assert maps is not None
    if place not in maps.places or (step is not None and step >= maps.steps):
        return 0.0
    peaks = maps.peaks(place, step)
    return max((peaks[each] for each in ([word] if word else words) if each in peaks), default=0.0)


def _step(maps: Maps) -> int | None:
    if not maps.steps:
        st.caption("Only the mean over steps was kept: the maps of single steps would have been too large.")
        return None
    options = ["mean", *range(1, maps.steps + 1)]
    found = st.select_slider("Step", options, value="mean", key=f"step/{maps.steps}", help="The mean, or one step")
    return None if found == "mean" else int(found) - 1


def _layers(maps: Maps, name: str) -> str:
    height, width = maps.by_place[name].shape[-2:]
    return "all layers" if name == ALL else f"{name.partition('@')[0]} {width}×{height}"


def _ranked(page: Page, shown: Shown, look: MapChoice, read: ReadPrompt | None) -> None:
    if page.point is None:
        _place_by_numbers(page)
        return
    is_plain = page.point["pane"] == 1 and shown.plain_details is not None
    details = shown.plain_details if is_plain else shown.details
    if details is None or details.maps is None:
        return
    x, y = page.point["x"], page.point["y"]
    place, clear = st.columns([3, 1], vertical_alignment="center")
    place.caption(f"At {x:.0%} from the left and {y:.0%} from the top of the {'plain ' if is_plain else ''}image:")
    clear.button("Clear", key="point-clear", on_click=_clear, args=(page,))
    maps = details.maps
    step = look.step if look.step is None or look.step < maps.steps else None
    ranked = maps.at(x, y, look.place if look.place in maps.places else ALL, step)
    allowed = maps.words if st.session_state.get("all-words") else content_words(maps, read)
    kept = [each for each in ranked if each.word in allowed]
    rows = [{"word": each.word, "share of attention": each.mass, "times its mean": each.lift} for each in kept]
    top = max((each.mass for each in kept), default=0.0) or 1.0
    st.dataframe(
        rows, hide_index=True, key="ranked",
        column_config={
            "share of attention": st.column_config.ProgressColumn(format="%.4f", min_value=0.0, max_value=top),
            "times its mean": st.column_config.NumberColumn(format="%.2f", help="Above 1: more here than elsewhere"),
        },
    )  # fmt: skip


def _place_by_numbers(page: Page) -> None:
    st.caption("Click on the image, and the words that act there are ranked here.")
    with st.expander("Or give the place by numbers"):
        x = st.slider("From the left", 0.0, 1.0, 0.5, 0.01, key="point-x")
        y = st.slider("From the top", 0.0, 1.0, 0.5, 0.01, key="point-y")
        if st.button("Rank the words there", key="point-go"):
            page.point = {"x": x, "y": y, "pane": 0}
            st.rerun()


def _clear(page: Page) -> None:
    page.point = None


def _overlap(maps: Maps, look: MapChoice, read: ReadPrompt | None) -> None:
    """Which words share places: the pairs first, then the table."""
    words = list(maps.words) if st.session_state.get("all-words") else content_words(maps, read)
    if len(words) < 2:
        st.caption("There is one word only; nothing to compare it with.")
        return
    chosen = [maps.words.index(word) for word in words]
    overlap_NN = maps.overlap(look.place, look.step)[chosen][:, chosen]
    pairs = [
        (float(overlap_NN[row, column]), words[row], words[column])
        for row in range(len(words))
        for column in range(row)
    ]
    value, one, other = max(pairs)
    st.caption(
        f"Most shared: **{plain(one)}** and **{plain(other)}**, {value:.0%} of their attention lies in the same places."
    )
    percent_NN = (100 * overlap_NN).round().tolist()
    table = [{"": word, **dict(zip(words, row, strict=True))} for word, row in zip(words, percent_NN, strict=True)]
    config = {word: st.column_config.ProgressColumn(format="%d %%", min_value=0, max_value=100) for word in words}
    st.dataframe(table, hide_index=True, column_config=config, key="overlap")
    st.caption("Maps are brought to the same sum first. 100 %: the same places; 0 %: none in common.")


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

"""The report of an analysis: one HTML file that needs no other and no network, and its JSON twin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2ictl.maps.figures import image_uri
from t2ictl.maps.pages import render
from t2ictl.processors.token_flow.analysis.estimates import Scores, p_text
from t2ictl.settings.files import write_json, write_text

if TYPE_CHECKING:
    from t2ictl.processors.token_flow.analysis.findings import FlowFindings

__all__ = ["write_report"]

# Images of a grid are small; the whole report of 200 of them stays below a few megabytes.
GRID = 160


def write_report(result: FlowFindings, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json``.

    Args:
        result: the analysis.
        folder: made if it is not there.

    Returns:
        The HTML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", result.to_dict())
    page = render(
        "flow.html.j2",
        [Path(__file__).parent],
        result=result,
        summary=summary(result),
        maps=result.record.to_dict(),
        image=image_uri(result.image),
        chips=_chips(result),
        cells=_leak_table(result),
        screen=_screen_table(result),
        grid=_grid(result),
        repairs=_repairs(result),
        settings=json.dumps(dict(result.settings), indent=2, ensure_ascii=False),
    )
    return write_text(folder / "report.html", page)


def summary(result: FlowFindings) -> list[str]:
    """Describe in sentences what was found, and what could not be decided.

    Args:
        result: the analysis.

    Returns:
        One sentence a finding.
    """
    said = []
    if result.scores is None:
        return ["Nothing was judged: this page has the screen and the word maps only. Name a judge for the rest."]
    for cell in result.leaks:
        if cell.verdict == "leaks":
            said.append(
                f"“{cell.source}” leaks into “{cell.target}”: “{cell.seen}” is seen {_points(cell.leak)} more often "
                f"(n = {cell.leak.count} seeds, adjusted {p_text(cell.adjusted)})."
            )
        elif cell.verdict == "denoiser" and cell.total is not None:
            said.append(
                f"“{cell.source}” acts on “{cell.target}” ({_points(cell.total)} of “{cell.seen}”), but not shown "
                "through its text rows: the denoiser does it, and a repair of the encoding will not help."
            )
    if not said:
        said.append(
            f"No leak is shown with {len(result.seeds)} seeds; that is not the same as none (see the intervals)."
        )
    for name, tokens in result.carriers.items():
        texts = [result.table[0][token].text for token in tokens]
        if texts:
            said.append(f"“{name}” is carried by {', '.join(f'“{text}”' for text in texts)}.")
        else:
            said.append(f"“{name}” is hardly ever seen where only its own rows are kept.")
    said += [
        f"Repair of “{each.source}” into “{each.target}” ({each.form}): {each.reason}."
        for each in result.repairs
        if each.chosen
    ]
    return said


def _points(estimate: Any) -> str:
    low, high = (f"{100 * value:+.0f}" for value in (estimate.low, estimate.high))
    return f"{100 * estimate.value:+.0f} points [{low}, {high}]"


def _chips(result: FlowFindings) -> list[list[dict[str, Any]]]:
    """Tokens of every encoder, with how much each carries."""
    by_token = {cell.token: cell for cell in result.tokens}
    tables = []
    for table in result.table:
        chips = []
        for token in table:
            if token.role == "pad":
                continue
            cell = by_token.get(token.position)
            chips.append(
                {
                    "text": token.text or {"start": "⟨start⟩", "end": "⟨end⟩"}.get(token.role, "⟨pad⟩"),
                    "position": token.position,
                    "item": token.item,
                    "is_cut": token.is_cut,
                    "strength": None if cell is None else max(0.0, min(1.0, cell.carrier.value)),
                    "title": "" if cell is None else f"{cell.verdict}; alone {_points(cell.carrier)}",
                }
            )
        tables.append(chips)
    return tables


def _leak_table(result: FlowFindings) -> list[dict[str, Any]]:
    return [
        {**cell.to_dict(), "p_text": p_text(cell.adjusted), "leak_text": _points(cell.leak), **_total(cell)}
        for cell in result.leaks
    ]


def _total(cell: Any) -> dict[str, Any]:
    return {"total_text": "" if cell.total is None else _points(cell.total)}


def _screen_table(result: FlowFindings) -> dict[str, Any]:
    """Targets by sources."""
    sources = list(dict.fromkeys(cell.source for cell in result.screen))
    targets = list(dict.fromkeys(cell.target for cell in result.screen))
    by_pair = {(cell.target, cell.source): cell for cell in result.screen}
    return {"sources": sources, "targets": targets, "cells": by_pair}


def _grid(result: FlowFindings) -> list[dict[str, Any]]:
    """Images by condition and seed, with what the judge saw."""
    names = list(dict.fromkeys(name for name, _ in result.images))
    rows = []
    for name in names:
        seeds = [seed for condition, seed in result.images if condition == name]
        seen = [_seen(result.scores, name, number) for number in range(len(seeds))]
        images = [image_uri(result.images[name, seed], GRID) for seed in seeds]
        rows.append({"name": name, "images": list(zip(seeds, images, seen, strict=True))})
    return rows


def _seen(scores: Scores | None, condition: str, number: int) -> str:
    if scores is None or condition not in scores.by_condition:
        return ""
    values = scores.by_condition[condition][number]
    there = [question for question, value in zip(scores.questions, values, strict=True) if value >= 0.5]
    return ", ".join(there) or "nothing asked for"


def _repairs(result: FlowFindings) -> list[dict[str, Any]]:
    """Accepted repairs, with images before and after."""
    shown = []
    for each in result.repairs:
        name = f"repair:{each.target}|{each.source}"
        pairs: Sequence[Any] = [
            (seed, image_uri(result.images["full", seed]), image_uri(result.images[name, seed]))
            for seed in result.seeds
            if each.accepted and (name, seed) in result.images
        ]
        texts = {"change_text": "" if each.change is None else _points(each.change)}
        texts["loss_text"] = "" if each.intent_loss is None else _points(each.intent_loss)
        chosen = "" if each.chosen is None else each.chosen.name
        shown.append({"outcome": each, "chosen": chosen, "pairs": pairs, **texts})
    return shown

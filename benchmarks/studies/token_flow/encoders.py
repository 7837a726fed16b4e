"""Measure what the words of a prompt have read of each other, by text encoder: ``t2ictl bench study text-encoders``.

No image is made. A word is hidden from the encoder, and the distance by which the rows of another word move is divided
by their distance from the rows of the empty prompt: 0, it has read nothing of the word; 1, it moves as far as if the
prompt were gone. *Directly*: only that other word does not see it. Of two phrases, also with another color in the
hidden one (*swapped*), and with other words hidden in its place (*others*). Means over prompts; in brackets the tenth
and the ninetieth percentile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

import t2ictl
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.embedded import add_model, open_model
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.studies.token_flow.cases import cases
from t2ictl.processors.token_flow.analysis.encoders import screen_encoders
from t2ictl.processors.token_flow.analysis.screen import ENDS, ScreenCell
from t2ictl.shapes.prompts import HeldOut, suite

__all__ = ["main", "phrase_effects", "word_effects"]

#: The words of "a red circle and a blue square", in their order, and what they are called in the table.
ROLES = ("a", "color", "shape", "and", "a 2", "color 2", "shape 2")
Effects = dict[str, dict[tuple[str, str], list[ScreenCell]]]


def word_effects(pipe: Any, split: HeldOut, prompts: int) -> Effects:
    """Screen all words of pairs against all.

    Args:
        pipe: a diffusers pipeline.
        split: tuning or report prompts.
        prompts: pairs.

    Returns:
        By segment of the text row, the cells of each target and source; words are called by their :data:`ROLES`.

    Example:
        >>> found = word_effects(t2ictl.load("shapes", device="cpu"), "tune", 1)
        >>> len(found["text_encoder"]["shape", "color"]), found["text_encoder"]["color", "shape"][0].is_possible
        (1, False)
    """
    found: Effects = defaultdict(lambda: defaultdict(list))
    for asked in suite("pair", split, prompts, 0):
        words = asked.prompt.split()
        queries = [word if word not in words[:place] else f"{word}#2" for place, word in enumerate(words)]
        roles = dict(zip(queries, ROLES, strict=True)) | {ENDS: ENDS}
        for segment, cells in screen_encoders(pipe, asked.prompt, queries, **t2ictl.own_arguments(pipe)).items():
            for cell in cells:
                if cell.target in roles:
                    found[segment][roles[cell.target], roles[cell.source]].append(cell)
    return found


def phrase_effects(pipe: Any, split: HeldOut, prompts: int) -> Effects:
    """Screen the two phrases of pairs, each with another color for comparison.

    Args:
        pipe: a diffusers pipeline.
        split: tuning or report prompts.
        prompts: pairs.

    Returns:
        By segment of the text row, the cells of ``("second", "first")`` and ``("first", "second")``.
    """
    found: Effects = defaultdict(lambda: defaultdict(list))
    for case in cases("pairs", split, prompts):
        second, first = case.items
        roles = {second.words: "second", first.words: "first"}
        for segment, cells in screen_encoders(pipe, case.prompt, case.items, **t2ictl.own_arguments(pipe)).items():
            for cell in cells:
                if cell.target in roles:
                    found[segment][roles[cell.target], roles[cell.source]].append(cell)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a matrix of words for each segment, and a table of phrases.

    Args:
        arguments: command-line arguments; None for those of the process.

    Returns:
        Exit status 0.
    """
    parser = ArgumentParser(prog="t2ictl bench study text-encoders", description=__doc__)
    add_model(parser, steps=False)
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--prompts", type=int, default=50, help="pairs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipe = open_model(options.model)
    for segment, cells in word_effects(pipe, options.split, options.prompts).items():
        print(f"### {segment}: moved (directly), {options.prompts} pairs\n")
        print_table(("of \\ when hidden", *ROLES), _matrix(cells))
        print()
    head = ("encoder", "phrase", "moved when the other is hidden", "directly", "swapped", "others hidden")
    print_table(head, _phrase_rows(phrase_effects(pipe, options.split, options.prompts)))
    return 0


def _matrix(cells: dict[tuple[str, str], list[ScreenCell]]) -> Iterator[tuple[str, ...]]:
    for target in (*ROLES, ENDS):
        row = [cells.get((target, source), []) for source in ROLES]
        yield target, *(_moved(own) for own in row)


def _moved(cells: Sequence[ScreenCell]) -> str:
    if not cells:
        return ""
    if not cells[0].is_possible:
        return "-"
    direct = [each.direct for each in cells if each.direct is not None]
    return f"{np.mean([each.total for each in cells]):.2f} ({np.mean(direct):.2f})"


def _phrase_rows(found: Effects) -> Iterator[tuple[str, ...]]:
    for segment, cells in found.items():
        for (target, _), own in cells.items():
            if not own[0].is_possible:
                yield segment, target, "-", "-", "-", "-"
                continue
            columns = ([getattr(each, name) for each in own] for name in ("total", "direct", "swapped", "control"))
            yield segment, target, *(_spread([value for value in column if value is not None]) for column in columns)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = np.quantile(values, [0.1, 0.9])
    return f"{np.mean(values):.2f} [{low:.2f}, {high:.2f}]"

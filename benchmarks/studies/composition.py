"""Which controls go together: every pair of the registry is put on an embedded model and run for a step.

``t2ictl bench study composition`` prints the table of ``docs/composition.md``; a test compares them,
so a new control cannot be forgotten there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import combinations_with_replacement
from typing import Any

import torch

import t2ictl
from t2ictl import Control
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.embedded import add_model, open_model
from t2ictl.benchmarks.markdown import markdown_table
from t2ictl.errors import ControlConflict

__all__ = ["Verdict", "main", "pairs", "table"]

PROMPT = "a red circle and a blue square"

#: What may be said of a pair: it works; it works when both have one step rule; or the reason why it is refused.
Verdict = str
WORKS, ONE_STEP = "works", "one step"
SIGNS = {WORKS: "✓", ONE_STEP: "✓ step"}


def _made(cls: type[Control], **settings: Any) -> Control:
    """A control with its defaults, but for what only costs time here: a search ends after one look."""
    names = {each.name for each in fields(cls)}
    if "search" in names:
        settings["search"] = {"max_steps": 1}
    if "refinement" in names:
        settings["refinement"] = None
    return cls(**settings, preset="none")  # as on a model for which nothing was measured


def _run(pipe: Any, controls: list[Control]) -> None:
    call = {"num_inference_steps": 1, "output_type": "latent", **t2ictl.own_arguments(pipe)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with t2ictl.controlled(pipe, controls):
            pipe(PROMPT, generator=torch.Generator().manual_seed(0), **call)


def pairs(pipe: Any) -> Iterator[tuple[str, str, Verdict]]:
    """Try every pair that acts on a pipeline, also of a control with itself.

    Args:
        pipe: a pipeline.

    Yields:
        The two names in alphabetical order, and what is to be said.
    """
    offers = next(each.offers for each in t2ictl.list_families().values() if each.matches(pipe))
    known = {name: cls for name, cls in t2ictl.list_controls().items() if cls.needs <= offers}
    for one, other in combinations_with_replacement(known, 2):
        yield one, other, _verdict(pipe, known[one], known[other])


def _verdict(pipe: Any, one: type[Control], other: type[Control]) -> Verdict:
    try:
        _run(pipe, [_made(one), _made(other)])
    except ControlConflict as conflict:
        if "step" not in conflict.remedy:
            return str(conflict.cause)
    else:
        return WORKS
    # Their published steps differ, and there is one latent: with one rule for both it must work.
    rule: dict[str, Any] = {"step": {"mode": "normalized", "scale": 0.05, "final_scale_sq": 1.0}}
    _run(pipe, [_made(one, **rule), _made(other, **rule)])
    return ONE_STEP


def table(found: list[tuple[str, str, Verdict]]) -> str:
    """Write the verdicts as a Markdown table with the reasons below.

    Args:
        found: from :func:`pairs`.

    Returns:
        Markdown.

    Example:
        >>> print(table([("a", "a", "works"), ("a", "b", "Both set x."), ("b", "b", "one step")]))
        | | a | b |
        |---|---|---|
        | **a** | ✓ | – 1 |
        | **b** | – 1 | ✓ step |
        <BLANKLINE>
        1. Both set x.
    """
    names = list(dict.fromkeys(name for one, other, _ in found for name in (one, other)))
    verdicts = {(one, other): verdict for one, other, verdict in found}
    reasons = list(dict.fromkeys(verdict for verdict in verdicts.values() if verdict not in SIGNS))

    def cell(row: str, column: str) -> str:
        verdict = verdicts.get((row, column)) or verdicts[column, row]
        return SIGNS.get(verdict) or f"– {reasons.index(verdict) + 1}"

    head = ["", *(name.replace("_", " ") for name in names)]
    rows = ((f"**{row.replace('_', ' ')}**", *(cell(row, column) for column in names)) for row in names)
    notes = (f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return "\n".join([*markdown_table(head, rows), "", *notes])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        arguments: of the command line.

    Returns:
        Exit status 0.
    """
    parser = ArgumentParser(prog="t2ictl bench study composition", description=__doc__)
    add_model(parser, steps=False)
    print(table(list(pairs(open_model(parser.parse_args(arguments).model)))))
    return 0

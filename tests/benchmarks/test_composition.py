"""The published table of pairs is what the registry does; sums do not depend on the order of controls."""

from __future__ import annotations

from itertools import combinations_with_replacement, permutations

import pytest
import torch

import t2ictl
from t2ictl.benchmarks.studies.composition import pairs, table
from t2ictl.guidance.rules import StepSize
from t2ictl.processors import AttendAndExcite, AttentionSegregation, LinguisticBinding
from tests.processors.composition_cases import page_table, published_pairs
from tests.tiny import run, sd

PROMPT = "a red circle and a blue square"


def test_the_page_has_the_form_in_which_the_table_is_printed() -> None:
    found = [(one, other, verdict) for (one, other), verdict in published_pairs().items() if one <= other]
    assert [each[:2] for each in found] == list(combinations_with_replacement(t2ictl.list_controls(), 2))
    assert table(found) == page_table()


@pytest.mark.slow
def test_the_page_is_what_is_printed_with_the_embedded_model() -> None:
    """The contract tests compare the page with what the tiny pipelines do."""
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    assert table(list(pairs(pipe))) == page_table(), "print it anew: t2ictl bench study composition"


def test_the_order_of_losses_does_not_matter() -> None:
    rule = StepSize(scale=5.0)
    controls = [
        AttendAndExcite(step=rule, refinement=None),
        AttentionSegregation(step=rule),
        LinguisticBinding(step=rule, strength=0.5),
    ]
    pipe, made = sd(dtype=torch.float64), []
    for order in permutations(controls):
        with t2ictl.controlled(pipe, order):
            made.append(run(pipe, PROMPT, steps=3))
    for each in made[1:]:
        torch.testing.assert_close(each, made[0], rtol=0, atol=1e-8)
    with t2ictl.controlled(pipe, controls[:1]):
        alone = run(pipe, PROMPT, steps=3)
    assert (alone - made[0]).abs().max() > 1e-3


def test_two_owners_are_named() -> None:
    from t2ictl.processors import TokenFlow, TokenMerging

    with pytest.raises(t2ictl.errors.ControlConflict, match="token_flow and token_merging both set the text states"):
        with t2ictl.controlled(sd(), [TokenFlow(), TokenMerging()]) as session:
            run(session.adapter.pipe, PROMPT, steps=1)

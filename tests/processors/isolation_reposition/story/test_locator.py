"""Looking for subjects: the same places as a control finds, and nothing changed by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import t2ictl
from t2ictl import Region
from t2ictl.attention.batch import BatchLayout
from t2ictl.controls.base import PlanContext
from t2ictl.controls.concepts import ConceptMaps
from t2ictl.processors.isolation_reposition.cast import SubjectAssignment
from t2ictl.processors.isolation_reposition.places import SubjectRegions
from t2ictl.processors.isolation_reposition.story.locator import SubjectLocator
from tests import tiny
from tests.tiny import run

PROMPTS, NAMES = ["a cat and a dog", "a frog"], [("cat", "dog"), ("frog",)]


@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
def test_looking_changes_nothing_and_finds_disjoint_places(build: Any) -> None:
    pipe, lookout = build(), SubjectLocator(NAMES, 0.5)
    with t2ictl.controlled(pipe, [lookout]) as session:
        found = run(pipe, PROMPTS)
    assert torch.equal(found, run(pipe, PROMPTS)) and session.cost.extra_forwards == 0
    cat, dog, frog = lookout.region(0, 0), lookout.region(0, 1), lookout.region(1, 0)
    assert [each.word for each in (cat, dog, frog)] == ["cat", "dog", "frog"]
    masks = [torch.tensor(each.mask) for each in (cat, dog, frog)]
    assert all(mask.any() for mask in masks) and not (masks[0] & masks[1]).any()


def places(maps_BNYX: torch.Tensor, given: Region | None = None) -> SubjectRegions:
    """SubjectRegions of an image with two subjects after one look at these maps."""
    pipe = tiny.sd()
    prompt = t2ictl.parse(pipe, PROMPTS[0])
    batch = BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=True)
    context = PlanContext(adapter=t2ictl.families.find_adapter(pipe), prompts=(prompt,), batch=batch)
    rows, nobody = (prompt.find_all(("cat", "dog")),), ((None, None),)
    made = SubjectRegions(
        SubjectAssignment(rows, ((given, None),), nobody, nobody),
        ConceptMaps.from_context(context, rows, (), "none", "none"),
        0.5,
    )
    tokens = [span.tokens[0] for span in rows[0]]
    maps_BYXT = torch.zeros(1, *maps_BNYX.shape[-2:], 16)
    for number, token in enumerate(tokens):
        maps_BYXT[0, ..., token] = maps_BNYX[0, number]
    made.take(maps_BYXT)
    return made


def test_a_subject_that_is_nowhere_the_strongest_has_the_free_cell_where_it_is_most() -> None:
    """Cat is high on the left; dog follows it everywhere, lower over its own mean, with a small peak on the right."""
    cat, dog = torch.full((4, 4), 0.01), torch.full((4, 4), 0.4)
    cat[:, :2] = 0.9
    dog[:, :2], dog[2, 3] = 0.42, 0.41
    found = places(torch.stack([cat, dog])[None])
    assert torch.equal(found.found(0, 0), cat > 0.5)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[2, 3] = True
    assert not found.coverage(0, (4, 4))[1].any() and found.region(0, 1) is None
    assert torch.equal(found.found(0, 1), expected)


def test_a_region_that_was_given_stands_and_others_are_what_was_seen() -> None:
    cat, dog = torch.full((4, 4), 0.1), torch.full((4, 4), 0.1)
    dog[:, 2:] = 0.9
    given = Region(word="cat", box=(0, 0, 0.5, 1))
    found = places(torch.stack([cat, dog])[None], given)
    seen = found.region(0, 1)
    assert found.region(0, 0) == given
    assert seen is not None and torch.equal(torch.tensor(seen.mask), (dog > 0.5).int())


def test_before_the_first_look_nothing_is_known() -> None:
    made = places(torch.rand(1, 2, 4, 4))
    made._seen_BNYX = None
    assert made.region(0, 0) is None and not made.coverage(0, (4, 4)).any()

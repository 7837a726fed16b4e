"""Every registered control on every family: it acts where its needs are offered, and is refused by name elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.controls.layouts import Region
from t2ictl.controls.registry import list_controls
from t2ictl.errors import ControlIdle, SpanNotFound, UnsupportedPipeline
from t2ictl.families import find_adapter
from tests.families.transformers.cases import DISTINCT, FAMILIES, PROMPT, STEPS, distance, held, shared
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run

CONTROLS = list_controls()
OFFERS = {name: find_adapter(shared(name)).offers for name in FAMILIES}
OFFERED = [(name, key) for name in FAMILIES for key, cls in CONTROLS.items() if cls.needs <= OFFERS[name]]
MISSING = [(name, key) for name in FAMILIES for key, cls in CONTROLS.items() if not cls.needs <= OFFERS[name]]
LAYOUT = (Region(word="circle", box=(0.0, 0.0, 0.5, 1.0)), Region(word="square", box=(0.5, 0.0, 1.0, 1.0)))


def made(key: str, **settings: Any) -> Any:
    """A control with its defaults, but for tries that end early, and boxes where it has a layout."""
    control: Any = CONTROLS[key](**settings)
    known = {each.name for each in dataclasses.fields(control)}
    if "search" in known:
        control = dataclasses.replace(control, search=dataclasses.replace(control.search, max_steps=2))
    if getattr(control, "refinement", None) is not None:
        control = dataclasses.replace(control, refinement=dataclasses.replace(control.refinement, max_iterations=2))
    if "layout" in known and key in ("box_diff", "layout_guidance"):
        control = dataclasses.replace(control, layout=LAYOUT)
    return control


@functools.cache
def plain_of(name: str) -> torch.Tensor:
    """What the pipeline makes by itself."""
    return run(shared(name), PROMPT, steps=STEPS)


def test_what_is_offered() -> None:
    """Controls that read maps of words act everywhere, and no family is left with nothing."""
    reading = {key for key, cls in CONTROLS.items() if cls.needs <= {"maps"}}
    assert len(reading) >= 9
    assert {(name, key) for name in FAMILIES for key in reading} <= set(OFFERED)
    assert all(cls.needs for cls in CONTROLS.values())


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, key in OFFERED if name in DISTINCT])
def test_it_acts_the_same_each_time_and_leaves_everything_as_it_was(name: str, key: str) -> None:
    pipe, control = shared(name), made(key)
    plain, kept = plain_of(name), copy.deepcopy(control)
    before, found = state(pipe), []
    for record in (False, True):
        latents, session = held(pipe, [control], record=record)
        found.append(latents)
        if CONTROLS[key].has_losses:
            assert session.trace and any(float(entry.length.max()) > 0 for entry in session.trace)
    assert torch.isfinite(found[0]).all() and distance(found[0], plain) > 1e-6
    assert torch.equal(found[0], found[1])
    assert control == kept and state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_strength_0_is_the_plain_image(name: str) -> None:
    pipe = shared(name)
    plain = plain_of(name)
    for key in [key for own, key in OFFERED if own == name]:
        with pytest.warns(ControlIdle, match="strength"):
            latents, session = held(pipe, [made(key, strength=0.0)])
        assert torch.equal(latents, plain), key
        assert session.cost.extra_forwards == 0 and session.layers == (), key


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_does_not_offer_is_named_before_anything_is_computed(name: str) -> None:
    pipe = FAMILIES[name]()
    before = state(pipe)
    for key in [key for own, key in MISSING if own == name]:
        cls = CONTROLS[key]
        with pytest.raises(UnsupportedPipeline) as caught:
            t2ictl.controlled(pipe, [cls()])
        told = str(caught.value)
        assert cls.__name__ in told and repr(find_adapter(pipe).family) in told
        assert all(need in told.partition(", which")[0] for need in cls.needs - OFFERS[name])
        assert all(f" {need}" not in told.partition(", which")[0] for need in OFFERS[name] & cls.needs)
        assert caught.value.remedy
        with pytest.raises(UnsupportedPipeline):
            t2ictl.controlled(pipe, measure=[cls()])
    assert state(pipe) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_a_word_that_is_not_there_is_named_before_the_first_step(name: str) -> None:
    pipe = shared(name)
    for key in [key for own, key in OFFERED if own == name and hasattr(CONTROLS[key], "concepts")]:
        with t2ictl.controlled(pipe, [made(key, concepts=("turtle",))]) as session:
            with pytest.raises(SpanNotFound, match="turtle"):
                run(pipe, PROMPT, steps=STEPS)
        assert session.cost.forwards == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_two_controls_share_a_pass(name: str) -> None:
    step = {"mode": "normalized", "scale": 0.05, "final_scale_sq": 1.0}
    first, second = (made(key, step=step) for key in ("contrastive_attention", "linguistic_binding"))
    alone, one = held(shared(name), [first])
    both, two = held(shared(name), [first, second])
    assert distance(both, alone) > 1e-4
    assert two.cost.extra_forwards == one.cost.extra_forwards

"""What every registered control promises, whoever wrote it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import json
import warnings
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.registry import broken_controls, control_from_dict, control_to_dict, list_controls
from t2ictl.errors import BadSetting, ControlConflict, NeedsSession, SpanNotFound
from t2ictl.families import find_adapter
from t2ictl.families.unets import UNetAdapter
from t2ictl.settings.fields import describe
from tests.processors.composition_cases import ONE_STEP, WORKS, published_pairs
from tests.session.session_cases import pipeline
from tests.tiny import run

PROMPT = "a red circle and a blue square"
CONTROLS = list(list_controls().values())
ONE_RULE = {"mode": "normalized", "scale": 0.05, "final_scale_sq": 1.0}


def named(cls: Any) -> str:
    return str(cls.name)


every_control = pytest.mark.parametrize("cls", CONTROLS, ids=named)


def has(cls: Any, field: str) -> bool:
    return field in {each.name for each in dataclasses.fields(cls)}


def made(cls: Any, **settings: Any) -> Any:
    """A control with its defaults, but for tries that end early: what they cost is no part of the contract."""
    control = cls(**settings)
    if has(cls, "search"):
        control = dataclasses.replace(control, search=dataclasses.replace(control.search, max_steps=2))
    if getattr(control, "refinement", None) is not None:
        control = dataclasses.replace(control, refinement=dataclasses.replace(control.refinement, max_iterations=2))
    return control


def context(pipe: Any, *prompts: str) -> PlanContext:
    return PlanContext(
        adapter=find_adapter(pipe),
        prompts=tuple(t2ictl.parse(pipe, each) for each in prompts),
        batch=BatchLayout.from_counts(prompts=len(prompts), images_per_prompt=1, guided=True),
    )


def plan(control: Control, pipe: Any) -> Plan:
    return control.plan(context(pipe, PROMPT))


def test_nothing_is_broken() -> None:
    assert broken_controls() == {}
    assert {"attention_segregation", "attend_and_excite"} <= set(list_controls())


@every_control
def test_names_agree(cls: Any) -> None:
    module = inspect.getmodule(cls)
    home = f"t2ictl.processors.{cls.name}"
    assert module is not None and module.__name__ in {home, f"{home}.control"}
    assert cls.__name__.lower() == cls.name.replace("_", "")
    assert getattr(importlib.import_module("t2ictl.processors"), cls.__name__) is cls
    assert cls.__name__ in module.__all__
    assert cls.needs <= UNetAdapter.offers and cls.needs


@every_control
def test_documented(cls: Any) -> None:
    document = inspect.getdoc(cls) or ""
    positions = [document.find(f"\n{section}:\n") for section in ("Args", "Example", "Reference")]
    assert -1 not in positions and positions == sorted(positions)
    assert any(digit.isdigit() for digit in cls.paper) and len(cls.paper) > 20
    described = describe(cls)["properties"]
    # Fields that a base class declares may be explained there.
    arguments = "\n".join(inspect.getdoc(base) or "" for base in cls.__mro__ if base is not object)
    for field in dataclasses.fields(cls):
        assert described[field.name].get("description"), f"{field.name} has no help text"
        assert f"    {field.name}: " in arguments, f"{field.name} is missing under Args"


@every_control
def test_settings_survive_json(cls: Any) -> None:
    control = cls()
    text = json.dumps(control_to_dict(control), allow_nan=False)
    assert control_from_dict(json.loads(text)) == control
    assert json.loads(text)["control"] == cls.name
    assert set(json.loads(text)) - {"left_open"} == {"control", *(field.name for field in dataclasses.fields(cls))}
    assert cls(**{field.name: getattr(control, field.name) for field in dataclasses.fields(cls)}) == control


def other_value(schema: dict[str, Any], value: Any) -> Any:
    """Another good value of a simple field, or None."""
    if schema.get("enum"):
        return next((each for each in schema["enum"] if each != value), None)
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        low, high = schema.get("minimum", value - 1), schema.get("maximum", value + 1)
        return low + (high - low) * 0.37
    return value + 1 if isinstance(value, int) else None


@every_control
def test_every_field_is_kept(cls: Any) -> None:
    changed = 0
    for name, schema in describe(cls)["properties"].items():
        value = other_value(schema, getattr(cls(), name))
        if value is not None:
            control = cls(**{name: value})
            again = control_from_dict(json.loads(json.dumps(control_to_dict(control))))
            assert getattr(again, name) == value and again == control != cls()
            changed += 1
    assert changed


@every_control
def test_bad_values_name_field_and_value(cls: Any) -> None:
    for name, schema in describe(cls)["properties"].items():
        bad: list[Any] = [object()]
        bad += [schema["minimum"] - 1] if "minimum" in schema else []
        bad += [schema["maximum"] + 1] if "maximum" in schema else []
        bad += ["no such choice"] if "enum" in schema else []
        bad += [float("nan")] if schema.get("type") == "number" else []
        for value in bad:
            with pytest.raises(BadSetting) as caught:
                cls(**{name: value})
            assert f"{cls.__name__}.{name}" in str(caught.value)
            assert repr(value) in str(caught.value) or isinstance(value, str)
    with pytest.raises(BadSetting, match="no_such_field"):
        cls(no_such_field=1)
    with pytest.raises(BadSetting, match="by name"):
        cls(1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().strength = 2.0


@every_control
def test_strength_0_is_an_empty_plan_and_the_plain_image(cls: Any) -> None:
    pipe = pipeline("sd")
    control = cls(strength=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan(control, pipe) == Plan()
    plain = run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(pipe, [control]) as session:
        assert torch.equal(run(pipe, PROMPT, steps=2), plain)
    assert session.cost.extra_forwards == 0


@pytest.mark.parametrize(
    ("cls", "family"),
    [pytest.param(cls, family, id=f"{cls.name}-{family}") for cls in CONTROLS for family in ("sd", "sdxl")],
)
def test_it_acts_the_same_each_time_and_leaves_everything_as_it_was(cls: Any, family: str) -> None:
    pipe = pipeline(family)
    control, prompts = made(cls), [PROMPT, "a cat and a dog"]
    before = (copy.deepcopy(control), list(prompts), dict(pipe.unet.attn_processors), set(vars(pipe.unet)))
    plain, noise = run(pipe, prompts, steps=2), torch.get_rng_state()
    found = []
    for _ in range(2):
        with t2ictl.controlled(pipe, [control]):
            found.append(run(pipe, prompts, steps=2))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], plain)
    assert torch.isfinite(found[0]).all()
    processors = dict(pipe.unet.attn_processors)
    assert (control, prompts, set(vars(pipe.unet))) == (before[0], before[1], before[3])
    assert all(processors[name] is before[2][name] for name in before[2])
    assert torch.equal(noise, torch.get_rng_state())
    assert torch.equal(run(pipe, prompts, steps=2), plain)


@every_control
def test_it_says_whether_it_has_losses(cls: Any) -> None:
    own = plan(cls(), pipeline("sd"))
    assert cls.has_losses == bool(own.objectives or (own.text is not None and own.text.objectives))


@every_control
def test_two_plans_share_no_state(cls: Any) -> None:
    pipe = pipeline("sd")
    first, second = plan(cls(), pipe), plan(cls(), pipe)
    pairs = list(zip(parts(first), parts(second), strict=True))
    assert pairs and all(one != other for one, other in pairs)  # methods are equal where their objects are the same


def parts(made: Plan) -> list[Any]:
    """What a plan is made of, as far as it may hold something that changes during a run."""
    found: list[Any] = [each.evaluate for each in made.objectives] + [edit for _, edit in made.edits]
    if made.text is not None:
        found += [made.text.rewrite, *(each.evaluate for each in made.text.objectives)]
    return found


MOVING = [cls for cls in CONTROLS if cls.has_losses and not cls.moves_words and "attn_processors" not in vars(cls)]


@pytest.mark.parametrize("cls", MOVING, ids=named)
def test_what_moves_latents_needs_a_session(cls: Any) -> None:
    pipe = pipeline("sd")
    assert plan(cls(), pipe).objectives
    with pytest.raises(NeedsSession, match=cls.__name__):
        cls.attn_processors(pipe, [PROMPT])


@pytest.mark.parametrize("cls", [cls for cls in CONTROLS if has(cls, "concepts")], ids=named)
def test_a_word_that_is_not_there_is_named_before_the_first_step(cls: Any) -> None:
    pipe = pipeline("sd")
    with t2ictl.controlled(pipe, [cls(concepts=("turtle",))]) as session:
        with pytest.raises(SpanNotFound, match="turtle"):
            run(pipe, PROMPT, steps=2)
    assert session.cost.forwards == 0
    with pytest.raises(BadSetting, match=f"{cls.__name__}.concepts"):
        cls(concepts="turtle")


@every_control
def test_recording_beside_it_changes_nothing(cls: Any) -> None:
    pipe, found = pipeline("sd"), []
    for record in (False, True):
        with t2ictl.controlled(pipe, [made(cls)], record=record):
            found.append(run(pipe, PROMPT, steps=2))
    assert torch.equal(found[0], found[1])


def outcome(pipe: Any, first: Any, second: Any) -> str:
    """Whether two controls work together with their defaults, or with one step rule for both, or why they do not."""

    def together(**settings: Any) -> None:
        with t2ictl.controlled(pipe, [made(first, **settings), made(second, **settings)]):
            assert torch.isfinite(run(pipe, PROMPT, steps=1)).all()

    try:
        together()
    except ControlConflict as conflict:
        assert conflict.remedy
        if "step=" not in conflict.remedy:
            return conflict.cause
        together(step=ONE_RULE)
        return ONE_STEP
    return WORKS


@every_control
def test_it_goes_with_the_others_as_the_page_tells(cls: Any) -> None:
    pipe, page = pipeline("sd"), published_pairs()
    found = {other.name: outcome(pipe, cls, other) for other in CONTROLS}
    told = {other: verdict for (name, other), verdict in page.items() if name == cls.name}
    # The page names two owners in alphabetical order, a session in that of its controls.
    expected = {
        other: verdict.replace(" and ".join(sorted((cls.name, other))), f"{cls.name} and {other}")
        for other, verdict in told.items()
    }
    assert found == expected, "docs/composition.md tells otherwise"

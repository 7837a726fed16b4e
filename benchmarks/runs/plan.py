"""The plan of a run: what is asked for, read from YAML and options, and checked before any work.

A plan holds everything that decides the rows. How the work is spread (shards, threads) is not
part of it, since it must not change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from t2ictl.benchmarks.suites.base import Item, Split, find_suite
from t2ictl.errors import BadSetting
from t2ictl.settings.yaml_files import read_yaml
from t2ictl.shapes.embedded import DEFAULT, MODELS

__all__ = ["ArmSpec", "ControlSpec", "RunPlan", "make_plan", "plan_items", "read_plan_file"]

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ControlSpec(BaseModel):
    """A control by name, with the settings that differ from its defaults."""

    model_config = _STRICT
    control: str
    settings: dict[str, Any] = Field(default_factory=dict)


class ArmSpec(BaseModel):
    """What an arm of a chosen name does: one control with settings, or several controls."""

    model_config = _STRICT
    control: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    controls: tuple[ControlSpec, ...] = ()

    @model_validator(mode="after")
    def _one_form(self) -> ArmSpec:
        if (self.control is None) == (not self.controls) or (self.controls and self.settings):
            raise ValueError("give either control: and settings:, or controls:")
        return self

    def listed(self) -> tuple[ControlSpec, ...]:
        """Return the controls in either form.

        Returns:
            One entry a control, in order.
        """
        if self.control is None:
            return self.controls
        return (ControlSpec(control=self.control, settings=self.settings),)


class RunPlan(BaseModel):
    """Everything that decides the rows of a run.

    Args:
        suite: name of the suite of prompts.
        data: folder with the files of published sets; not part of what decides the rows, the prompts are.
        model: an embedded model, a diffusers folder, or a hub id.
        arms: what is compared, by label: labels alone, or label and settings.
        kinds: categories of the suite.
        split: tuning prompts for choosing settings; report prompts for the final figures, once.
        prompts: prompts of each kind, one number or one for each kind.
        seeds: images of each prompt and arm.
        first_seed: the first of the seeds; the others follow.
        steps: denoising steps; those with which an embedded model is measured, or 20.
        guidance: strength of classifier-free guidance; 1 is none; that with which an embedded model is measured, or 3.
        batch: images in one tensor batch.
        limit: most prompts in all, for a smoke run; marks the run as no result.

    Example:
        >>> RunPlan(arms=["plain", "best-of-2"], kinds="pair", prompts=2).arms
        {'plain': None, 'best-of-2': None}
    """

    model_config = _STRICT
    suite: str = "shapes"
    data: str | None = None
    model: str = DEFAULT
    arms: dict[str, ArmSpec | None] = Field(default={"plain": None}, min_length=1)
    kinds: tuple[str, ...] = Field(default=("pair",), min_length=1)
    split: Split = "tune"
    prompts: int | dict[str, int] = 50
    seeds: int = Field(default=4, ge=1)
    first_seed: int = Field(default=0, ge=0)
    steps: int = Field(default=MODELS[DEFAULT].steps, ge=1)
    guidance: float = Field(default=MODELS[DEFAULT].guidance, ge=0.0)
    batch: int = Field(default=8, ge=1)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _as_measured(cls, values: Any) -> Any:
        """Steps and guidance that nobody chose are those of the model."""
        model = values.get("model") if isinstance(values, Mapping) else None
        if not isinstance(model, str) or model not in MODELS:
            return values
        return {"steps": MODELS[model].steps, "guidance": MODELS[model].guidance, **values}

    @field_validator("arms", mode="before")
    @classmethod
    def _read_arms(cls, value: Any) -> Any:
        """Labels with commas, a list of labels and one-entry mappings, or one mapping."""
        listed = _split(value)
        if not isinstance(listed, list | tuple):
            return listed
        arms: dict[str, Any] = {}
        for each in listed:
            entry = {each: None} if isinstance(each, str) else each
            if not isinstance(entry, Mapping) or len(entry) != 1:
                raise ValueError(f"{each!r} is neither a label nor label: settings")
            (label,) = entry
            if label in arms:
                raise ValueError(f"the arm {label!r} is there twice")
            arms |= entry
        return arms

    @field_validator("kinds", mode="before")
    @classmethod
    def _read_kinds(cls, value: Any) -> Any:
        return _split(value)

    @field_validator("kinds")
    @classmethod
    def _no_kind_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a kind is there twice")
        return value

    @field_validator("prompts", mode="before")
    @classmethod
    def _read_prompts(cls, value: Any) -> Any:
        """A number, or ``pair=400,triple=200``."""
        if not isinstance(value, str):
            return value
        parts = [part.split("=") for part in _split(value)]
        if len(parts) == 1 and value.strip().isdigit():
            return int(value)
        if not all(len(part) == 2 and part[1].isdigit() for part in parts):
            raise ValueError("give a number, or one for each kind: pair=400,triple=200")
        return {kind: int(count) for kind, count in parts}

    @field_validator("prompts")
    @classmethod
    def _some_prompts(cls, value: int | dict[str, int]) -> int | dict[str, int]:
        if any(count < 1 for count in (value.values() if isinstance(value, dict) else [value])):
            raise ValueError("a kind needs at least one prompt")
        return value


def _split(value: Any) -> Any:
    """Split text at its commas; leave everything else."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def make_plan(values: Mapping[str, Any]) -> RunPlan:
    """Check values and make the plan of them.

    Args:
        values: fields of :class:`RunPlan`.

    Returns:
        The plan.

    Raises:
        BadSetting: for an unknown field or a bad value, in one line that names it.

    Example:
        >>> make_plan({"arms": "plain", "stepz": 3})
        Traceback (most recent call last):
        t2ictl.errors.BadSetting: The plan has no field 'stepz'. Fields: suite, data, model, arms, ...
    """
    try:
        return RunPlan(**values)
    except ValidationError as error:
        raise _readable(error) from None


def _readable(error: ValidationError) -> BadSetting:
    details = error.errors()[0]
    place = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        *outer, name = details["loc"]
        owner = "plan" if not outer else f"entry {'.'.join(map(str, outer))}"
        known: Mapping[str, Any] = ArmSpec.model_fields if outer else RunPlan.model_fields
        return BadSetting(f"The {owner} has no field {name!r}.", f"Fields: {', '.join(known)}.")
    message = details["msg"].removeprefix("Value error, ").rstrip(".")
    return BadSetting(
        f"The plan's {place} cannot be {details.get('input')!r}: {message}.", "See docs/bench.md for every field."
    )


def read_plan_file(path: Path) -> dict[str, Any]:
    """Read the fields of a plan from a YAML file.

    Args:
        path: the file.

    Returns:
        Its fields, not yet checked.

    Raises:
        BadSetting: if there is no such file, or it is no YAML mapping.

    Example:
        >>> _ = Path("plan.yaml").write_text("arms: [plain]")
        >>> read_plan_file(Path("plan.yaml"))
        {'arms': ['plain']}
    """
    data = read_yaml(path, "plan")
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise BadSetting(f"The plan {str(path)!r} is not a mapping of fields.", "See docs/bench.md for an example.")
    return data


def plan_items(plan: RunPlan) -> tuple[Item, ...]:
    """Return the prompts of a plan.

    Args:
        plan: the plan.

    Returns:
        The items, kind by kind. With a limit, the kinds take turns until it is reached, so that each is there.

    Raises:
        BadSetting: for an unknown suite or kind, or more prompts than there are.

    Example:
        >>> [item.id for item in plan_items(make_plan({"kinds": "pair,single", "limit": 3}))]
        ['tune-pair-0000', 'tune-pair-0001', 'tune-single-0000']
    """
    suite = find_suite(plan.suite, plan.data)
    counts = plan.prompts if isinstance(plan.prompts, dict) else dict.fromkeys(plan.kinds, plan.prompts)
    for kind in (*plan.kinds, *counts):
        if kind not in suite.kinds():
            raise BadSetting(f"The suite {plan.suite} has no kind {kind!r}.", f"Kinds: {', '.join(suite.kinds())}.")
    if set(counts) != set(plan.kinds):
        raise BadSetting(
            f"prompts names {', '.join(counts)}, and kinds names {', '.join(plan.kinds)}.", "Name the same kinds."
        )
    most = plan.limit or max(counts.values())
    groups = [suite.items(kind, plan.split, min(counts[kind], most)) for kind in plan.kinds]
    if plan.limit is None:
        return tuple(chain(*groups))
    in_turns = [item for item in chain(*zip_longest(*groups)) if item is not None]
    kept = set(in_turns[: plan.limit])
    return tuple(item for item in chain(*groups) if item in kept)

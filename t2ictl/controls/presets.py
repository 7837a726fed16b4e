"""Presets: settings that were measured for a model, known by what it is, and what fills in the fields left open."""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from typing import Any

import torch
from torch import nn

from t2ictl.controls.base import Control
from t2ictl.families.base import Adapter
from t2ictl.families.noise import is_flow, level_at_fraction
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.settings.fields import given_fields
from t2ictl.settings.windows import Window

__all__ = ["MeasuredModel", "filled", "for_transformer", "measured_models", "measured_settings", "with_preset"]

_log = logging.getLogger("t2ictl")

#: Folders that hold a table of measured settings.
_TABLES = ("t2ictl.shapes",)
# A model in another precision is the same model; one that was trained on, even shortly, is another.
_TOLERANCE = 1e-2
#: Length of a step on a transformer, as a share of the latent's norm; not measured on released weights.
STEP = 0.05


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A model for which settings were measured.

    Args:
        name: how it is called.
        source: where the figures stand.
        parameters: how many numbers its denoiser has.
        probe: the first of its numbers, by which it is known.
        settings: for each control the fields that were found best, or good, on tuning prompts.
        gains: what each control without a setting adds to the share of strictly right images (points, against the
            untouched model), with the ends of its 95 % interval.
        gains_source: where these stand.
    """

    name: str
    source: str
    parameters: int
    probe: tuple[float, ...]
    settings: Mapping[str, Mapping[str, Any]]
    gains: Mapping[str, Sequence[float]]
    gains_source: str

    def fits(self, denoiser: nn.Module) -> bool:
        """Return whether a denoiser is this model, whatever it is called and in which precision it was loaded."""
        if sum(each.numel() for each in denoiser.parameters()) != self.parameters:
            return False
        first = next(iter(denoiser.parameters())).detach().flatten()[: len(self.probe)].float().cpu()
        return torch.allclose(first, torch.tensor(self.probe), rtol=_TOLERANCE, atol=1e-4)


@functools.cache
def measured_models() -> tuple[MeasuredModel, ...]:
    """List the models for which settings were measured.

    Example:
        >>> [each.name for each in measured_models()]
        ['shapes']
    """
    tables = (json.loads(files(home).joinpath("measured.json").read_text(encoding="utf-8")) for home in _TABLES)
    return tuple(MeasuredModel(**{**each, "probe": tuple(each["probe"])}) for table in tables for each in table)


def measured_settings(denoiser: nn.Module, control: str) -> tuple[str, Mapping[str, Any]] | None:
    """Find what was measured for a control on a model.

    Args:
        denoiser: the model.
        control: name of the control.

    Returns:
        Where the figures stand, and the fields; None if nothing was measured.
    """
    found = next((each for each in measured_models() if control in each.settings and each.fits(denoiser)), None)
    return None if found is None else (found.source, found.settings[control])


def with_preset(controls: Sequence[Control], adapter: Adapter) -> tuple[Control, ...]:
    """Fill in what controls leave open, for the model that they are to act on.

    What was taken is logged once (the command line prints it), and stands in the settings of the controls that are
    returned.

    Args:
        controls: the controls.
        adapter: the pipeline's family.

    Returns:
        The controls, each with the preset ``"none"``; those of no registered name as they are.
    """
    return tuple(_filled(control, adapter) for control in controls)


def filled(control: Control, values: Mapping[str, Any]) -> Control:
    """Return a control whose open fields have given values.

    Args:
        control: the control.
        values: value by field.

    Returns:
        A control with the preset ``"none"``.

    Example:
        >>> from t2ictl.processors import AttendAndExcite
        >>> made = filled(AttendAndExcite(strength=0.5), {"strength": 2.0, "refinement": None})
        >>> made.strength, made.refinement
        (0.5, None)
    """
    return _with(control, _left_open(control, values))


def _with(control: Control, taken: Mapping[str, Any]) -> Control:
    own = {each.name: getattr(control, each.name) for each in fields(control) if each.name not in taken}
    return type(control)(**{**own, **taken, "preset": "none"})


@functools.cache
def _say_once(message: str) -> None:
    _log.info(message)


def _left_open(control: Control, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of fields, or of fields of these, that a control has not chosen itself.

    A part of another kind than the preset's (raw steps in the place of normalized ones) is taken as it is: its numbers
    mean something else.
    """
    given = given_fields(control)
    taken: dict[str, Any] = {}
    for name, value in values.items():
        chosen = {path.removeprefix(f"{name}.") for path in given if path.startswith(f"{name}.")}
        own = {inner: getattr(getattr(control, name), inner) for inner in chosen if "." not in inner}
        if name in given or (chosen and not isinstance(value, Mapping)):
            continue
        if not chosen:
            taken[name] = value
        elif not any(isinstance(each, str) and value.get(inner, each) != each for inner, each in own.items()):
            taken[name] = {**value, **own}
    return taken


def _filled(control: Control, adapter: Adapter) -> Control:
    preset = vars(control).get("preset", "none")  # one with a constructor of its own has no fields to fill in
    if preset == "none":
        return control
    made, measured = control, None
    if type(control).paper:
        measured = measured_settings(adapter.denoiser, control.name) if preset == "auto" else None
        source, values = measured or ("the published form", control.published_settings if preset == "published" else {})
        if taken := _left_open(control, values):
            _say_once(f"{control.name} takes {', '.join(sorted(taken))} from {source}.")
        made = _with(control, taken)
    if preset != "auto" or adapter.port.component != "transformer":
        return made
    chosen = {*given_fields(control), *(measured[1] if measured else ())}
    return for_transformer(made, chosen, is_flow=is_flow(adapter.pipe.scheduler))


def for_transformer(control: Control, chosen: Collection[str], *, is_flow: bool) -> Control:
    """Return a control with defaults that mean the same on a transformer as on the U-Nets that they were made for.

    Windows and thresholds of published methods are shares of Stable Diffusion's evenly spaced steps. Flow models reach
    the same noise after another share of theirs, so they count in noise. Published steps are multiples of a gradient,
    whose size is that of another model; here they are shares of the latent's norm. Neither is measured on released
    weights yet (docs/transformers.md).

    Args:
        control: the control.
        chosen: fields that stay as they are, or fields of these behind a dot.
        is_flow: whether the schedule is that of a flow model.

    Returns:
        A control of the same kind.
    """
    taken: dict[str, Any] = {}
    for name in [each.name for each in fields(control) if each.name not in chosen]:
        value = getattr(control, name)
        made = _converted(value, is_flow=is_flow)
        # A part that somebody chose has its meaning; what it does not touch is still open.
        if made is not value and not {f"{name}.{part}" for part in _CONVERTED[type(value)]} & set(chosen):
            taken[name] = made
    if not taken:
        return control
    _say_once(f"{control.name} has other defaults on a transformer: {', '.join(sorted(taken))} (docs/transformers.md).")
    made = copy.copy(control)  # a loss of the user's own is no field
    vars(made).update(taken)
    return made


#: Fields whose meaning changes with the conversion.
_CONVERTED: dict[type, tuple[str, ...]] = {
    StepSize: ("mode", "scale", "final_scale_sq"),
    Window: ("start", "stop", "by"),
    Refinement: ("thresholds", "by"),
}


def _converted(value: Any, *, is_flow: bool) -> Any:
    """A step, window or refinement for a transformer; anything else, and what is one already, as it is."""
    if isinstance(value, StepSize) and value.mode == "raw":
        return replace(value, mode="normalized", scale=STEP, final_scale_sq=1.0)
    if is_flow and isinstance(value, Window) and value.by != "noise" and (value.start, value.stop) != (0.0, 1.0):
        return Window(start=_level(value.start), stop=_level(value.stop), by="noise")
    if is_flow and isinstance(value, Refinement) and value.by != "noise":
        thresholds = tuple((round(level_at_fraction(share), 2), least) for share, least in value.thresholds)
        return replace(value, thresholds=thresholds, by="noise")
    return value


def _level(share: float) -> float:
    """Noise level at a border of a window; the ends of the schedule are those of every schedule."""
    return round(level_at_fraction(share), 2) if 0 < share < 1 else 1 - share

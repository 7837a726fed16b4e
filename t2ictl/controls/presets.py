"""Presets: settings that were measured for a model, known by what it is, and what fills in the fields left open."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

import torch
from torch import nn

from t2ictl.controls.base import Control
from t2ictl.families.base import Adapter
from t2ictl.settings.fields import given_fields

__all__ = ["MeasuredModel", "filled", "measured_models", "measured_settings", "with_preset"]

_log = logging.getLogger("t2ictl")

#: Folders that hold a table of measured settings.
_TABLES = ("t2ictl.shapes",)
# A model in another precision is the same model; one that was trained on, even shortly, is another.
_TOLERANCE = 1e-2


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
    if preset == "none" or not type(control).paper:
        return control
    measured = measured_settings(adapter.denoiser, control.name) if preset == "auto" else None
    source, values = measured or ("the published form", control.published_settings if preset == "published" else {})
    if taken := _left_open(control, values):
        _say_once(f"{control.name} takes {', '.join(sorted(taken))} from {source}.")
    return _with(control, taken)

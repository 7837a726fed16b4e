"""Arms: what is compared. The plain model, controls, and two that keep a control honest.

``plain``
    The untouched model.
A control's name, or a label with settings
    That control, or those controls.
``random:<arm>``
    Latents move where that arm moved them, as far, in a random direction. What such a move gains is
    owed to moving at all, and not to the direction.
``best-of-N``
    The best of N plain images. The judge that reports selects, so it is an oracle: what more samples could
    give with perfect selection.
``best-of-N:<arm>``
    Of the same N images the one that the arm's own loss finds best: what the loss is worth as a selector.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from t2ictl import Control, list_controls
from t2ictl.benchmarks.runs.plan import ArmSpec, ControlSpec
from t2ictl.errors import BadSetting

__all__ = ["Arm", "control_settings", "measurable", "resolve_arms"]

PLAIN = "plain"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RANDOM = re.compile(r"random:(?P<base>.+)")
_BEST = re.compile(r"best-of-(?P<count>[1-9]\d*)(:(?P<base>.+))?")
_ORDER = ("plain", "control", "random", "best")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm.

    Args:
        label: its name in rows and tables.
        kind: ``"plain"``, ``"control"``, ``"random"`` or ``"best"``.
        controls: what acts; of a random arm and of a selection by loss, the controls of the arm behind it.
        base: label of the arm behind a random arm or a selection by loss.
        candidates: number of plain images to choose from.
    """

    label: str
    kind: Literal["plain", "control", "random", "best"]
    controls: tuple[Control, ...] = ()
    base: str | None = None
    candidates: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the arm with all settings as plain JSON data.

        Returns:
            What a plan file holds of it.
        """
        return {
            "kind": self.kind,
            "controls": [control_settings(control) for control in self.controls],
            "base": self.base,
            "candidates": self.candidates,
        }


def control_settings(control: Control) -> dict[str, Any]:
    """Write a control with all its fields as plain JSON data.

    Args:
        control: a registered control.

    Returns:
        ``{"control": name, field: value, ...}``, as in the settings of an image.

    Example:
        >>> from t2ictl.processors import AttendAndExcite
        >>> control_settings(AttendAndExcite(strength=2.0))["strength"]
        2.0
    """
    return {"control": control.name, **TypeAdapter(type(control)).dump_python(control, mode="json")}


def measurable(controls: Iterable[Control]) -> tuple[Control, ...]:
    """Keep the controls whose losses can be read from the pass that makes the image.

    Args:
        controls: the controls of an arm.

    Returns:
        Those with losses on latents; losses on text rows need extra passes.
    """
    return tuple(control for control in controls if control.has_losses and not control.moves_words)


def resolve_arms(specs: Mapping[str, ArmSpec | None]) -> tuple[Arm, ...]:
    """Turn labels and settings into arms.

    Args:
        specs: settings by label; None for a control with its defaults, and for the arms that have none.

    Returns:
        The arms, each after those that it needs.

    Raises:
        BadSetting: for an unknown arm, control or setting, or an arm whose base is not among them.

    Example:
        >>> [arm.label for arm in resolve_arms({"best-of-2": None, "plain": None})]
        ['plain', 'best-of-2']
    """
    controls = {
        label: _controls(label, spec) for label, spec in specs.items() if label != PLAIN and _kind(label) == "control"
    }
    arms = [_arm(label, spec, controls) for label, spec in specs.items()]
    _check_names(arms)
    return tuple(sorted(arms, key=lambda arm: _ORDER.index(arm.kind)))


def _kind(label: str) -> str:
    if label == PLAIN:
        return "plain"
    return "random" if _RANDOM.fullmatch(label) else "best" if _BEST.fullmatch(label) else "control"


def _arm(label: str, spec: ArmSpec | None, controls: Mapping[str, tuple[Control, ...]]) -> Arm:
    if label in controls:
        return Arm(label=label, kind="control", controls=controls[label])
    if spec is not None:
        raise BadSetting(f"The arm {label!r} takes no settings.", "Give them to the control that it is about.")
    if label == PLAIN:
        return Arm(label=label, kind="plain")
    random, best = _RANDOM.fullmatch(label), _BEST.fullmatch(label)
    base = random["base"] if random else best["base"] if best else None
    if base is not None and base not in controls:
        raise BadSetting(
            f"The arm {label!r} needs the arm {base!r}, which is not one of this run with a control.",
            f"Add {base!r} to the arms.",
        )
    behind = controls.get(base or "", ())
    if best and base is not None and not measurable(behind):
        raise BadSetting(
            f"The arm {label!r} cannot choose: {base!r} has no losses, or such that need extra passes.",
            f"Leave it out; best-of-{best['count']} chooses by the judge.",
        )
    if random and not any(control.has_losses for control in behind):
        raise BadSetting(
            f"The arm {label!r} has nothing to repeat: {base!r} moves nothing, it edits attention.",
            "Leave it out; plain is what it would be.",
        )
    if random:
        return Arm(label=label, kind="random", controls=behind, base=base)
    assert best is not None
    return Arm(label=label, kind="best", controls=behind, base=base, candidates=int(best["count"]))


def _controls(label: str, spec: ArmSpec | None) -> tuple[Control, ...]:
    if not _LABEL.fullmatch(label):
        raise BadSetting(
            f"{label!r} is no arm.",
            "Arms are plain, a control, random:<arm>, best-of-N, best-of-N:<arm>, or a label of letters, digits, _ . - "
            "with settings.",
        )
    listed = (ControlSpec(control=label),) if spec is None else spec.listed()
    return tuple(_control(label, each) for each in listed)


def _control(label: str, spec: ControlSpec) -> Control:
    known = list_controls()
    if spec.control not in known:
        raise BadSetting(
            f"The arm {label!r} names no control: there is no {spec.control!r}.",
            f"Arms are plain, random:<arm>, best-of-N, best-of-N:<arm>, or a control: {', '.join(known)}.",
        )
    return known[spec.control](**spec.settings)


def _check_names(arms: Iterable[Arm]) -> None:
    """Folders of two arms must differ also where capitals do not count."""
    seen: dict[str, str] = {}
    for arm in arms:
        other = seen.setdefault(arm.label.lower(), arm.label)
        if other != arm.label:
            raise BadSetting(f"The arms {other!r} and {arm.label!r} differ in capitals only.", "Rename one.")

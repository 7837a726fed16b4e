"""What settings say about an image: request, controls, scheduler, model, and which image of its call it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from t2ictl.controls.base import Control
from t2ictl.controls.registry import control_from_dict
from t2ictl.errors import BadSetting, shown
from t2ictl.families.scheduler_files import RecordedScheduler
from t2ictl.settings.arguments import read_arguments
from t2ictl.settings.files import read_settings, require_json
from t2ictl.settings.legacy import upgraded
from t2ictl.settings.request import Request

__all__ = ["Recorded"]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An image's settings, read and checked.

    Args:
        request: what the pipeline was asked for.
        controls: under which controls.
        image: which image of the call it is, from 0; None where the settings do not say, as in a JSON file for all.
        arguments: further arguments of the call.
        missing: names of arguments that were too large for the settings.
        scheduler: the scheduler, or None where the settings do not say.
        model: the model's name; empty where they do not say.
        provenance: what the settings say about pipeline, parser and versions.
    """

    request: Request
    controls: tuple[Control, ...]
    image: int | None
    arguments: dict[str, Any]
    missing: tuple[str, ...]
    scheduler: RecordedScheduler | None
    model: str
    provenance: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, settings: str | Path | Mapping[str, Any]) -> Recorded:
        """Read settings.

        Args:
            settings: a PNG or JSON file that this library wrote, or the settings themselves.

        Returns:
            What they say.

        Raises:
            BadSetting: if there are none, or one of them is unknown, of another form or out of range.
        """
        if not isinstance(settings, (str, Path, Mapping)):
            raise BadSetting(f"{shown(settings)} holds no settings.", "Give a PNG or JSON file, or the settings.")
        data = upgraded(settings) if isinstance(settings, Mapping) else read_settings(settings)
        asked, listed = data.get("request"), data.get("controls")
        if not isinstance(asked, Mapping) or not isinstance(listed, (list, tuple)):
            absent = "request" if not isinstance(asked, Mapping) else "controls"
            raise BadSetting(f"The settings have no '{absent}'.", "Use a file that `t2ictl generate` wrote.")
        if not all(isinstance(each, Mapping) for each in listed):
            raise BadSetting("A control in the settings is no JSON object.", "Use a file that `t2ictl generate` wrote.")
        request = request_from(asked)
        arguments, missing = read_arguments(data.get("arguments", {}))
        ours = next((name for name in (*arguments, *missing) if name in _NO_ARGUMENTS), None)
        if ours is not None:
            raise BadSetting(f"The settings have an argument {ours!r}.", "Use a file that `t2ictl generate` wrote.")
        facts = {part: data.get(part) for part in ("pipeline", "parser", "versions")}
        known = {part: dict(value) for part, value in facts.items() if isinstance(value, Mapping)}
        require_json(known, "settings")
        return cls(
            request=request,
            controls=tuple(control_from_dict(each) for each in listed),
            image=_image(data.get("image"), request),
            arguments=arguments,
            missing=tuple(missing),
            scheduler=_scheduler(known.get("pipeline", {})),
            model=str(known.get("pipeline", {}).get("model") or ""),
            provenance=known,
        )

    @property
    def number(self) -> int:
        """Which image of the call is meant; the first where the settings do not say."""
        return self.image or 0

    def asked(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to ask a pipeline for.

        Args:
            changes: fields of the request and arguments of the call that are otherwise than in the settings.

        Returns:
            Value by name, the prompt among them.

        Raises:
            BadSetting: if an argument is neither in the settings nor in ``changes``, or the number of the image is
                that of none with these changes.
        """
        missing = [name for name in self.missing if name not in changes]
        if missing:
            raise BadSetting(
                f"The settings do not hold {', '.join(missing)}, which was too large for them.",
                f"In Python: t2ictl.replay(pipe, file, {missing[0]}=...).",
            )
        asked = {each.name: getattr(self.request, each.name) for each in fields(self.request)}
        asked |= {**self.arguments, **changes}
        request = Request(**{name: value for name, value in asked.items() if name in _FIELDS})
        _image(self.image, request)
        return asked


_FIELDS = frozenset(each.name for each in fields(Request))
#: What no settings say of the call of a pipeline: fields of a request, and what ``generate`` takes for itself.
_NO_ARGUMENTS = _FIELDS | {"pipe", "controls", "record", "on_step", "is_cancelled", "checkpointing"}


def request_from(data: Mapping[str, Any]) -> Request:
    """Read a request of settings, where lists stand for tuples.

    Args:
        data: its fields.

    Returns:
        The request.

    Raises:
        BadSetting: if a field is unknown, or has a bad value.
    """
    unknown = sorted(str(name) for name in set(data) - _FIELDS)
    if unknown:
        raise BadSetting(f"The settings have a request with {unknown}.", "Was this written by a newer version?")
    prompt = data.get("prompt", "")
    return Request(**{**data, "prompt": tuple(prompt) if isinstance(prompt, list) else prompt})


def _image(value: object, request: Request) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < request.images:
        raise BadSetting(
            f"The settings are of image {shown(value, 40)} of {request.images}.",
            f"Images count from 0 to {request.images - 1}.",
        )
    return value


def _scheduler(pipeline: Mapping[str, Any]) -> RecordedScheduler | None:
    name, config = pipeline.get("scheduler"), pipeline.get("scheduler_config")
    if not isinstance(name, str) or not isinstance(config, Mapping):
        return None
    return RecordedScheduler(name, dict(config))

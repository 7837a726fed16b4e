"""What the options of the command line ask for: a request, controls, a file to make again, a place to write to."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2ictl.controls.base import Control
from t2ictl.controls.recorded import Recorded
from t2ictl.controls.registry import control_from_dict, control_to_dict, get_control
from t2ictl.errors import BadSetting
from t2ictl.settings.request import Request
from t2ictl.shapes.embedded import MODELS

__all__ = ["Job", "check_place", "controls_of", "printable", "read_job", "request_of", "size_of"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What ``generate`` shall make.

    Args:
        request: what the pipeline is asked for.
        controls: under which controls.
        model: which model makes it.
        recorded: the file that is made again, or None.
        changes: what is asked for otherwise than in the file.
        notes: what was changed, a line each, for the user.
    """

    request: Request
    controls: tuple[Control, ...]
    model: str
    recorded: Recorded | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def image(self) -> int | None:
        """Which image of the call is written; None for all."""
        return None if self.recorded is None else self.recorded.image


def read_job(
    prompt: str | None,
    again: Path | None,
    options: Mapping[str, Any],
    said: frozenset[str],
    control: Sequence[str],
    settings: Sequence[str],
    preset: str = "auto",
) -> Job:
    """Read what to make, from the options alone or from a file that they change.

    Args:
        prompt: the prompt, unless ``again`` is given.
        again: a PNG or JSON file of this library.
        options: value by name: ``model``, ``seed``, ``steps``, ``size``, ``guidance_scale``, ``negative_prompt``,
            ``parser``.
        said: names of the options that were on the command line; they come before what a file says.
        control: control names.
        settings: ``control.field=value``.
        preset: of the controls that are named.

    Returns:
        The job.

    Raises:
        BadSetting: for neither or both of prompt and file, a bad value, or a file whose model has to be named.
    """
    if (prompt is None) == (again is None):
        raise BadSetting("There must be a prompt or --from FILE, and not both.", 't2ictl generate "a red circle"')
    asked = {name: value for name, value in options.items() if name not in ("model", "size")}
    if again is None:
        request = request_of(str(prompt), size=options["size"], **asked)
        return Job(
            request=request, controls=tuple(controls_of(control, settings, preset=preset)), model=options["model"]
        )
    recorded = Recorded.read(again)
    changes = {name: value for name, value in asked.items() if name in said}
    if "size" in said:
        changes["width"], changes["height"] = size_of(options["size"])
    recorded.asked(changes)
    controls = controls_of(control, settings, recorded.controls, preset)
    notes = [f"{name} {value!r:.80} (file: {getattr(recorded.request, name)!r:.80})" for name, value in changes.items()]
    notes += ["other controls than in the file"] if control else ["controls with --set"] if settings else []
    model = _model_of(recorded, again, options["model"], is_said="model" in said)
    return Job(
        request=recorded.request,
        controls=tuple(controls),
        model=model,
        recorded=recorded,
        changes=changes,
        notes=(f"{again.name}: options change what the file says: {', '.join(notes)}.",) if notes else (),
    )


def _model_of(recorded: Recorded, again: Path, model: str, *, is_said: bool) -> str:
    """The model that was named, or an embedded one of the file; another one that a file names is not fetched."""
    if is_said or not recorded.model:
        return model
    if recorded.model in MODELS:
        return recorded.model
    raise BadSetting(
        f"The image {again.name!r} was made by the model {recorded.model[:80]!r}.",
        "Name it with --model: its folder or hub id, or another model.",
    )


def request_of(
    prompt: str,
    *,
    seed: int,
    steps: int,
    size: str | None,
    guidance_scale: float | None,
    negative_prompt: str,
    parser: str,
) -> Request:
    """Read what the pipeline shall be asked for.

    Args:
        prompt: the prompt.
        seed: seed of the first image.
        steps: denoising steps.
        size: ``WIDTHxHEIGHT``.
        guidance_scale: strength of guidance; None for what the pipeline has by itself.
        negative_prompt: the negative prompt.
        parser: how objects are found.

    Returns:
        The request.

    Raises:
        BadSetting: for a malformed size, or a value out of range.
    """
    width, height = size_of(size)
    own: dict[str, Any] = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    return Request(
        prompt=prompt,
        seed=seed,
        steps=steps,
        width=width,
        height=height,
        negative_prompt=negative_prompt,
        parser=parser,
        **own,
    )


def printable(path: Path) -> str:
    """Return a path as text that any stream can print; bytes that are no text as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """Read ``WIDTHxHEIGHT``.

    Args:
        text: the option, or None where it was not given.

    Returns:
        Width and height (pixels), or twice None.

    Raises:
        BadSetting: if it has another form.

    Example:
        >>> size_of("64x96")
        (64, 96)
    """
    if text is None:
        return None, None
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text.lower())
    if found is None:
        raise BadSetting(f"The size {text[:40]!r} is not WIDTHxHEIGHT.", "For example --size 64x96.")
    return int(found[1]), int(found[2])


def controls_of(
    names: Sequence[str], settings: Sequence[str], recorded: Sequence[Control] = (), preset: str = "auto"
) -> list[Control]:
    """Make the controls named on the command line.

    Args:
        names: control names, in order.
        settings: ``control.field=value``; the value is JSON, or text where it is not. A field
            of a field is reached by a further dot (``attention_segregation.window.stop=0.5``).
        recorded: controls of a file, which are used where none are named; settings change them.
        preset: of the controls that are named: ``"auto"``, ``"published"`` or ``"none"``.

    Returns:
        The controls.

    Raises:
        BadSetting: for an unknown control or field, a control named twice, a value out of range, or a setting or
            preset of a control that is not used.

    Example:
        >>> controls_of(["attention_segregation"], ["attention_segregation.strength=0.5"])[0].strength
        0.5
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadSetting(
            f"--control {twice} is given twice.", "Name a control once; in Python a list may hold two of one class."
        )
    if preset != "auto" and not names:
        raise BadSetting(f"--preset {preset} is for no control.", "Add --control NAME.")
    data: dict[str, dict[str, Any]] = {name: {"control": get_control(name).name, "preset": preset} for name in names}
    if not names and recorded:
        if not settings:
            return list(recorded)
        data = {control.name: control_to_dict(control) for control in recorded}
        if len(data) < len(recorded):
            raise BadSetting("The file has a control twice, so --set does not say which is meant.", "Name them anew.")
    for each in settings:
        path, equals, value = each.partition("=")
        name, *inner = path.split(".")
        if not equals or not inner:
            raise BadSetting(f"--set {each!r} is not control.field=value.", "--set attention_segregation.strength=1.5")
        if name not in data:
            raise BadSetting(f"--set {each!r} is for a control that is not used.", f"Add --control {name}.")
        _put(data[name], inner, value)
    return [control_from_dict(each) for each in data.values()]


def _put(into: dict[str, Any], path: list[str], value: str) -> None:
    for step in path[:-1]:
        inner = into.get(step)
        into[step] = dict(inner) if isinstance(inner, dict) else {}
        into = into[step]
    try:
        into[path[-1]] = json.loads(value)
    except (ValueError, RecursionError):
        into[path[-1]] = value


def check_place(path: Path, ending: str = "") -> None:
    """Find out before the work whether its result can be written.

    Args:
        path: the file to write, or without an ending the folder.
        ending: the ending that the file must have.

    Raises:
        BadSetting: if the folder that shall hold it does not exist or cannot be written to, there is a folder in place
            of the file or a file in place of the folder, or the ending is another one.
    """
    if ending and path.suffix.lower() != ending:
        raise BadSetting(f"{path.name!r} does not end in {ending}.", f"Name it {path.stem or 'out'}{ending}.")
    try:
        parent = path.absolute().parent
        if not parent.is_dir():
            raise BadSetting(f"The folder {str(parent)!r} for {path.name!r} does not exist.", "Create it first.")
        if path.exists() and path.is_dir() == bool(ending):
            kind = "folder" if ending else "file"
            raise BadSetting(f"{str(path)!r} is a {kind} already.", "Choose another name with --out.")
        _try_to_write((parent if ending or not path.exists() else path), path.name)
    except (OSError, ValueError) as error:
        if isinstance(error, BadSetting):
            raise
        raise BadSetting(f"{str(path)[:80]!r} cannot be written: {error}.", "Choose another --out.") from None


def _try_to_write(folder: Path, name: str) -> None:
    """Make a file in a folder and remove it again; its name is as long as the longest that will be written."""
    probe = folder / f".{secrets.token_hex(4)}{name}.compare.png"
    try:
        with probe.open("xb"):
            pass
    finally:
        probe.unlink(missing_ok=True)

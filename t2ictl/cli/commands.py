"""What the command line does. Apart from it, so that ``t2ictl --help`` loads no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from t2ictl.controls.base import Control
from t2ictl.controls.presets import measured_models
from t2ictl.controls.registry import (
    broken_controls,
    control_from_dict,
    control_to_dict,
    get_control,
    list_controls,
)
from t2ictl.errors import BadSetting
from t2ictl.families.loading import load
from t2ictl.generation import Generation, Request, generate
from t2ictl.maps.figures import heatmap_grid, image_grid, image_uri
from t2ictl.maps.pages import render
from t2ictl.maps.recorder import POINTING_LAYERS, Recording
from t2ictl.session.checkpoints import Checkpointing, check_checkpointing
from t2ictl.settings.fields import describe
from t2ictl.settings.files import read_settings, write_json, write_text

__all__ = [
    "check_checkpointing",
    "check_place",
    "controls_of",
    "generate_files",
    "map_files",
    "open_model",
    "print_controls",
    "request_of",
    "size_of",
]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def open_model(name: str, device: str | None, dtype: str) -> Any:
    """Load a pipeline for a command; its progress bars go to stderr.

    Args:
        name: ``"shapes"``, a folder, or a hub id.
        device: where to put it; None for CUDA where there is one.
        dtype: name of a precision.

    Returns:
        The pipeline.

    Raises:
        BadSetting: for an unknown precision, device or model.
    """
    if dtype not in DTYPES:
        raise BadSetting(f"There is no precision {dtype!r}.", f"Use one of {', '.join(DTYPES)}.")
    try:
        place = None if device is None else str(torch.device(device))
    except RuntimeError:
        raise BadSetting(f"There is no device {device!r}.", "Use cpu, cuda, cuda:1, ...") from None
    if place is not None and place.startswith("cuda") and not torch.cuda.is_available():
        raise BadSetting(f"The device {device!r} is not there.", "`t2ictl doctor` lists the devices; use cpu.")
    transformers.utils.logging.disable_progress_bar()  # one bar, that of the denoising, is enough
    diffusers.utils.logging.disable_progress_bar()
    pipe = load(name, dtype=DTYPES[dtype], device=place)
    diffusers.utils.logging.enable_progress_bar()
    return pipe


def request_of(
    prompt: str | None,
    again: Path | None,
    seed: int,
    steps: int,
    size: str | None,
    guidance_scale: float,
    negative_prompt: str,
    parser: str,
) -> Request:
    """Read what the pipeline shall be asked for, from the options or from an earlier file.

    Args:
        prompt: the prompt, unless ``again`` is given.
        again: a PNG or JSON file of this library; then the other options are not used.
        seed: seed of the first image.
        steps: denoising steps.
        size: ``WIDTHxHEIGHT``.
        guidance_scale: strength of guidance.
        negative_prompt: the negative prompt.
        parser: how objects are found.

    Returns:
        The request.

    Raises:
        BadSetting: for a malformed size, or neither or both of prompt and file.
    """
    if (prompt is None) == (again is None):
        raise BadSetting("There must be a prompt or --from FILE, and not both.", 't2ictl generate "a red circle"')
    if again is not None:
        data = read_settings(again)
        if "request" not in data:
            raise BadSetting(f"{again} holds no request.", "Use a file that `t2ictl generate` wrote.")
        asked = data["request"]
        return Request(**{**asked, "prompt": _as_prompt(asked.get("prompt", ""))})
    assert prompt is not None
    width, height = size_of(size)
    return Request(
        prompt=prompt,
        seed=seed,
        steps=steps,
        width=width,
        height=height,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        parser=parser,
    )


def _as_prompt(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)


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
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise BadSetting(f"The size {text!r} is not WIDTHxHEIGHT.", "For example --size 64x96.")
    return int(parts[0]), int(parts[1])


def controls_of(
    names: Sequence[str], settings: Sequence[str], again: Path | None, preset: str = "auto"
) -> list[Control]:
    """Make the controls named on the command line.

    Args:
        names: control names, in order.
        settings: ``control.field=value``; the value is JSON, or text where it is not. A field
            of a field is reached by a further dot (``attention_segregation.window.stop=0.5``).
        again: a file whose controls are used if none are named.
        preset: of the controls that are named: ``"auto"``, ``"published"`` or ``"none"``.

    Returns:
        The controls.

    Raises:
        BadSetting: for an unknown control or field, a control named twice, a value out of range, or a setting of a
            control that is not used.

    Example:
        >>> controls_of(["attention_segregation"], ["attention_segregation.strength=0.5"], None)[0].strength
        0.5
    """
    if not names and again is not None:
        return [control_from_dict(each) for each in read_settings(again).get("controls", [])]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadSetting(
            f"--control {twice} is given twice.", "Name a control once; in Python a list may hold two of one class."
        )
    data: dict[str, dict[str, Any]] = {name: {"control": get_control(name).name, "preset": preset} for name in names}
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
        into = into.setdefault(step, {})
    try:
        into[path[-1]] = json.loads(value)
    except json.JSONDecodeError:
        into[path[-1]] = value


def check_place(path: Path, ending: str = "") -> None:
    """Find out before the work whether its result can be written.

    Args:
        path: the file or folder to write.
        ending: the ending that it must have.

    Raises:
        BadSetting: if the folder that shall hold it does not exist, or the ending is another one.
    """
    parent = path.absolute().parent
    if not parent.is_dir():
        raise BadSetting(f"The folder {str(parent)!r} for {path.name!r} does not exist.", "Create it first.")
    if ending and path.suffix.lower() != ending:
        raise BadSetting(f"{path.name!r} does not end in {ending}.", f"Name it {path.stem}{ending}.")


def _run(pipe: Any, request: Request, controls: Sequence[Control], **options: Any) -> Generation:
    asked = {each.name: getattr(request, each.name) for each in fields(request)}
    return generate(pipe, asked.pop("prompt"), controls, **asked, **options)


def _summary(result: Generation) -> dict[str, Any]:
    return {
        "controls": [each["control"] for each in result.settings["controls"]],
        "cost": result.cost.to_dict(),
        "updates": len(result.trace),
        "loss_first": None if not result.trace else result.trace[0].total.tolist(),
        "loss_last": None if not result.trace else result.trace[-1].total.tolist(),
    }


def generate_files(
    pipe: Any,
    request: Request,
    controls: Sequence[Control],
    out: Path,
    *,
    compare: bool,
    checkpointing: Checkpointing = "off",
    as_json: bool,
) -> None:
    """Make the images of a request and write them.

    Args:
        pipe: the pipeline.
        request: what to make.
        controls: under which controls.
        out: the PNG; further images get a number before the ending.
        compare: also write the plain image of the same seed, and both side by side.
        checkpointing: less memory for more work, as in :func:`t2ictl.controlled`.
        as_json: print a summary as JSON.
    """
    result = _run(pipe, request, controls, checkpointing=checkpointing)
    files = [result.save(_numbered(out, number), number) for number in range(len(result.images))]
    summary: dict[str, Any] = {"files": [str(each) for each in files], **_summary(result)}
    if compare:
        plain = _run(pipe, request, [])
        beside = [out.with_name(f"{each.stem}.plain{each.suffix}") for each in files]
        sheets = [out.with_name(f"{each.stem}.compare{each.suffix}") for each in files]
        for number, (path, sheet) in enumerate(zip(beside, sheets, strict=True)):
            plain.save(path, number)
            image_grid([("plain", plain.images[number]), ("controlled", result.images[number])]).save(sheet)
        summary |= {"plain": [str(each) for each in beside], "compare": [str(each) for each in sheets]}
    _report(summary, as_json)


def _numbered(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def map_files(
    pipe: Any,
    request: Request,
    controls: Sequence[Control],
    words: Sequence[str],
    layers: Sequence[str],
    out: Path,
    *,
    as_json: bool,
) -> None:
    """Make an image and write the attention map of each word.

    Args:
        pipe: the pipeline.
        request: what to make.
        controls: under which controls.
        words: words or phrases; empty for every word.
        layers: filter of the layers; empty for those whose maps together point best.
        out: the folder: ``image.png``, ``maps.png`` (all on one scale), ``maps.json`` (the values) and ``maps.html``
            (every step and block of layers, and the words at the position that one clicks on).
        as_json: print a summary as JSON.
    """
    result = _run(
        pipe, request, controls, record=Recording(words=tuple(words), layers=tuple(layers) or POINTING_LAYERS)
    )
    assert result.record is not None
    names = list(words) or result.record.names()
    found = {name: result.record.map(name) for name in names}
    out.mkdir(exist_ok=True)
    image = result.save(out / "image.png")
    heatmap_grid(result.image, found).save(out / "maps.png")
    values = {name: [[round(value, 6) for value in row] for row in map_YX.tolist()] for name, map_YX in found.items()}
    write_json(out / "maps.json", {"schema": 1, "settings": result.settings, "maps": values})
    page = render(
        "maps.html.j2",
        prompt=result.record.prompts[0].text,
        maps=result.record.to_dict(names),
        image=image_uri(result.image),
        settings=json.dumps(result.settings, indent=2, ensure_ascii=False),
    )
    files = [image, out / "maps.png", out / "maps.json", write_text(out / "maps.html", page)]
    summary = {"files": [str(path) for path in files], **_summary(result)}
    _report(summary, as_json)


def _report(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    for path in (*summary["files"], *summary.get("plain", ()), *summary.get("compare", ())):
        print(path)
    cost = summary["cost"]
    print(
        f"{cost['forwards']} forward rows, {cost['extra_forwards']} more and {cost['backwards']} backwards "
        f"for {summary['updates']} updates, {cost['seconds']:.1f} s",
        file=sys.stderr,
    )


def print_controls(name: str | None, *, as_json: bool) -> None:
    """List the controls, or the fields of one.

    Args:
        name: a control, or None for all.
        as_json: print JSON: the schema of the fields.
    """
    chosen = list_controls() if name is None else {name: get_control(name)}
    if as_json:
        print(json.dumps({key: {"paper": cls.paper, "fields": describe(cls)} for key, cls in chosen.items()}, indent=2))
        return
    for key, cls in chosen.items():
        print(f"{key}\n  {(cls.__doc__ or '').strip().splitlines()[0]}\n  {cls.paper}")
        if name is not None:
            _print_fields(cls)
            _print_presets(cls)
    for module, error in broken_controls().items():
        print(f"{module} could not be imported: {error}", file=sys.stderr)


def _print_presets(cls: type[Control]) -> None:
    """What fields that are left open mean: measured for a model, and as published."""
    for model in measured_models():
        if cls.name in model.settings:
            print(f"  --preset auto on {model.name} ({model.source}): {json.dumps(model.settings[cls.name])}")
    default, published = control_to_dict(cls(preset="none")), control_to_dict(cls.published())
    differing = {field: value for field, value in published.items() if default.get(field) != value}
    print(f"  --preset published: {json.dumps(differing) if differing else 'the defaults'}")


def _print_fields(cls: type[Control]) -> None:
    texts = describe(cls)["properties"]
    for each in fields(cls):
        text = texts[each.name]
        default = getattr(each.default, "default", each.default)
        limits = ", ".join(
            f"{word} {text[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in text
        )
        choices = ", ".join(map(str, text.get("enum", ())))
        notes = "; ".join(part for part in (limits, choices) if part)
        shown = "" if default is MISSING else f" = {default!r}"
        print(f"    {each.name}{shown}\n      {text.get('description', '')}{f' ({notes})' if notes else ''}")

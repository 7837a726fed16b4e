"""What the command line does. Apart from it, so that ``t2ictl --help`` loads no torch."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import diffusers
import transformers

from t2ictl.cli.jobs import Job, check_place, controls_of, printable, read_job, request_of, size_of
from t2ictl.controls.base import Control
from t2ictl.controls.presets import measured_models
from t2ictl.controls.registry import broken_controls, control_to_dict, get_control, list_controls
from t2ictl.errors import BadSetting, NotRecorded
from t2ictl.families import find_adapter, parse
from t2ictl.families.loading import load
from t2ictl.generation import Generation, generate, replay
from t2ictl.maps.depth import pointing_by_layer
from t2ictl.maps.figures import heatmap_grid, image_grid, image_uri
from t2ictl.maps.pages import render
from t2ictl.maps.recorder import POINTING_LAYERS, Recording
from t2ictl.session.checkpoints import Checkpointing, check_checkpointing
from t2ictl.settings.fields import describe, given_fields
from t2ictl.settings.files import write_json, write_text
from t2ictl.settings.request import Request

__all__ = [
    "check_checkpointing",
    "check_place",
    "controls_of",
    "generate_files",
    "map_files",
    "open_model",
    "print_controls",
    "read_job",
    "request_of",
    "size_of",
]


def open_model(name: str, device: str | None, dtype: str, *, run_model_code: bool = False) -> Any:
    """Load a pipeline for a command; its progress bars go to stderr.

    Args:
        name: an embedded model, a folder, a file of weights, or a hub id.
        device: where to put it; None for CUDA where there is one.
        dtype: name of a precision.
        run_model_code: whether code that comes with the model may run.

    Returns:
        The pipeline.

    Raises:
        BadSetting: for an unknown precision, device or model.
    """
    transformers.utils.logging.disable_progress_bar()  # one bar, that of the denoising, is enough
    diffusers.utils.logging.disable_progress_bar()
    for handler in logging.getLogger("diffusers").handlers:
        handler.setFormatter(_OneLine())
    try:
        return load(name, dtype=dtype, device=device, run_model_code=run_model_code)
    finally:
        diffusers.utils.logging.enable_progress_bar()


class _OneLine(logging.Formatter):
    """What diffusers reports, as the warnings of the command line; it may quote a whole prompt."""

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        return f"warning: {text if len(text) <= 400 else f'{text[:400]}...'}"


def _run(pipe: Any, request: Request, controls: Sequence[Control], **options: Any) -> Generation:
    given = given_fields(request)  # the others are for the pipeline to choose
    asked = {each.name: getattr(request, each.name) for each in fields(request) if each.name in given}
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
    job: Job,
    out: Path,
    *,
    compare: bool,
    checkpointing: Checkpointing = "off",
    as_json: bool,
) -> None:
    """Make the images of a request and write them; of a file that is made again, the one that it holds.

    Args:
        pipe: the pipeline.
        job: what to make.
        out: the PNG; further images get a number before the ending.
        compare: also write the plain image of the same seed, and both side by side.
        checkpointing: less memory for more work, as in :func:`t2ictl.controlled`.
        as_json: print a summary as JSON.
    """
    result = _made(pipe, job, job.controls, checkpointing)
    numbers = range(len(result.images)) if job.image is None else [job.image]
    files = [result.save(_numbered(out, place), number) for place, number in enumerate(numbers)]
    summary: dict[str, Any] = {"files": [printable(each) for each in files], **_summary(result)}
    if compare:
        plain = _made(pipe, job, (), "off")
        beside = [out.with_name(f"{each.stem}.plain{each.suffix}") for each in files]
        sheets = [out.with_name(f"{each.stem}.compare{each.suffix}") for each in files]
        for number, path, sheet in zip(numbers, beside, sheets, strict=True):
            plain.save(path, number)
            image_grid([("plain", plain.images[number]), ("controlled", result.images[number])]).save(sheet)
        summary |= {"plain": [printable(each) for each in beside], "compare": [printable(each) for each in sheets]}
    _report(summary, as_json)


def _made(pipe: Any, job: Job, controls: Sequence[Control], checkpointing: Checkpointing) -> Generation:
    if job.recorded is None:
        return _run(pipe, job.request, controls, checkpointing=checkpointing)
    return replay(pipe, job.recorded, controls=controls, checkpointing=checkpointing, **job.changes)


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
    if not words and not parse(pipe, str(request.prompt), parser=request.parser).words():
        raise NotRecorded(f"The prompt {request.prompt!r:.80} has no words, so there is no map.", "Use words.")
    result = _run(
        pipe, request, controls, record=Recording(words=tuple(words), layers=tuple(layers) or _pointing_layers(pipe))
    )
    assert result.record is not None
    names = list(words) or result.record.names()
    found = {name: result.record.map(name) for name in names}
    values = {name: [[round(value, 6) for value in row] for row in map_YX.tolist()] for name, map_YX in found.items()}
    page = render(
        "maps.html.j2",
        prompt=result.record.prompts[0].text,
        maps=result.record.to_dict(names),
        image=image_uri(result.image),
        settings=json.dumps(result.settings, indent=2, ensure_ascii=False),
    )
    out.mkdir(exist_ok=True)
    image = result.save(out / "image.png")
    heatmap_grid(result.image, found).save(out / "maps.png")
    write_json(out / "maps.json", {"schema": 1, "settings": result.settings, "maps": values})
    files = [image, out / "maps.png", out / "maps.json", write_text(out / "maps.html", page)]
    summary = {"files": [printable(path) for path in files], **_summary(result)}
    _report(summary, as_json)


def _pointing_layers(pipe: Any) -> tuple[str, ...]:
    """The layers of a record for people: those that point best on U-Nets; elsewhere the family's own."""
    return POINTING_LAYERS if find_adapter(pipe).port.component == "unet" else ()


def is_by_depth(by: str) -> bool:
    """Return whether ``maps`` shall compare layers.

    Args:
        by: ``"word"`` or ``"depth"``.

    Raises:
        BadSetting: if it is neither.
    """
    if by not in ("word", "depth"):
        raise BadSetting(f"--by cannot be {by!r:.80}.", "Use word or depth.")
    return by == "depth"


def depth_table(
    pipe: Any,
    request: Request,
    controls: Sequence[Control],
    words: Sequence[str],
    layers: Sequence[str],
    images: int,
    *,
    as_json: bool,
) -> None:
    """Make images and print how well each layer points at words.

    Args:
        pipe: the pipeline.
        request: what to make.
        controls: under which controls.
        words: words or phrases; empty for the objects of the prompt.
        layers: filter of the layers; empty for all in which places attend to words.
        images: number of seeds, from that of the request on.
        as_json: print JSON.

    Raises:
        BadSetting: if the prompt has no objects and no words are named.
    """
    own = words or [phrase.noun.text for phrase in parse(pipe, str(request.prompt), parser=request.parser).objects()]
    if not own:
        raise BadSetting(f"The prompt {request.prompt!r:.80} has no objects.", "Name words with --words.")
    known = {layer.address.rpartition(".")[0]: layer for layer in find_adapter(pipe).word_layers}
    where = tuple(layers) or tuple(f"{name}.*" for name in known)
    every = Recording(words=tuple(own), layers=where, by="layer", per_step=False)
    given = {name: getattr(request, name) for name in given_fields(request)}
    records = []
    for number in range(images):
        made = _run(pipe, Request(**{**given, "seed": request.seed + number}), controls, record=every)
        assert made.record is not None
        records.append((made.record, own))
    found = pointing_by_layer(records)
    if as_json:
        print(json.dumps({"words": list(own), "images": images, "layers": [asdict(each) for each in found]}, indent=2))
        return
    print(f"{len(own)} words ({', '.join(own)}), {images} images")
    print(f"{'layer':34}{'depth':>7}{'pointing':>10}{'overlap':>9}{'spread':>8}{'attention':>11}")
    for each in found:
        overlap = "-" if each.overlap is None else f"{each.overlap:.2f}"
        shown = f"{each.pointing:>10.2f}{overlap:>9}{each.spread:>8.2f}{each.attention:>11.4f}"
        print(f"{each.layer:34}{known[each.layer].depth:>7.2f}{shown}")


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
        if cls.name in model.gains:
            gain, low, high = model.gains[cls.name]
            print(
                f"  without a setting on {model.name}: {gain:+.1f} points [{low:+.1f}, {high:+.1f}] of strictly right "
                f"images against plain{', worse than plain' if high < 0 else ''} ({model.gains_source})"
            )
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

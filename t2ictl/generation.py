"""One line from prompt to image, with everything that made the image in it."""

from __future__ import annotations

import html
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from t2ictl.controls.base import Control
from t2ictl.controls.recorded import Recorded
from t2ictl.controls.registry import control_to_dict
from t2ictl.errors import BadSetting, Cancelled, shown
from t2ictl.families import find_adapter
from t2ictl.families.calls import call_arguments, checked_request, named_refusals
from t2ictl.families.loading import model_name
from t2ictl.families.scheduler_files import scheduler_config, use_scheduler
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.maps.figures import image_uri
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import Recording
from t2ictl.prompts.grammar import parser_version
from t2ictl.session.cancelling import cancel_when
from t2ictl.session.checkpoints import Checkpointing
from t2ictl.session.cost import Cost
from t2ictl.session.session import controlled
from t2ictl.settings.arguments import written_arguments
from t2ictl.settings.files import SCHEMA_VERSION, versions, write_png
from t2ictl.settings.request import Request

__all__ = ["Generation", "Progress", "Request", "generate", "provenance", "replay"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a generation is, told after each denoising step.

    Args:
        step: steps done.
        total: steps in all.
        latents: the latents after this step; a copy must be taken to keep them.
    """

    step: int
    total: int
    latents: torch.Tensor


@dataclass(kw_only=True, repr=False)
class Generation:
    """Images, and everything that made them.

    Args:
        images: the images.
        settings: request, controls, pipeline and versions as plain JSON data.
        cost: the work it took.
        trace: losses and moves, one entry a pass of the inner loop.
        record: word maps, if they were asked for.
        number: which of the images is meant: the one of the file that was made again, else the first.
    """

    images: list[Image.Image]
    settings: dict[str, Any]
    cost: Cost
    trace: tuple[MoveTrace, ...]
    record: AttentionRecord | None = None
    number: int = 0

    def __repr__(self) -> str:
        names = ", ".join(each["control"] for each in self.settings["controls"]) or "no control"
        count = f"{len(self.images)} image" + ("s" if len(self.images) != 1 else "")
        return f"<Generation of {count} of {self.settings['request']['prompt']!r} with {names}>"

    def _repr_html_(self) -> str:
        """Show the images in a notebook."""
        shown = "".join(f'<img src="{image_uri(each)}" style="margin:2px">' for each in self.images)
        return f"<div>{shown}<p>{html.escape(repr(self))}</p></div>"

    @property
    def image(self) -> Image.Image:
        """The image that is meant: the first, unless a file with another one was made again."""
        return self.images[self.number]

    def save(self, path: str | Path, number: int | None = None) -> Path:
        """Write an image as PNG with its settings inside; all of it is written, or nothing.

        Args:
            path: the file to write.
            number: which image, from 0; None for ``self.image``.

        Returns:
            The path.

        Raises:
            BadSetting: if there is no such image, or the file cannot be written.
        """
        chosen = self.number if number is None else number
        if not -len(self.images) <= chosen < len(self.images):
            raise BadSetting(f"There is no image {chosen} of {len(self.images)}.", "Count from 0.")
        chosen %= len(self.images)
        return write_png(self.images[chosen], path, {**self.settings, "image": chosen})


def generate(
    pipe: Any,
    prompt: str | Sequence[str],
    controls: Control | Sequence[Control] | None = (),
    *,
    record: bool | Recording = False,
    on_step: Callable[[Progress], bool | None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    checkpointing: Checkpointing = "off",
    **request: Any,
) -> Generation:
    """Make images of a prompt under control.

    Args:
        pipe: a diffusers pipeline that makes images from text, also with an image, a mask or a ControlNet.
        prompt: one prompt, or several.
        controls: what to do, one control or several; none for the plain model.
        record: keep the attention maps of words.
        on_step: called after each step; return False to stop.
        is_cancelled: asked before each pass that a control makes beside the steps; return True to stop.
        checkpointing: less memory for more work, as in :func:`t2ictl.controlled`; it does not change the images.
        **request: further fields of :class:`Request`: ``seed``, ``steps``, ``width``, ``height``,
            ``guidance_scale``, ``negative_prompt``, ``images_per_prompt``, ``parser``. Any other is an argument of
            the pipeline's own: ``image``, ``mask_image``, ``strength``, ``controlnet_conditioning_scale``, ...

    Returns:
        The images with settings, cost, loss trace and record.

    Raises:
        BadSetting: if a field has a bad value, or one that this pipeline cannot use; before any pass.
        OutOfMemory: if the images need more memory than there is.
        Cancelled: if ``on_step`` returned False, or ``is_cancelled`` True; the pipeline is restored.

    Example:
        >>> import t2ictl
        >>> from t2ictl.processors import AttentionSegregation
        >>> result = t2ictl.generate(t2ictl.load("shapes"), "a red circle and a blue square",
        ...                          [AttentionSegregation()], seed=7, steps=2)
        >>> result.image.size, result.settings["request"]["seed"]
        ((64, 64), 7)
    """
    chosen = _chosen(controls)
    _check_functions(on_step=on_step, is_cancelled=is_cancelled)
    wanted, more = _read(prompt, request)
    session = controlled(pipe, chosen, record=record, parser=wanted.parser, checkpointing=checkpointing)
    more = session.adapter.own_arguments | more
    wanted = checked_request(pipe, wanted, more)
    arguments = call_arguments(pipe, wanted, more)
    if on_step is not None:
        arguments |= _callbacks(pipe, on_step)
    with named_refusals(pipe, lambda: session.cost.forwards > 0), cancel_when(is_cancelled), session:
        images = pipe(**arguments).images
    return Generation(
        images=list(images),
        settings=_settings(pipe, wanted, session.controls, more),
        cost=session.cost,
        trace=session.trace,
        record=session.record if record else None,
    )


def _chosen(controls: Any) -> tuple[Control, ...]:
    """Controls as a tuple; one alone is one, and None is none."""
    if controls is None or isinstance(controls, Control):
        return () if controls is None else (controls,)
    if isinstance(controls, (str, type)) or not isinstance(controls, Iterable):
        raise BadSetting(f"{shown(controls)} is no control.", "Pass instances: [AttentionSegregation()].")
    try:
        return tuple(controls)
    except TypeError:  # an array of no dimension is an iterable by its class alone
        raise BadSetting(f"{shown(controls)} is no control.", "Pass instances: [AttentionSegregation()].") from None


def _read(prompt: Any, asked: Mapping[str, Any]) -> tuple[Request, dict[str, Any]]:
    """A request, and the arguments of the pipeline's own."""
    own = {each.name for each in fields(Request)}
    wanted = Request(prompt=_texts(prompt), **{name: value for name, value in asked.items() if name in own})
    parser_version(wanted.parser)  # raises for one that is not installed, whether or not a control reads words
    return wanted, {name: value for name, value in asked.items() if name not in own}


def _check_functions(**functions: Any) -> None:
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise BadSetting(f"{name} cannot be {shown(value)}.", "Pass a function.")


def _texts(prompt: Any) -> str | tuple[str, ...]:
    """Prompts as a tuple; one alone stays one."""
    if isinstance(prompt, str):
        return prompt
    try:
        texts = () if isinstance(prompt, (bytes, bytearray, Mapping, Set)) else tuple(prompt)
    except Exception:  # anything may have been given
        texts = ()
    if not texts or not all(isinstance(each, str) for each in texts):
        raise BadSetting(f"The prompt cannot be {shown(prompt)}.", "Give a text, or several of them in a list.")
    return texts


def _callbacks(pipe: Any, on_step: Callable[[Progress], bool | None]) -> dict[str, Any]:
    """The argument by which a pipeline tells of its steps; older ones have another."""
    if "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters or not _is_older(pipe):
        return {"callback_on_step_end": _callback(on_step)}
    tell = _callback(on_step)

    def tell_older(index: int, timestep: Any, latents: torch.Tensor) -> None:
        """Pass on a step of an older pipeline."""
        tell(pipe, index, timestep, {"latents": latents})

    return {"callback": tell_older, "callback_steps": 1}


def _is_older(pipe: Any) -> bool:
    return "callback" in inspect.signature(type(pipe).__call__).parameters


def _callback(on_step: Callable[[Progress], bool | None]) -> Callable[..., dict[str, Any]]:
    def tell(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress = Progress(step=index + 1, total=_evaluations(pipe), latents=tensors["latents"])
        if on_step(progress) is False:
            raise Cancelled(f"Stopped after step {progress.step} of {progress.total}.")
        return tensors

    return tell


def _evaluations(pipe: Any) -> int:
    own = getattr(pipe, "num_timesteps", None)
    return len(pipe.scheduler.timesteps) if own is None else int(own)


def _settings(pipe: Any, request: Request, controls: Sequence[Control], more: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that made the image, as plain JSON data."""
    from pydantic import TypeAdapter

    return {
        "request": TypeAdapter(Request).dump_python(request, mode="json"),
        "controls": [control_to_dict(control) for control in controls],
        **({"arguments": written_arguments(more)} if more else {}),
        **provenance(pipe, request.parser),
    }


def provenance(pipe: Any, parser: str) -> dict[str, Any]:
    """Describe what beside its settings makes an image what it is.

    Args:
        pipe: the pipeline.
        parser: name of the prompt parser.

    Returns:
        Layout of the settings, pipeline, parser and versions, as plain JSON data.
    """
    return {
        "schema": SCHEMA_VERSION,
        "pipeline": {
            "class": type(pipe).__name__,
            "model": model_name(pipe),
            "scheduler": type(pipe.scheduler).__name__,
            "scheduler_config": scheduler_config(pipe.scheduler),
            "dtype": str(find_adapter(pipe).denoiser.dtype).removeprefix("torch."),
        },
        "parser": {"name": parser, "version": parser_version(parser)},
        "versions": versions(),
    }


def replay(
    pipe: Any,
    settings: str | Path | Mapping[str, Any] | Recorded,
    *,
    controls: Control | Sequence[Control] | None = None,
    record: bool | Recording = False,
    checkpointing: Checkpointing = "off",
    **changes: Any,
) -> Generation:
    """Make an image again from the settings inside it, with the scheduler that they name.

    All images of the call are made, as rows of a batch round differently than one alone; ``image`` of the result is
    the one that the file holds.

    Args:
        pipe: the pipeline; its model is not part of the file. Its own scheduler is put back afterwards.
        settings: a PNG or JSON file that this library wrote, the settings themselves, or what was read of them.
        controls: in place of those of the file; None for those.
        record: as in :func:`generate`.
        checkpointing: as in :func:`generate`.
        **changes: what is asked for otherwise than in the file, as in :func:`generate`; also images that were too
            large for it.

    Returns:
        The generation. A warning says which model, scheduler, parser or version is not as it was.

    Raises:
        BadSetting: if there are no settings, one of them is unknown or out of range, or an image is missing.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes")
        >>> made = t2ictl.generate(pipe, "a red circle", steps=2, images_per_prompt=2)
        >>> replay(pipe, {**made.settings, "image": 1}).number
        1
    """
    find_adapter(pipe)  # raises for what is no pipeline
    made = settings if isinstance(settings, Recorded) else Recorded.read(settings)
    asked = made.asked(changes)
    prompt = asked.pop("prompt")
    with use_scheduler(pipe, made.scheduler):
        _warn_of_differences(made, provenance(pipe, str(asked.get("parser", "grammar"))))
        chosen = made.controls if controls is None else controls
        result = generate(pipe, prompt, chosen, record=record, checkpointing=checkpointing, **asked)
    result.number = made.number
    return result


def _warn_of_differences(made: Recorded, now: Mapping[str, Any]) -> None:
    """Describe what is not as it was: the image may come out another one."""
    differing = [
        f"{part}.{key} was {was!r}, is {now[part].get(key)!r}"
        for part in ("pipeline", "parser", "versions")
        for key, was in made.provenance.get(part, {}).items()
        if now[part].get(key) != was
    ]
    if differing:
        warnings.warn("The image may differ: " + "; ".join(differing) + ".", UserWarning, stacklevel=3)

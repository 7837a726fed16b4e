"""One line from prompt to image, with everything that made the image in it."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from t2ictl.controls.base import Control
from t2ictl.controls.registry import control_from_dict, control_to_dict
from t2ictl.errors import BadSetting, Cancelled
from t2ictl.families.loading import model_name
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.maps.figures import image_uri
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import Recording
from t2ictl.prompts.grammar import parser_version
from t2ictl.session.checkpoints import Checkpointing
from t2ictl.session.cost import Cost
from t2ictl.session.session import controlled
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.files import SCHEMA_VERSION, read_settings, versions, write_png
from t2ictl.settings.legacy import upgraded

__all__ = ["Generation", "Progress", "Request", "generate", "provenance", "replay"]


@settings_class
class Request:
    """What the pipeline is asked for.

    Args:
        prompt: one prompt, or several.
        negative_prompt: what guidance leads away from.
        seed: seed of the first image; the next ones have the next seeds.
        steps: denoising steps.
        width: image width (pixels); None for the model's own.
        height: image height (pixels); None for the model's own.
        guidance_scale: strength of classifier-free guidance; 1 or less is none.
        images_per_prompt: images for each prompt.
        parser: how objects and attributes are found.

    Example:
        >>> Request(prompt="a cat", seed=7).steps
        25
    """

    prompt: str | tuple[str, ...] = setting(default="", help="one prompt, or several")
    negative_prompt: str = setting(default="", help="what guidance leads away from")
    seed: int = setting(default=0, help="seed of the first image", low=0)
    steps: int = setting(default=25, help="denoising steps", low=1)
    width: int | None = setting(default=None, help="image width (pixels); empty: the model's own", low=8)
    height: int | None = setting(default=None, help="image height (pixels); empty: the model's own", low=8)
    guidance_scale: float = setting(default=7.5, help="strength of classifier-free guidance; 1: none", low=0.0)
    images_per_prompt: int = setting(default=1, help="images for each prompt", low=1)
    parser: str = setting(default="grammar", help="how objects are found: grammar or spacy")

    def __post_init__(self) -> None:
        texts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        if not texts or not all(text.strip() for text in texts):
            raise BadSetting(f"The prompt {self.prompt!r} is empty.", "Say what the image shall show.")

    @property
    def images(self) -> int:
        """How many images this asks for."""
        return (1 if isinstance(self.prompt, str) else len(self.prompt)) * self.images_per_prompt

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline call.

        Every image has a generator of its own, on the CPU: it starts from the same noise alone, in
        a batch, and on another device.
        """
        return {
            "prompt": self.prompt if isinstance(self.prompt, str) else list(self.prompt),
            "negative_prompt": self.negative_prompt
            if isinstance(self.prompt, str)
            else [self.negative_prompt] * len(self.prompt),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "num_images_per_prompt": self.images_per_prompt,
            "generator": [torch.Generator("cpu").manual_seed(self.seed + number) for number in range(self.images)],
            **({"width": self.width} if self.width else {}),
            **({"height": self.height} if self.height else {}),
        }


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
    """

    images: list[Image.Image]
    settings: dict[str, Any]
    cost: Cost
    trace: tuple[MoveTrace, ...]
    record: AttentionRecord | None = None

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
        """The first image."""
        return self.images[0]

    def save(self, path: str | Path, number: int = 0) -> Path:
        """Write an image as PNG with its settings inside; all of it is written, or nothing.

        Args:
            path: the file to write.
            number: which image.

        Returns:
            The path.
        """
        return write_png(self.images[number], path, {**self.settings, "image": number})


def generate(
    pipe: Any,
    prompt: str | Sequence[str],
    controls: Sequence[Control] = (),
    *,
    record: bool | Recording = False,
    on_step: Callable[[Progress], bool | None] | None = None,
    checkpointing: Checkpointing = "off",
    **request: Any,
) -> Generation:
    """Make images of a prompt under control.

    Args:
        pipe: a diffusers pipeline that makes images from text.
        prompt: one prompt, or several.
        controls: what to do; none for the plain model.
        record: keep the attention maps of words.
        on_step: called after each step; return False to stop.
        checkpointing: less memory for more work, as in :func:`t2ictl.controlled`; it does not change the images.
        **request: further fields of :class:`Request`: ``seed``, ``steps``, ``width``, ``height``,
            ``guidance_scale``, ``negative_prompt``, ``images_per_prompt``, ``parser``.

    Returns:
        The images with settings, cost, loss trace and record.

    Raises:
        BadSetting: if a field has a bad value.
        Cancelled: if ``on_step`` returned False; the pipeline is restored.

    Example:
        >>> import t2ictl
        >>> from t2ictl.processors import AttentionSegregation
        >>> result = t2ictl.generate(t2ictl.load("shapes"), "a red circle and a blue square",
        ...                          [AttentionSegregation()], seed=7, steps=2)
        >>> result.image.size, result.settings["request"]["seed"]
        ((64, 64), 7)
    """
    wanted = Request(prompt=prompt if isinstance(prompt, str) else tuple(prompt), **request)
    arguments = wanted.arguments()
    if on_step is not None:
        arguments["callback_on_step_end"] = _callback(on_step)
    with controlled(pipe, controls, record=record, parser=wanted.parser, checkpointing=checkpointing) as session:
        images = pipe(**arguments).images
    return Generation(
        images=list(images),
        settings=_settings(pipe, wanted, session.controls),
        cost=session.cost,
        trace=session.trace,
        record=session.record if record else None,
    )


def _callback(on_step: Callable[[Progress], bool | None]) -> Callable[..., dict[str, Any]]:
    def tell(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress = Progress(step=index + 1, total=int(pipe.num_timesteps), latents=tensors["latents"])
        if on_step(progress) is False:
            raise Cancelled(f"Stopped after step {progress.step} of {progress.total}.")
        return tensors

    return tell


def _settings(pipe: Any, request: Request, controls: Sequence[Control]) -> dict[str, Any]:
    """Everything that made the image, as plain JSON data."""
    from pydantic import TypeAdapter

    return {
        "request": TypeAdapter(Request).dump_python(request, mode="json"),
        "controls": [control_to_dict(control) for control in controls],
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
            "scheduler_config": {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")},
            "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        },
        "parser": {"name": parser, "version": parser_version(parser)},
        "versions": versions(),
    }


def replay(pipe: Any, settings: str | Path | Mapping[str, Any], *, record: bool | Recording = False) -> Generation:
    """Make an image again from the settings inside it.

    Args:
        pipe: the pipeline; its model is not part of the file.
        settings: a PNG or JSON file that this library wrote, or the settings themselves.
        record: keep the attention maps of words.

    Returns:
        The generation. A warning says which model, scheduler, parser or version is not as it was.

    Raises:
        BadSetting: if there are no settings, or one of them is unknown or out of range.
    """
    data = read_settings(settings) if isinstance(settings, (str, Path)) else upgraded(settings)
    try:
        request, listed = dict(data["request"]), data["controls"]
        prompt = request.pop("prompt")
    except (KeyError, TypeError) as error:
        raise BadSetting(f"The settings have no {error}.", "Use a file that `t2ictl generate` wrote.") from None
    controls = [control_from_dict(each) for each in listed]
    result = generate(pipe, prompt, controls, record=record, **request)
    _warn_of_differences(data, result.settings)
    return result


def _warn_of_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Describe what is not as it was: the image may come out another one."""
    differing = [
        f"{part}.{key} was {was!r}, is {now[part].get(key)!r}"
        for part in ("pipeline", "parser", "versions")
        for key, was in dict(then.get(part, {})).items()
        if now[part].get(key) != was
    ]
    if differing:
        warnings.warn("The image may differ: " + "; ".join(differing) + ".", UserWarning, stacklevel=3)

"""Which controls say that they have nothing to do: every control of the registry in every such situation.

Each cell is tried: the image with the control is compared with the plain one, bit by bit, and the warnings are read.
``t2ictl bench study idle`` prints the table of ``docs/idle.md``; a test compares them, so a new control cannot be
forgotten there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

import t2ictl
from t2ictl import Control
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.embedded import add_model, open_model
from t2ictl.benchmarks.markdown import markdown_table
from t2ictl.controls import Region, Window
from t2ictl.errors import BadSetting, ControlIdle, T2ictlError

__all__ = ["SITUATIONS", "Situation", "cells", "main", "table", "tried"]

PROMPT = "a red circle and a blue square"

WARNS, ACTS, REFUSED, NONE = "warns", "acts", "refused", "–"


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A call in which some controls have nothing to do.

    Args:
        name: head of its column.
        prompts: of the call; of several the last one is meant.
        steps: of the call.
        call: further arguments of the pipeline.
        settings: fields of the control; one that has none of them, or not these values, is left out.
    """

    name: str
    prompts: tuple[str, ...] = (PROMPT,)
    steps: int = 2
    call: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


#: A filter for layers of the kind that a control cannot use; isolation acts in self-attention, all others in the other.
OTHER_LAYERS = {"isolation_reposition": ("cross",)}

#: The weights of all losses, and what the controls without losses have in their place.
WEIGHTS = (
    *("segregation", "retention", "presence", "conflict", "existence", "correspondence", "leak", "attendance"),
    *("positive", "negative", "binding", "intensity", "inner", "outer", "corner", "entropy_steps", "isolation"),
)

SITUATIONS = (
    Situation(name="strength 0", settings={"strength": 0.0}),
    Situation(name="window without a step", settings={"window": Window(start=0.3, stop=0.4)}),
    Situation(name="steps of length 0", settings={"step": {"scale": 0.0}, "search": {"lr": 0.0}}),
    Situation(name="every weight 0", settings=dict.fromkeys(WEIGHTS, 0)),
    Situation(name="empty prompt", prompts=("",)),
    Situation(name="no object", prompts=("in white",)),
    Situation(name="one object", prompts=("a circle",)),
    Situation(name="no attribute", prompts=("a circle and a square",)),
    Situation(name="second of two prompts without an object", prompts=(PROMPT, "in white")),
    Situation(name="one step", steps=1),
    Situation(name="unconditional side, no guidance", call={"guidance_scale": 1.0}, settings={"branch": "uncond"}),
    Situation(name="layers of the other kind", settings={"layers": ("self",)}),
    Situation(name="region of no concept", settings={"layout": (Region(word="red", box=(0, 0, 1, 1)),)}),
)


def _made(cls: type[Control], situation: Situation) -> Control | None:
    """The control in a situation, or None where it has not the setting that is meant.

    It never finds an image good enough, which would be an image that it left alone for a good reason.
    """
    names = {each.name for each in fields(cls)}
    settings: dict[str, Any] = {}
    if "search" in names:
        settings["search"] = {"max_steps": 1, "target": 1.0}
    if "refinement" in names:
        settings["refinement"] = None
    if "thresholds" in names:
        settings["thresholds"] = (0.0,)
    wanted = {name: value for name, value in situation.settings.items() if name in names}
    if "layers" in wanted:
        wanted["layers"] = OTHER_LAYERS.get(cls.name, wanted["layers"])
    if situation.settings and not wanted:
        return None
    try:
        return cls(**settings | wanted)
    except BadSetting:
        return None


def tried(pipe: Any, cls: type[Control], situation: Situation) -> str:
    """Try a control in a situation.

    Args:
        pipe: a pipeline.
        cls: the control.
        situation: the situation.

    Returns:
        What it does: ``"warns"``, ``"acts"``, ``"refused"``, or ``"–"`` where it has no such setting. Anything else
        is a fault: an image that is left alone without a warning, or a warning where the image changes.
    """
    control = _made(cls, situation)
    if control is None:
        return NONE
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            with t2ictl.controlled(pipe, [control]):
                image = _run(pipe, situation)[-1]
    except T2ictlError:
        return REFUSED
    is_plain = torch.equal(image, _run(pipe, situation)[-1])
    told = [each for each in found if issubclass(each.category, ControlIdle)]
    if len(told) > 1:
        return f"warns {len(told)} times"
    return {
        (True, True): WARNS,
        (False, False): ACTS,
        (True, False): "silent",
        (False, True): "warns, and acts",
    }[is_plain, bool(told)]


def _run(pipe: Any, situation: Situation) -> Tensor:
    """The latents of the images, each from its own seed."""
    noise = [torch.Generator().manual_seed(number) for number in range(len(situation.prompts))]
    call: dict[str, Any] = {"num_inference_steps": situation.steps, "output_type": "latent"}
    call |= {**t2ictl.own_arguments(pipe), **situation.call}
    found: Tensor = pipe(list(situation.prompts), generator=noise, **call).images
    return found


def cells(pipe: Any, situations: Iterable[Situation] = SITUATIONS) -> Iterator[tuple[str, str, str]]:
    """Try every control of the registry in every situation.

    Args:
        pipe: a pipeline.
        situations: the situations.

    Yields:
        Name of the control, of the situation, and what :func:`tried` found.
    """
    for situation in situations:
        for name, cls in t2ictl.list_controls().items():
            yield name, situation.name, tried(pipe, cls, situation)


def table(found: Sequence[tuple[str, str, str]]) -> str:
    """Write what was found as a Markdown table, one row a control.

    Args:
        found: from :func:`cells`.

    Returns:
        Markdown.

    Example:
        >>> print(table([("a_b", "no object", "warns"), ("c", "no object", "acts")]))
        | | no object |
        |---|---|
        | **a b** | warns |
        | **c** | acts |
    """
    names = list(dict.fromkeys(name for name, _, _ in found))
    situations = list(dict.fromkeys(situation for _, situation, _ in found))
    told = {(name, situation): verdict for name, situation, verdict in found}
    rows = ((f"**{name.replace('_', ' ')}**", *(told[name, each] for each in situations)) for name in names)
    return "\n".join(markdown_table(["", *situations], rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        arguments: of the command line.

    Returns:
        Exit status 0.
    """
    parser = ArgumentParser(prog="t2ictl bench study idle", description=__doc__)
    add_model(parser, steps=False)
    print(table(list(cells(open_model(parser.parse_args(arguments).model)))))
    return 0

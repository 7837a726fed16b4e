"""From a loss on the maps of some words to the plan of a control: what the thin controls have in common.

Legend: ``B`` batch row, ``N`` word, ``T`` prompt token, ``P`` place, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.controls.base import Control, Idle, Plan, PlanContext
from t2ictl.controls.concepts import ConceptMaps, NormalizeOver, Smoothing, self_layers, without_concepts
from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.prompts.prompt import Span
from t2ictl.settings.windows import Step

__all__ = ["Preparations", "loss_plan"]

Preparations = tuple[tuple[Smoothing, NormalizeOver], ...]
"""Ways to prepare maps: the smoothing, and the tokens that compete."""

#: The usual fields of a control, and what they are called in an objective. A control has those that it needs.
_FIELDS = {"window": "window", "step": "step_size", "refinement": "refinement", "search": "search"}


def loss_plan(
    control: Control,
    context: PlanContext,
    spans: tuple[tuple[Span, ...], ...],
    loss: Callable[..., Losses],
    *,
    on_maps: Callable[[Tensor], None] | None = None,
    self_attention: bool = False,
    preparations: Preparations = (),
    also: tuple[tuple[Layer, ...], ...] = (),
    idle: tuple[Idle, ...] = (),
    **fields: Any,
) -> Plan:
    """Make the plan of a control whose loss is a function of the maps of some words.

    Args:
        control: has ``strength``, ``smoothing``, ``normalize_over`` and ``layers``, and what it needs of ``window``,
            ``step``, ``refinement`` and ``search``, as :class:`AttendAndExcite` and :class:`InitialNoise` have them.
        context: the pipeline call.
        spans: for each image the words whose maps are wanted.
        loss: from ``maps_BNYX`` and ``mask_BN``, true where a word is real, to the losses at one latent. It also gets,
            with ``self_attention``, ``maps_BYXP``, the attention of each place to each place; with ``also`` the
            ``maps_BNYX`` of each further group of layers, and then the step.
        on_maps: gets ``maps_BNYX`` of the pass that makes the image.
        self_attention: whether the loss wants it too.
        preparations: pairs of smoothing and competing tokens in place of the control's; the loss gets the maps of each.
        also: further groups of cross-attention layers.
        idle: why the control leaves some images alone, beside those that have no words.
        **fields: further fields of :class:`Objective`, in the place of those of the control.

    Returns:
        The plan; one that is empty where all are left alone.

    Raises:
        NoLayerMatched: if the filter matches no cross-attention layer.
    """
    given: Any = control
    idle = (*without_concepts(spans), *idle)
    left_alone = {image for each in idle for image in each.images or ()}
    if given.strength == 0 or left_alone == set(range(len(spans))):
        return Plan(idle=idle)
    prepared = [
        ConceptMaps.from_context(context, spans, given.layers, smoothing, tokens)
        for smoothing, tokens in preparations or ((given.smoothing, given.normalize_over),)
    ]
    maps = prepared[0]
    objective = Objective(
        name=control.name,
        layers=maps.layers,
        self_layers=self_layers(context, maps.layers) if self_attention else (),
        also=also,
        evaluate=_reader(prepared, loss, len(also)),
        on_maps=None if on_maps is None else lambda maps_BYXT, step: on_maps(maps(maps_BYXT)),
        strength=given.strength,
        words=maps.table.names,
        **{name: getattr(control, own) for own, name in _FIELDS.items() if hasattr(control, own)}
        | {"dry_run": True}
        | fields,
    )
    return Plan(objectives=(objective,), idle=idle)


def _reader(prepared: list[ConceptMaps], loss: Callable[..., Losses], also: int) -> Callable[[Any, Step], Losses]:
    """What reads the maps of the words from those of all tokens, and gives them to the loss."""
    maps, mask_BN = prepared[0], prepared[0].table.mask_BN

    def evaluate(found: Any, step: Step) -> Losses:
        maps_BYXT, *more = found if isinstance(found, tuple) else (found,)
        if also:
            more[len(more) - also :] = [*(maps(each_BYXT) for each_BYXT in more[-also:]), step]
        return loss(*(each(maps_BYXT) for each in prepared), mask_BN, *more)

    return evaluate

"""From the controls of a session to their plans for one pipeline call."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from t2ictl.attention.edits import Edit
from t2ictl.attention.layers import Layer
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.idle import CallOutline, warn_idle
from t2ictl.errors import ControlConflict, ControlIdle, UnsupportedPipeline
from t2ictl.guidance.objectives import check_one_step_size
from t2ictl.settings.windows import Step

__all__ = ["IdleCheck", "acting_layers", "edits_by_layer", "make_plans"]


@dataclass(kw_only=True)
class IdleCheck:
    """Warns of controls with nothing to do, before the first evaluation of a call.

    Args:
        context: the call, with the words where they are now.
        planned: the controls with their plans.
        measured: those that only look on, with their plans.
        same_text: images whose text embeddings are as the pipeline encoded them.
    """

    context: PlanContext
    planned: Sequence[tuple[Control, Plan]]
    measured: Sequence[tuple[Control, Plan]] = ()
    same_text: frozenset[int] = frozenset()
    told: frozenset[int] = frozenset()

    def warn(
        self, steps: tuple[Step, ...], latent_size: tuple[int, int], tokens: int, discarded: tuple[bool, ...]
    ) -> None:
        """Warn once for each control with nothing to do.

        Args:
            steps: all evaluations to come.
            latent_size: height and width of the latent (cells).
            tokens: length of a text row.
            discarded: for each evaluation, whether the scheduler throws its sample away.
        """
        outline = CallOutline(
            context=self.context,
            steps=steps,
            discarded=discarded,
            latent_size=latent_size,
            tokens=tokens,
            same_text=self.same_text,
        )
        reasons = [each for _, plan in self.planned for each in plan.idle]
        for control, plan in self.planned:
            reasons += warn_idle(control, plan, outline)
        for control, plan in self.measured:
            warn_idle(control, plan, outline, does="measures")
        everywhere = range(self.context.batch.images)
        self.told = frozenset(
            image for each in reasons for image in (everywhere if each.images is None else each.images)
        )

    def warn_still(self, still: Collection[int]) -> None:
        """Warn at the end of a call of images that no update has moved, where nothing was said before.

        Args:
            still: the images.
        """
        images = sorted(set(still) - self.told)
        if images:
            names = [control.name for control, plan in self.planned if plan.objectives]
            warnings.warn(
                f"{', '.join(names)} moved nothing in image{'s' if len(images) > 1 else ''} "
                f"{', '.join(str(image + 1) for image in images)}: their losses had next to no gradient at any step. "
                "They may be met already; if not, name more words in concepts=, or set normalize_over.",
                ControlIdle,
                stacklevel=4,
            )


def make_plans(controls: Sequence[Control], context: PlanContext) -> tuple[tuple[Plan, ...], PlanContext]:
    """Make the plans of all controls; those that move words come first, and the others see where words are then.

    Args:
        controls: in the order of the session.
        context: the pipeline call.

    Returns:
        The plans in that order, and the context with the words where the plans have put them.

    Raises:
        ControlConflict: if two controls set what only one can set, or move latents by different steps.
        UnsupportedPipeline: if a gradient is needed and none can be taken.
    """
    made: dict[int, Plan] = {}
    unmoved = context  # what all that move words see, so that two of them are refused as owners of one thing
    for place, control in sorted(enumerate(controls), key=lambda pair: not pair[1].moves_words):
        made[place] = control.plan(unmoved if control.moves_words else context)
        if (text := made[place].text) is not None:
            context = replace(context, prompts=text.prompts)
    plans = tuple(made[place] for place in range(len(controls)))
    _check_owners(controls, plans)
    objectives = [objective for plan in plans for objective in plan.objectives]
    check_one_step_size(objectives)
    if objectives or any(plan.text is not None and plan.text.objectives for plan in plans):
        context.adapter.check_gradients()
        if torch.is_inference_mode_enabled():
            raise UnsupportedPipeline(
                "The pipeline is called under torch.inference_mode(), where no gradient can be taken.",
                "Call it under torch.no_grad(), or as it is: pipelines switch gradients off themselves.",
            )
    return plans, context


def _check_owners(controls: Sequence[Control], plans: Sequence[Plan]) -> None:
    owners: dict[str, str] = {}
    for control, plan in zip(controls, plans, strict=True):
        for thing in (*plan.owns, *(("the text states",) if plan.text is not None else ())):
            if thing in owners:
                raise ControlConflict(
                    f"{owners[thing]} and {control.name} both set {thing}.", "Use one of them in a session."
                )
            owners[thing] = control.name


def edits_by_layer(plans: Sequence[Plan]) -> dict[str, list[Edit]]:
    """The edits of all plans by the address of their layer, in the order of the controls."""
    by_layer: dict[str, list[Edit]] = {}
    for plan in plans:
        for layers, edit in plan.edits:
            for layer in layers:
                by_layer.setdefault(layer.address, []).append(edit)
    return by_layer


def acting_layers(plans: Sequence[Plan]) -> set[Layer]:
    """The layers that plans edit, or whose maps move something."""
    edited = {layer for plan in plans for layers, _ in plan.edits for layer in layers}
    read = {layer for plan in plans for objective in plan.objectives for layer in objective.all_layers}
    texts = [plan.text for plan in plans if plan.text is not None]
    return edited | read | {layer for text in texts for objective in text.objectives for layer in objective.layers}

"""Controls that do nothing: one rule for all of them, from their plans, told before the first step.

A control with nothing to do leaves the image as it is, and the user should not take that image for a controlled one.
What can be read from a plan is found here: strength 0, a window that holds no step, steps of length 0, losses that are
constant, text embeddings that stay as they were. What only the control knows stands in ``Plan.idle``.

Legend: ``B`` image, ``T`` prompt token, ``P`` place, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from t2ictl.controls.base import Control, Idle, Plan, PlanContext
from t2ictl.controls.dry_run import constant_images
from t2ictl.errors import ControlIdle
from t2ictl.guidance.objectives import Objective
from t2ictl.guidance.text_objectives import EmbedObjective, TextEdit
from t2ictl.settings.windows import Step, Window

__all__ = ["CallOutline", "idle_of", "warn_idle"]

EMPTY = Idle(
    reason="there is nothing in this call that it could act on", remedy="Compare its settings with the prompt."
)
NO_STRENGTH = Idle(reason="its strength is 0", remedy="Raise strength.")
NO_LENGTH = Idle(reason="its steps have length 0", remedy="Raise the scale and max_norm of its step.")
DISCARDED = Idle(
    reason="the scheduler discards the sample of every evaluation at which it would move the latents",
    remedy="Widen the window.",
)
NO_SEARCH = Idle(reason="its search for noise ends at once", remedy="Raise lr and target of search.")
SAME_TEXT = Idle(reason="no text embedding of the prompt would change", remedy="Name other words in its settings.")


@dataclass(frozen=True, kw_only=True)
class CallOutline:
    """What is known of a pipeline call before its first evaluation.

    Args:
        context: the call, with the words where they are now.
        steps: all evaluations to come; without a session one, which stands for all.
        discarded: for each of them, whether the scheduler throws its sample away; empty if it throws none away.
        latent_size: height and width of the latent (cells).
        tokens: length of a text row.
        same_text: images whose text embeddings the controls left as they were.
    """

    context: PlanContext
    steps: tuple[Step, ...] = (Step(index=0, total=1, timestep=0.0),)
    discarded: tuple[bool, ...] = ()
    latent_size: tuple[int, int] = (0, 0)
    tokens: int = 0
    same_text: frozenset[int] = frozenset()

    @property
    def images(self) -> range:
        """The images of the call."""
        return range(self.context.batch.images)

    def keeps(self, step: Step) -> bool:
        """Whether the scheduler takes up what is done to the sample of an evaluation."""
        return not any(self.discarded[step.index : step.index + 1])


def warn_idle(control: Control, plan: Plan, outline: CallOutline, *, does: str = "does") -> tuple[Idle, ...]:
    """Warn if a control does nothing in a call, or for some of its images: once, with all reasons.

    Args:
        control: the control.
        plan: its plan for this call.
        outline: the call.
        does: what it would do, as a verb.

    Returns:
        The reasons.
    """
    found = idle_of(control, plan, outline, looks_on=does == "measures")
    if not found:
        return ()
    clauses = [f"{_where(each, outline)}: {each.reason}" for each in found]
    remedies = dict.fromkeys(each.remedy for each in found)
    name = getattr(control, "name", type(control).__name__)
    message = f"{name} {does} nothing {'; '.join(clauses)}. {' '.join(remedies)}"
    warnings.warn(message, ControlIdle, stacklevel=2)
    return found


def idle_of(control: Control, plan: Plan, outline: CallOutline, *, looks_on: bool = False) -> tuple[Idle, ...]:
    """Find the images that a control leaves alone in a call.

    Args:
        control: the control.
        plan: its plan for this call.
        outline: the call.
        looks_on: whether its losses are only measured: then it does not matter how far it would move.

    Returns:
        The reasons, each with its images; nothing where the control acts in every image.
    """
    images = outline.images
    if not control.wants_effect:
        return ()
    if getattr(control, "strength", None) == 0:
        return (NO_STRENGTH,)
    told = {image: each for each in plan.idle for image in (images if each.images is None else each.images)}
    parts = list(_parts(control, plan, outline, looks_on))
    silent = set.intersection(*map(set, parts)) if parts else {*images}
    seen = parts[0] if parts else dict.fromkeys(images, EMPTY)
    by_reason: dict[Idle, list[int]] = {}
    for image in images:
        if image in told or image in silent:
            by_reason.setdefault(replace(told.get(image) or seen[image], images=None), []).append(image)
    return tuple(
        each if len(own) == len(images) else replace(each, images=tuple(own))
        for each, own in by_reason.items()
        if not each.is_wanted or len(own) == len(images)
    )


def _where(idle: Idle, outline: CallOutline) -> str:
    """Which images are meant, by their prompts."""
    rows, prompts = outline.context.batch.only("cond").rows, outline.context.prompts
    if idle.images is None:
        return f"for {prompts[0].text!r}" if len(prompts) == 1 else "in this call"
    numbers = [rows[image].prompt for image in idle.images]
    is_whole = all(sum(row.prompt == number for row in rows) == numbers.count(number) for number in numbers)
    if not prompts or not is_whole:
        return f"in {'image' if len(numbers) == 1 else 'images'} {', '.join(str(image + 1) for image in idle.images)}"
    return f"for {', '.join(dict.fromkeys(repr(prompts[number].text) for number in numbers))}"


def _parts(control: Control, plan: Plan, outline: CallOutline, looks_on: bool) -> Iterator[Mapping[int, Idle]]:
    """For each thing that a plan does, the images in which it does nothing."""
    everywhere = outline.images
    constant = constant_images(control, plan, outline.context, outline.steps, outline.latent_size, outline.tokens)
    for number, objective in enumerate(plan.objectives):
        reason = _still(objective, outline, looks_on)
        if reason is not None:
            yield dict.fromkeys(everywhere, reason)
        else:
            yield {image: _constant(objective, image) for image in constant.get(number, ())}
    for layers, edit in plan.edits:
        acts = bool(layers) and any(edit.acts(step) for step in outline.steps)
        yield {} if acts else dict.fromkeys(everywhere, _out_of_time(getattr(control, "window", None), outline))
    if plan.text is not None:
        yield _text(control, plan.text, outline)
    is_more = plan.perturb is not None or plan.fixed_latents is not None
    if is_more or (plan.map_hooks and not (plan.objectives or plan.edits or plan.text)):
        yield {}


def _still(objective: Objective, outline: CallOutline, looks_on: bool) -> Idle | None:
    """Why an objective moves no image at any step."""
    acting = [step for step in outline.steps if objective.acts(step)]
    if not acting:
        return _out_of_time(objective.window, outline)
    if not objective.keep_discarded and not any(outline.keeps(step) for step in acting):
        return DISCARDED
    if looks_on:
        return None
    if (search := objective.search) is not None:
        return NO_SEARCH if search.lr == 0 or search.target == 0 else None
    step_size = objective.step_size
    is_still = step_size.max_norm == 0 or not any(step_size.length(step.index, step.total) for step in acting)
    return NO_LENGTH if is_still else None


def _constant(objective: Objective, image: int) -> Idle:
    words = objective.words[image] if image < len(objective.words) else ()
    about = f" of {', '.join(map(repr, words))}" if words else ""
    return Idle(
        reason=f"its losses are constant for the maps{about} in the steps of this call",
        remedy="Name more words in concepts=, give its losses a weight, or make more steps.",
    )


def _out_of_time(window: Any, outline: CallOutline) -> Idle:
    total = len(outline.steps)
    evaluations = "the one evaluation" if total == 1 else f"any of the {total} evaluations"
    if isinstance(window, Window) and not any(map(window.holds, outline.steps)):
        return Idle(
            reason=f"its window from {window.start:g} to {window.stop:g} does not hold {evaluations} of this call",
            remedy="Widen the window, or make more steps.",
        )
    return Idle(
        reason=f"it has nothing to do at {evaluations} of this call",
        remedy="Make more steps, or widen its window.",
    )


def _text(control: Control, text: TextEdit, outline: CallOutline) -> Mapping[int, Idle]:
    if text.weight is not None or text.perturb is not None:
        return {}
    if text.during is not None and any(text.during(step) is not None for step in outline.steps):
        return {}
    if not outline.same_text:
        return {}
    moving = {image for each in text.objectives for image in _moving(each, outline)}
    in_time = [each for each in text.objectives if any(map(each.window.holds, outline.steps))]
    reason = _out_of_time(text.objectives[0].window, outline) if text.objectives and not in_time else SAME_TEXT
    return dict.fromkeys(outline.same_text - moving, reason)


def _moving(objective: EmbedObjective, outline: CallOutline) -> Sequence[int]:
    """The images whose embeddings an objective may move."""
    steps = [step for step in outline.steps if objective.window.holds(step)]
    if objective.strength == 0 or not any(objective.step_size.length(step.index, step.total) for step in steps):
        return ()
    may_B = (objective.max_updates_B.cpu() > 0) & objective.movable.any(dim=1).cpu()
    return torch.nonzero(may_B).flatten().tolist()

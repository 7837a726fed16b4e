"""Token flow (Follow the Flow): give an item of the prompt rows that have not read the other items.

Idea. A text encoder lets words read each other, so an item's rows may carry what belongs to another: next to
"baseball" a "bat" is no animal. The item is encoded without the others, and its clean rows take the place
of its rows in the prompt; the rest stays as it was. ``t2ictl.flow`` finds out which items leak, and which repair helps.

What differs from the paper, whose released code has no repair. Three ways to a clean encoding: without single other
items only (``"pairwise"``: what is not to blame stays; the default, since it is the one that loses no objects on the
embedded model, docs/benchmarks.md), in its place with all else hidden from the encoder (``"masked"``), or alone
(``"alone"``, the paper's, which gives CLIP other positions than it would have). The strength is graded.
What becomes of end, padding and pooled states, which the paper does not say, is a setting each: behind a causal
encoder they have read everything. Item rows alone or alone in another length need no alignment, since a U-Net
does not know the order of text rows.

Legend: ``B`` image, ``K`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from t2ictl.controls.base import Control, Idle, Plan, PlanContext
from t2ictl.controls.registry import register_control
from t2ictl.errors import BadSetting
from t2ictl.families.text_states import Encode, PromptEmbeds
from t2ictl.guidance.text_objectives import TextEdit
from t2ictl.processors.token_flow.conditions import Conditions, Intervention, Isolation, Special, compose
from t2ictl.processors.token_flow.items import Item, ResolvedItem, placed_items, resolved_items
from t2ictl.processors.token_flow.readings import Row, read_all
from t2ictl.prompts.per_prompt import per_prompt
from t2ictl.prompts.prompt import Prompt
from t2ictl.settings.fields import setting, settings_class
from t2ictl.standalone.recorder import text_embeds

__all__ = ["TokenFlow"]

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”")


@register_control(
    "token_flow",
    paper="Kaplan, Toker, Reif, Belinkov, Schwartz: Follow the Flow: On Information Flow Across Textual Tokens in "
    "Text-to-Image Models, 2025, arXiv 2504.01137",
    published={"how": "alone"},
    needs=("encoders",),
)
@settings_class
class TokenFlow(Control):
    """Put clean rows in the place of items' rows: encodings that have not read the other items (Follow the Flow).

    ``h'_t = h_t + strength (clean_t - h_t)`` for the rows ``t`` of each item.

    Args:
        items: the words or phrases to clean; empty for all objects that the parser finds; or one list for each prompt.
        sources: the items whose influence is to go; empty for all others.
        how: ``"pairwise"``: the sources hidden from the encoder; ``"masked"``: the item at its place, all but its noun
            phrase hidden; ``"alone"``: its noun phrase encoded alone, as in the paper.
        strength: 0 is the untouched model, 1 takes the clean rows whole, as in the paper.
        special: end and padding rows: ``"keep"``, those of the ``"empty"`` prompt, or ``"masked"``: read without the
            sources that are not cleaned themselves.
        pooled: pooled states of SDXL, in the same way.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes")
        >>> embeds = TokenFlow.embeds(pipe, ["a red circle and a green bolt"], items=("bolt",))
        >>> image = pipe(**embeds, num_inference_steps=2).images[0]

    Reference:
        Kaplan et al., "Follow the Flow: On Information Flow Across Textual Tokens in Text-to-Image Models", 2025,
        arXiv 2504.01137, the section on mitigation.
    """

    items: tuple[Item | str | tuple[Item | str, ...], ...] = setting(
        default=(), help="words or phrases to clean; empty: all objects"
    )
    sources: tuple[str, ...] = setting(default=(), help="items whose influence is to go; empty: all others")
    how: Isolation = setting(default="pairwise", help="how clean rows are encoded")
    strength: float = setting(default=1.0, help="0 is the untouched model, 1 takes clean rows whole", low=0.0, high=1.0)
    special: Special = setting(default="keep", help="end and padding rows")
    pooled: Special = setting(default="keep", help="pooled states of SDXL")

    has_losses = False

    def plan(self, context: PlanContext) -> Plan:
        """Find the items of each prompt, and say which rows are replaced."""
        if self.strength == 0:
            return Plan()
        lists = per_prompt(self.items, len(context.prompts), setting=f"{self.name}.items", things="items")
        repairs = [self._repair(context, *each) for each in zip(context.prompts, lists, strict=True)]
        idle = tuple(
            replace(each.idle, images=(image,))
            for image, row in enumerate(context.batch.only("cond").rows)
            if (each := repairs[row.prompt]).idle is not None
        )
        if all(each.idle is not None for each in repairs):
            return Plan(idle=idle)
        if self.how == "alone":
            warnings.warn(
                "Rows of an item that is encoded alone stand at other positions than CLIP has learned for them; "
                "how='masked' reads it at its place.",
                UserWarning,
                stacklevel=2,
            )
        cleaning = _Cleaning(repairs, context)
        return Plan(text=TextEdit(prompts=context.prompts, rewrite=cleaning.rewrite), idle=idle)

    def _repair(self, context: PlanContext, prompt: Prompt, named: Sequence[Item | str]) -> _Repair:
        pairs = self._pairs(context, prompt, named)
        conditions = Conditions(prompt, lambda text: context.adapter.parse((text,), prompt.parser))
        made = conditions.repair(
            "repair:all", pairs, how=self.how, strength=self.strength, special=self.special, pooled=self.pooled
        )
        is_read = self.how != "pairwise" or any(item.may_read(other) for item, others in pairs for other in others)
        is_more = self.special != "keep" or made.pooled != conditions.full
        idle = None
        if not pairs and not is_more:
            reason = (
                "it found no objects in the prompt" if not prompt.objects() else "there is no other item to clean of"
            )
            idle = Idle(reason=reason, remedy="Name items=.")
        elif not is_read and not is_more:
            reason = "its items stand before the others, and cannot have read them"
            idle = Idle(reason=reason, remedy="Name items= that stand behind others, or set how='masked'.")
        return _Repair(conditions=conditions, condition=made if idle is None else conditions.whole(), idle=idle)

    def _pairs(
        self, context: PlanContext, prompt: Prompt, named: Sequence[Item | str]
    ) -> list[tuple[ResolvedItem, tuple[ResolvedItem, ...]]]:
        """The items to clean, each with those whose influence is to go; all by their places in the prompt."""
        cleaned = placed_items(prompt, named)
        objects = placed_items(prompt, self.sources)
        if not self.sources:  # objects that share no word with an item
            taken = {token for _, span in cleaned for token in span.tokens}
            objects = [pair for pair in objects if not taken & {*pair[1].tokens}]
        places = [span.by_encoder for _, span in cleaned]
        others = [pair for pair in objects if pair[1].by_encoder not in places]
        found = resolved_items(prompt, [*cleaned, *others], is_causal=context.adapter.text_is_causal)
        for each in found:
            if any(m.start() < each.span.end and each.span.start < m.end() for m in _QUOTED.finditer(prompt.text)):
                raise BadSetting(
                    f"The item {each.name!r} stands in quotes: text to be written, whose letters need their context.",
                    "Name other items.",
                )
        wanted = {span.by_encoder for _, span in objects}
        sources = [each for each in found if not self.sources or each.span.by_encoder in wanted]
        pairs = [(each, tuple(other for other in sources if other is not each)) for each in found[: len(cleaned)]]
        return [pair for pair in pairs if pair[1] or self.how != "pairwise"]

    @classmethod
    def embeds(cls, pipe: Any, prompts: Sequence[str], **settings: Any) -> dict[str, Tensor]:
        """Return repaired embeddings for a call without a session.

        Args:
            pipe: a diffusers pipeline.
            prompts: the prompts.
            **settings: the control's fields.

        Returns:
            Arguments for the pipeline: ``prompt_embeds``, and ``pooled_prompt_embeds`` where the family has them.
        """
        return text_embeds(pipe, cls(**settings), prompts)


@dataclass(frozen=True, kw_only=True)
class _Repair:
    """What is done to one prompt."""

    conditions: Conditions
    condition: Intervention
    idle: Idle | None = None


class _Cleaning:
    """Replaces the rows of one call, once."""

    def __init__(self, repairs: Sequence[_Repair], context: PlanContext) -> None:
        self._repairs = repairs
        self._prompt_B = [row.prompt for row in context.batch.only("cond").rows]

    def rewrite(self, states: PromptEmbeds, encode: Encode) -> PromptEmbeds:
        """Put clean rows in their places; what an image has of its own prompt comes from the pipeline."""
        readings = [reading for each in self._repairs for reading in each.condition.readings()]
        read = read_all(readings, encode, states.embeds.shape[1])
        rows = []
        for image, number in enumerate(self._prompt_B):
            repair = self._repairs[number]
            pooled = None if states.pooled is None else states.pooled[image]
            own = {repair.conditions.full: Row(states=states.embeds[image], pooled=pooled)}
            rows.append(compose(repair.condition, {**read, **own}, repair.conditions.padding))
        pooled_BC = [each.pooled for each in rows if each.pooled is not None]
        return PromptEmbeds(
            embeds=torch.stack([each.states for each in rows]), pooled=torch.stack(pooled_BC) if pooled_BC else None
        )

"""Structured guidance (StructureDiffusion): noun phrases, encoded on their own, give cross-attention its values.

Idea. A causal text encoder lets meaning leak from word to word: the row of "car" in "a white sheep and a red car" has
seen the sheep. Keys say where a word acts, values say what it does there. So the keys stay those of the whole
prompt, and the values are averaged over the prompt and over its copies in which the rows of one phrase come
from the encoding of that phrase alone. The layout stays, the content of each phrase is its own.

What differs from the published code. ``to_v`` is linear, so the mean over several values is one attention with one
averaged context: it costs nothing. A strength scales it. Phrases are found by character, in all sentences, through
quotes, brackets and accents, each once; one that is the whole prompt does not dilute the others. Each prompt of a
batch has its own phrases; all of them are encoded in one batch, by every text encoder.

Legend: ``B`` batch row, ``E`` prompt or negative prompt, ``N`` phrase, ``H`` head, ``Q`` image position, ``K`` position
of the text row, ``D`` head width, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from t2ictl.attention.edits import Edit
from t2ictl.attention.layers import Layer, select_layers
from t2ictl.controls.base import Control, Idle, Plan, PlanContext
from t2ictl.controls.registry import register_control
from t2ictl.errors import NeedsSession, UnsupportedPipeline
from t2ictl.processors.structured_guidance.edits import AveragedMaps, AveragedValues, Structure, Weighting
from t2ictl.processors.structured_guidance.phrases import Levels, PhraseNames, ResolvedPhrase, resolve_phrases, why_none
from t2ictl.prompts.per_prompt import per_prompt
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window
from t2ictl.standalone.recorder import attention_processors

__all__ = ["StructuredGuidance"]


@register_control(
    "structured_guidance",
    paper="Feng, He, Fu, Jampani, Akula, Narayana, Basu, Wang, Wang: Training-Free Structured Diffusion Guidance for "
    "Compositional Text-to-Image Synthesis, ICLR 2023, arXiv 2212.05032",
    published={"aliasing": True},
    needs=("values",),
)
@settings_class
class StructuredGuidance(Control):
    """Let every noun phrase, encoded on its own, give cross-attention its values (StructureDiffusion).

    With ``W`` the text rows of the prompt and ``W_i`` the same with the rows of phrase ``i`` from its own encoding,
    attention is ``softmax(Q f_K(W)^T / sqrt(d)) f_V(W + strength (mean(W, W_1, ..., W_k) - W))``. Fields of one mode
    have no effect in the other.

    Args:
        phrases: the phrases, by their words; empty for the noun phrases that the parser finds; or one list for
            each prompt. In the negative prompt they are always found. A phrase at the very beginning of a prompt has
            the same rows alone, since a causal encoder has read nothing before it; only its share in the mean counts.
            ``"a red ring#2"`` is the second of two.
        levels: of the noun phrases found, all, the ``"highest"`` (inside no other) or the ``"lowest"`` (with no other
            inside). The whole prompt is never one.
        strength: 0 is the untouched model, 1 the published mean; more extrapolates.
        mode: ``"values"``: keys of the prompt, averaged values. ``"keys"``, the published conjunction for objects that
            are missing: ``mean_i(softmax(Q f_K(W_i)^T / sqrt(d))) f_V(V)``, several attention maps, one value.
        weighting: what phrase ``i`` counts at a token, in values mode; the prompt's own row has the rest.
            ``"official"``: ``1 / (k + 1)`` for ``k`` phrases, so more phrases dilute each other. ``"token"``:
            ``1 / (m + 1)`` for the ``m`` phrases that hold the token. ``"depth"``: ``w_i / (1 + sum w)`` over these,
            with ``w = 1 / (1 + level)``, so that of nested phrases the narrow one counts most.
        conjunction: ``V`` in keys mode: ``"aligned"``: the rows of all phrases from their own encodings, the narrowest
            where they nest; ``"paper"``: the prompt's.
        aliasing: in keys mode take all phrases' rows for the first key too, as the published code does by an
            oversight, instead of the prompt's own.
        positions: where a phrase is read when it is encoded alone: ``"own"``: from the first position on, as published;
            ``"prompt"``: from where it stands in the prompt. A row says where its word stands, and a later object whose
            values call it the first one may take the place of that one.
        branch: which side of the guidance is edited; for the unconditional side by the phrases of the negative prompt.
        window: part of the schedule in which it acts.
        layers: layer filter; empty for every cross-attention.

    Example:
        >>> StructuredGuidance(strength=1.5, levels="lowest").mode
        'values'

    Reference:
        Feng et al., "Training-Free Structured Diffusion Guidance for Compositional Text-to-Image Synthesis", ICLR 2023,
        arXiv 2212.05032.
    """

    phrases: PhraseNames = setting(default=(), help="phrases by their words; empty: found in the prompt")
    levels: Levels = setting(default="all", help="which of the noun phrases found")
    strength: float = setting(default=1.0, help="0 is the untouched model, 1 the published mean", low=0.0, high=8.0)
    mode: Literal["values", "keys"] = setting(default="values", help="averaged values, or averaged maps (conjunction)")
    weighting: Weighting = setting(default="official", help="values mode: what a phrase counts at a token")
    conjunction: Literal["aligned", "paper"] = setting(default="aligned", help="keys mode: the value")
    aliasing: bool = setting(default=False, help="keys mode: the first key as in the published code")
    positions: Literal["own", "prompt"] = setting(default="own", help="where a phrase is read when encoded alone")
    branch: Literal["cond", "uncond", "both"] = setting(default="cond", help="which side of the guidance")
    window: Window = setting(default=Window(), help="part of the schedule in which it acts")
    layers: tuple[str, ...] = setting(default=(), help="layer filter; empty: every cross-attention")

    has_losses = False

    def plan(self, context: PlanContext) -> Plan:
        """Find and encode the phrases, and say at which layers they act."""
        if self.strength == 0:
            return Plan()
        if self.mode == "keys" and context.adapter.port.component != "unet":
            raise UnsupportedPipeline(
                "StructuredGuidance with several keys is for U-Nets: transformers normalize keys in ways of their own.",
                "Use mode='values', which costs nothing.",
            )
        layers = select_layers(
            [layer for layer in context.adapter.layers if layer.kind == "cross"], self.layers or "cross"
        )
        _check_layers(context, layers)
        sides = {"cond": (self.phrases, context.prompts), "uncond": ((), context.negative_prompts)}
        found = {
            role: resolve_phrases(named, self.levels, prompts, context.adapter, control=self.name)
            for role, (named, prompts) in sides.items()
            if self.branch in (role, "both")
        }
        roles = {row.role for row in context.batch.rows}
        used: dict[tuple[str, int], Sequence[ResolvedPhrase]] = {
            (role, number): own
            for role, each in found.items()
            for number, own in enumerate(each)
            if role in roles and self._reads_anew(own, context)
        }
        idle = self._idle(used, found, context)
        states = self._encoded([phrase for own in used.values() for phrase in own], context)
        if not states:
            return Plan(idle=idle)
        structures = {
            key: Structure.from_encodings([states[self._read(phrase)] for phrase in own], own)
            for key, own in used.items()
        }
        return Plan(
            edits=((layers, self._edit(structures)),),
            owns=("cross.values", *(("cross.keys",) if self.mode == "keys" else ())),
            idle=idle,
        )

    def _reads_anew(self, own: Sequence[ResolvedPhrase], context: PlanContext) -> bool:
        """Whether a phrase has read something before it: one at the beginning has the rows that it has alone."""
        return any(phrase.first > 1 or not context.adapter.text_is_causal for phrase in own)

    def _idle(
        self,
        used: Collection[tuple[str, int]],
        found: Mapping[str, Sequence[Sequence[ResolvedPhrase]]],
        context: PlanContext,
    ) -> tuple[Idle, ...]:
        """Why images of which no side has phrases are left alone."""
        images: dict[Idle, list[int]] = {}
        for image, row in enumerate(context.batch.only("cond").rows):
            if not any((role, row.prompt) in used for role in found):
                images.setdefault(self._why(row.prompt, found, context), []).append(image)
        return tuple(replace(each, images=tuple(own)) for each, own in images.items())

    def _why(self, number: int, found: Mapping[str, Sequence[Sequence[ResolvedPhrase]]], context: PlanContext) -> Idle:
        is_cond = "cond" in found
        if not is_cond and not context.batch.indices("uncond"):
            return Idle(reason="guidance is off, so there is no unconditional side", remedy="Raise guidance_scale.")
        if not is_cond and not context.negative_prompts:
            return Idle(reason="there is no negative prompt", remedy="Pass negative_prompt=, or set branch='cond'.")
        prompts, named = (context.prompts, self.phrases) if is_cond else (context.negative_prompts, ())
        if found["cond" if is_cond else "uncond"][number]:
            begin = "its phrases stand at the beginning of the prompt, where they have read nothing else"
            return Idle(reason=begin, remedy="Name others in phrases=.")
        own = per_prompt(named, len(prompts), setting=f"{self.name}.phrases", things="phrases")[number]
        is_empty = bool(named) and not own
        reason = "phrases= has none for the prompt" if is_empty else why_none(own if named else None, prompts[number])
        return Idle(reason=reason, remedy="Name others in phrases=.", is_wanted=is_empty)

    def _edit(self, structures: dict[tuple[str, int], Structure]) -> Edit:
        """The edit of the mode."""
        if self.mode == "values":
            return AveragedValues(structures, self.strength, self.window, weighting=self.weighting)
        return AveragedMaps(
            structures, self.strength, self.window, conjunction=self.conjunction, aliasing=self.aliasing
        )

    def _read(self, phrase: ResolvedPhrase) -> tuple[str, int]:
        """What is encoded for a phrase: its text, and the position from which on it is read."""
        return phrase.text, phrase.first if self.positions == "prompt" else 1

    def _encoded(self, phrases: Sequence[ResolvedPhrase], context: PlanContext) -> dict[tuple[str, int], Tensor]:
        """Encode every phrase once, all in one batch: ``states_KC`` by text and position."""
        once = list(dict.fromkeys(map(self._read, phrases)))
        if not once:
            return {}
        texts, first = zip(*once, strict=True)
        is_moved = any(place != 1 for place in first)
        states = context.encoded(texts, first if is_moved else None).embeds
        with torch.no_grad():
            return dict(zip(once, context.adapter.port.attended_text(states), strict=True))

    @classmethod
    def attn_processors(cls, pipe: Any, prompts: Sequence[str], **settings: Any) -> dict[str, Any]:
        """Return plain attention processors that do the same without a session, on the rows of these prompts.

        Args:
            pipe: a diffusers pipeline.
            prompts: the prompts that it will be called with, one or several.
            **settings: the control's fields.

        Returns:
            A new dict for ``unet.set_attn_processor``, which empties the one that it is given.

        Raises:
            NeedsSession: for a window or the unconditional branch, which a processor cannot know.

        Example:
            >>> import t2ictl
            >>> pipe, prompt = t2ictl.load("shapes"), "a red circle and a blue square"
            >>> before = pipe.unet.attn_processors
            >>> pipe.unet.set_attn_processor(StructuredGuidance.attn_processors(pipe, [prompt]))
            >>> image = pipe(prompt, num_inference_steps=2).images[0]
            >>> pipe.unet.set_attn_processor(dict(before))
        """
        control = cls(**settings)
        if control.window != Window() or control.branch != "cond":
            raise NeedsSession(
                "An attention processor sees neither the step nor the branch of the guidance.",
                "Leave window and branch as they are, or use a session.",
            )
        return attention_processors(pipe, control, prompts)


def _check_layers(context: PlanContext, layers: Sequence[Layer]) -> None:
    for layer in layers:
        if getattr(context.adapter.denoiser.get_submodule(layer.module), "norm_cross", None):
            raise UnsupportedPipeline(
                f"The layer {layer.address} normalizes the text states, and a mean of them would not be one of values.",
                "Keep this control's layers away from it.",
            )

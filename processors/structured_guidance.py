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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from t2ictl.attention import AttentionCall, Edit, Step
from t2ictl.bound_phrases import BoundPhrase, Levels, PhraseNames, bound_phrases
from t2ictl.controls import Control, Plan, PlanContext, register_control
from t2ictl.edits import Heads, fused, project_keys
from t2ictl.errors import NeedsSession, UnsupportedPipeline
from t2ictl.fields import setting, settings_class
from t2ictl.lanes import Lanes
from t2ictl.latest import Latest
from t2ictl.sessionless import attention_processors
from t2ictl.sites import Site, select
from t2ictl.windows import Window

__all__ = ["StructuredGuidance", "phrase_weights"]

Weighting = Literal["official", "token", "depth"]


@register_control(
    "structured_guidance",
    paper="Feng, He, Fu, Jampani, Akula, Narayana, Basu, Wang, Wang: Training-Free Structured Diffusion Guidance for "
    "Compositional Text-to-Image Synthesis, ICLR 2023, arXiv 2212.05032",
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
        sites: layer filter; empty for every cross-attention.

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
    sites: tuple[str, ...] = setting(default=(), help="layer filter; empty: every cross-attention")

    has_losses = False

    def plan(self, context: PlanContext) -> Plan:
        """Find and encode the phrases, and say at which layers they act."""
        if self.strength == 0:
            return Plan()
        sites = select([site for site in context.adapter.sites if site.kind == "cross"], self.sites or "cross")
        _check_layers(context, sites)
        sides = {"cond": (self.phrases, context.prompts), "uncond": ((), context.negative_prompts)}
        found = {
            role: bound_phrases(named, self.levels, prompts, context.adapter, control=self.name)
            for role, (named, prompts) in sides.items()
            if self.branch in (role, "both")
        }
        states = self._encoded([phrase for role in found.values() for own in role for phrase in own], context)
        if not states:
            return Plan()
        structures = {
            (role, number): Structure.of([states[self._read(phrase)] for phrase in own], own)
            for role, prompts in found.items()
            for number, own in enumerate(prompts)
            if own
        }
        return Plan(
            edits=((sites, edit_of(self, structures)),),
            owns=("cross.values", *(("cross.keys",) if self.mode == "keys" else ())),
        )

    def _read(self, phrase: BoundPhrase) -> tuple[str, int]:
        """What is encoded for a phrase: its text, and the position from which on it is read."""
        return phrase.text, phrase.first if self.positions == "prompt" else 1

    def _encoded(self, phrases: Sequence[BoundPhrase], context: PlanContext) -> dict[tuple[str, int], Tensor]:
        """Encode every phrase once, all in one batch: ``states_KC`` by text and position."""
        once = list(dict.fromkeys(map(self._read, phrases)))
        if not once:
            return {}
        texts, first = zip(*once, strict=True)
        is_moved = any(place != 1 for place in first)
        return dict(zip(once, context.encoded(texts, first if is_moved else None).rows, strict=True))

    @classmethod
    def processors(cls, pipe: Any, prompts: Sequence[str], **settings: Any) -> dict[str, Any]:
        """Give plain attention processors that do the same without a session, on the rows of these prompts.

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
            >>> pipe.unet.set_attn_processor(StructuredGuidance.processors(pipe, [prompt]))
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


def _check_layers(context: PlanContext, sites: Sequence[Site]) -> None:
    for site in sites:
        if getattr(context.adapter.denoiser.get_submodule(site.module), "norm_cross", None):
            raise UnsupportedPipeline(
                f"The layer {site.address} normalizes the text states, and a mean of them would not be one of values.",
                "Keep this control's sites away from it.",
            )


def phrase_weights(holds_NK: Tensor, levels_N: Tensor, weighting: Weighting) -> Tensor:
    """What each phrase counts at each token in the mean of values; the prompt's own row has the rest to 1.

    ``"official"``: ``1 / (k + 1)``; ``"token"``: ``1 / (m + 1)``; ``"depth"``: ``w_i / (1 + sum w)`` with
    ``w = 1 / (1 + level)``.

    Args:
        holds_NK: True where phrase ``n`` of ``k`` holds token ``k``.
        levels_N: level of each phrase: 0 for one with no other inside.
        weighting: the rule.

    Returns:
        ``weights_NK`` in [0, 1); 0 outside the phrase.

    Example:
        >>> holds = torch.tensor([[True, True], [False, True]])  # "of two", and the second of them
        >>> phrase_weights(holds, torch.tensor([1, 0]), "token")[:, 1].tolist()
        [0.3333333432674408, 0.3333333432674408]

    Reference:
        Feng et al. 2023, arXiv 2212.05032, the mean over values; the other two rules are this library's.
    """
    counts_NK = holds_NK.float()
    if weighting == "official":
        return counts_NK / (len(holds_NK) + 1)
    if weighting == "depth":
        counts_NK = counts_NK / (1 + levels_N.to(counts_NK))[:, None]
    return counts_NK / (1 + counts_NK.sum(dim=0, keepdim=True))


def _exact(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The phrases of one prompt as rows, the widest first.

    Args:
        states: ``states_NKC``: row ``k`` of phrase ``n`` is what stands for token ``k`` of the prompt.
        holds: ``holds_NK``, True where phrase ``n`` holds token ``k``.
        levels: ``levels_N``.
    """

    states: Tensor
    holds: Tensor
    levels: Tensor

    @classmethod
    def of(cls, encoded: Sequence[Tensor], phrases: Sequence[BoundPhrase]) -> Structure:
        """Put the rows of each phrase where its tokens stand in the prompt.

        Args:
            encoded: ``states_KC`` of each phrase alone.
            phrases: the phrases.

        Returns:
            The structure.
        """
        states_NKC = torch.zeros_like(_exact(torch.stack(list(encoded))))
        holds_NK = torch.zeros(states_NKC.shape[:2], dtype=torch.bool, device=states_NKC.device)
        widest_first = sorted(zip(encoded, phrases, strict=True), key=lambda pair: -len(pair[1].positions))
        for number, (own_KC, phrase) in enumerate(widest_first):
            places, rows = (torch.tensor(each, device=own_KC.device) for each in (phrase.positions, phrase.rows))
            states_NKC[number, places] = own_KC[rows].to(states_NKC)
            holds_NK[number, places] = True
        levels_N = torch.tensor([phrase.level for _, phrase in widest_first], device=states_NKC.device)
        return cls(states=states_NKC, holds=holds_NK, levels=levels_N)

    def like(self, context: Tensor) -> Structure:
        """The same on the device of a context, and in its precision or float32 if that is better."""
        dtype = torch.promote_types(context.dtype, torch.float32)
        if self.states.device == context.device and self.states.dtype == dtype:
            return self
        device = context.device
        return Structure(
            states=self.states.to(device, dtype), holds=self.holds.to(device), levels=self.levels.to(device)
        )

    def mean(self, context_KC: Tensor, weighting: Weighting, strength: float) -> Tensor:
        """The averaged value context ``W + strength (mean - W)`` of the prompt's rows ``context_KC``."""
        weights_NK = phrase_weights(self.holds, self.levels, weighting).to(self.states)
        own_KC = torch.einsum("nk,nkc->kc", weights_NK, self.states)
        return context_KC + strength * (own_KC - weights_NK.sum(dim=0)[:, None] * context_KC)

    def aligned(self, context_KC: Tensor) -> Tensor:
        """The prompt's rows with those of all phrases from their own encodings; the last phrase wins."""
        for holds_K, states_KC in zip(self.holds, self.states, strict=True):
            context_KC = torch.where(holds_K[:, None], states_KC, context_KC)
        return context_KC

    def each(self, context_KC: Tensor) -> Tensor:
        """The prompt's rows with those of one phrase after the other: ``aligned_NKC``."""
        return torch.where(self.holds[..., None], self.states, context_KC)


@dataclass(eq=False)
class _Structured(Edit):
    """What both modes share: which rows have phrases, and when they act."""

    settings: StructuredGuidance
    structures: dict[tuple[str, int], Structure]
    _valued: Latest = field(default_factory=Latest)
    _keyed: Latest = field(default_factory=Latest)

    def acts(self, step: Step) -> bool:
        """Inside the window only."""
        return self.settings.window.contains(step.index, step.total)

    def _rows(self, lanes: Lanes, like: Tensor) -> list[tuple[int, Structure]]:
        """The rows that have phrases, which lie where the context does: it may have moved since they were encoded."""
        found = []
        for row, lane in enumerate(lanes.lanes):
            key = (lane.role, lane.prompt)
            if key in self.structures:
                self.structures[key] = self.structures[key].like(like)
                found.append((row, self.structures[key]))
        return found

    def _replaced(self, context_BKC: Tensor, lanes: Lanes, make: Callable[[Structure, Tensor], Tensor]) -> Tensor:
        """A copy of the context in which the rows with phrases are made anew, computed in at least float32."""
        made_BKC = context_BKC.clone()
        for row, structure in self._rows(lanes, context_BKC):
            made_BKC[row] = make(structure, _exact(context_BKC[row])).to(made_BKC)
        return made_BKC


class _Values(_Structured):
    """Keys of the prompt, values of one averaged context."""

    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        """Average the context."""
        weighting, strength = self.settings.weighting, self.settings.strength

        def mean(structure: Structure, context_KC: Tensor) -> Tensor:
            return structure.mean(context_KC, weighting, strength)

        return self._valued(context_BKC, call.lanes, lambda: self._replaced(context_BKC, call.lanes, mean))


@dataclass(frozen=True)
class _KeySet:
    """One further key sequence for each of some rows."""

    rows_G: Tensor
    context_GKC: Tensor
    weight_G: Tensor


class _Conjunction(_Structured):
    """Several keys, whose maps are averaged, and one value."""

    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        """Align the context with all phrases, unless the value is the prompt's."""
        if self.settings.conjunction == "paper":
            return context_BKC

        def aligned(structure: Structure, context_KC: Tensor) -> Tensor:
            return torch.lerp(context_KC, structure.aligned(context_KC), self.settings.strength)

        return self._valued(context_BKC, call.lanes, lambda: self._replaced(context_BKC, call.lanes, aligned))

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Sum the attention under each key, one fused call a key: ``mean(maps) V`` without a map in memory."""
        out_BHQD = fused(call.attention, heads)
        sets = self._keyed(heads.context, call.lanes, lambda: self._key_sets(heads.context, call.lanes))
        rest_B = torch.ones(len(out_BHQD), device=out_BHQD.device)
        for each in sets:
            rest_B = rest_B.index_add(0, each.rows_G, -each.weight_G)
        out_BHQD = out_BHQD * rest_B.to(out_BHQD)[:, None, None, None]
        for each in sets:
            rows_G = each.rows_G
            part = replace(
                heads,
                q=heads.q[rows_G],
                k=project_keys(call.attention, each.context_GKC),
                v=heads.v[rows_G],
                mask=None if heads.mask is None else heads.mask[rows_G],
            )
            part_GHQD = fused(call.attention, part) * each.weight_G.to(out_BHQD)[:, None, None, None]
            out_BHQD = out_BHQD.index_add(0, rows_G, part_GHQD)
        return out_BHQD

    def _key_sets(self, context_BKC: Tensor, lanes: Lanes) -> list[_KeySet]:
        """The keys beside the prompt's own, the first of all rows together, then the second, and so on."""
        columns: list[list[tuple[int, Tensor, float]]] = []
        for row, structure in self._rows(lanes, context_BKC):
            context_KC = _exact(context_BKC[row])
            keys = list(structure.each(context_KC))
            weight = self.settings.strength / (len(keys) + 1)
            if self.settings.aliasing:
                keys.insert(0, structure.aligned(context_KC))
            columns += [[] for _ in range(len(keys) - len(columns))]
            for column, key_KC in zip(columns, keys, strict=False):
                column.append((row, key_KC, weight))
        device = context_BKC.device
        return [
            _KeySet(
                rows_G=torch.tensor([row for row, _, _ in column], device=device),
                context_GKC=torch.stack([key_KC for _, key_KC, _ in column]).to(context_BKC),
                weight_G=torch.tensor([weight for _, _, weight in column], device=device),
            )
            for column in columns
        ]


def edit_of(settings: StructuredGuidance, structures: dict[tuple[str, int], Structure]) -> Edit:
    """Make the edit of cross-attention.

    Args:
        settings: the control.
        structures: by role (``"cond"`` or ``"uncond"``) and number of the prompt, its phrases.

    Returns:
        The edit of the control's mode.
    """
    return (_Values if settings.mode == "values" else _Conjunction)(settings, structures)

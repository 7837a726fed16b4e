"""What structured guidance does in cross-attention: averaged values, or averaged maps of several keys.

Legend: ``B`` batch row, ``G`` some of the rows, ``N`` phrase, ``H`` head, ``Q`` image position, ``K`` token, ``D`` head
width, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.cache import TensorCache
from t2ictl.attention.edits import AttentionCall, Edit, Heads, fused, project_keys
from t2ictl.processors.structured_guidance.phrases import ResolvedPhrase
from t2ictl.settings.windows import Step, Window

__all__ = ["AveragedMaps", "AveragedValues", "Structure", "Weighting", "phrase_weights"]


Weighting = Literal["official", "token", "depth"]


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
    def from_encodings(cls, encoded: Sequence[Tensor], phrases: Sequence[ResolvedPhrase]) -> Structure:
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

    structures: dict[tuple[str, int], Structure]
    strength: float
    window: Window
    _valued: TensorCache = field(default_factory=TensorCache)
    _keyed: TensorCache = field(default_factory=TensorCache)

    def acts(self, step: Step) -> bool:
        """Inside the window only."""
        return self.window.holds(step)

    def _rows(self, batch: BatchLayout, like: Tensor) -> list[tuple[int, Structure]]:
        """The rows that have phrases, which lie where the context does: it may have moved since they were encoded."""
        found = []
        for row, entry in enumerate(batch.rows):
            key = (entry.role, entry.prompt)
            if key in self.structures:
                self.structures[key] = self.structures[key].like(like)
                found.append((row, self.structures[key]))
        return found

    def _replaced(self, context_BKC: Tensor, batch: BatchLayout, make: Callable[[Structure, Tensor], Tensor]) -> Tensor:
        """A copy of the context in which the rows with phrases are made anew, computed in at least float32."""
        made_BKC = context_BKC.clone()
        for row, structure in self._rows(batch, context_BKC):
            made_BKC[row] = make(structure, _exact(context_BKC[row])).to(made_BKC)
        return made_BKC


@dataclass(eq=False)
class AveragedValues(_Structured):
    """Keys of the prompt, values of one averaged context.

    Args:
        structures: by role (``"cond"`` or ``"uncond"``) and number of the prompt, its phrases.
        strength: how far values move to the mean.
        window: when it acts.
        weighting: what a phrase counts at a token.
    """

    weighting: Weighting = "official"

    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        """Average the context."""

        def mean(structure: Structure, context_KC: Tensor) -> Tensor:
            return structure.mean(context_KC, self.weighting, self.strength)

        return self._valued(context_BKC, call.batch, lambda: self._replaced(context_BKC, call.batch, mean))


@dataclass(frozen=True)
class _KeySet:
    """One further key sequence for each of some rows."""

    rows_G: Tensor
    context_GKC: Tensor
    weight_G: Tensor


@dataclass(eq=False)
class AveragedMaps(_Structured):
    """Several keys, whose maps are averaged, and one value.

    Args:
        structures: by role (``"cond"`` or ``"uncond"``) and number of the prompt, its phrases.
        strength: share of the maps that the phrases' keys give.
        window: when it acts.
        conjunction: ``"aligned"``: the value has the phrases' own encodings; ``"paper"``: it is the prompt's.
        aliasing: the first key is the aligned one too, as in the published code.
    """

    conjunction: Literal["aligned", "paper"] = "aligned"
    aliasing: bool = False

    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        """Align the context with all phrases, unless the value is the prompt's."""
        if self.conjunction == "paper":
            return context_BKC

        def aligned(structure: Structure, context_KC: Tensor) -> Tensor:
            return torch.lerp(context_KC, structure.aligned(context_KC), self.strength)

        return self._valued(context_BKC, call.batch, lambda: self._replaced(context_BKC, call.batch, aligned))

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Sum the attention under each key, one fused call a key: ``mean(maps) V`` without a map in memory."""
        out_BHQD = fused(call.attention, heads)
        sets = self._keyed(heads.context, call.batch, lambda: self._key_sets(heads.context, call.batch))
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

    def _key_sets(self, context_BKC: Tensor, batch: BatchLayout) -> list[_KeySet]:
        """The keys beside the prompt's own, the first of all rows together, then the second, and so on."""
        columns: list[list[tuple[int, Tensor, float]]] = []
        for row, structure in self._rows(batch, context_BKC):
            context_KC = _exact(context_BKC[row])
            keys = list(structure.each(context_KC))
            weight = self.strength / (len(keys) + 1)
            if self.aliasing:
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

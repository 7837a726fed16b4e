"""The text rows of one pipeline call: rewritten once, added to by step, moved by objectives.

Legend: ``B`` image, ``G`` row of a pass (any image, any text), ``K`` position of the text row, ``C`` channels,
``Y`` ``X`` rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.guidance.text_objectives import TextEdit
from t2ictl.guidance.text_updates import EmbedMove, perturb_embeds, update_embeds
from t2ictl.session.extra_passes import Evaluation, ExtraPasses

__all__ = ["EmbedsState"]

# The denoiser turns a mask m into the bias (m - 1) 10000.
_MASK_BIAS = 10_000.0


@dataclass(frozen=True)
class _Passes:
    """The passes of one evaluation, as objectives on text rows ask for them."""

    own: ExtraPasses
    now: Evaluation

    def maps(self, layers: tuple[Layer, ...], embeds_BTC: Tensor) -> Tensor:
        x_BCYX = self.own.adapter.port.latents(self.now.inputs)[self.now.cond]
        return self.own.maps([layers], self.now)(x_BCYX, embeds_BTC=embeds_BTC)[0]

    def noise(self, embeds_GTC: Tensor, image_G: Tensor) -> Tensor:
        return self.own.noise(embeds_GTC, image_G, self.now)


@dataclass
class EmbedsState:
    """What one plan does to the text states of one call.

    Args:
        edit: the plan's.
    """

    edit: TextEdit
    moved: Tensor | None = None

    def inputs(self, now: Evaluation) -> dict[str, Any]:
        """Return the denoiser's arguments that differ from those of the pipeline.

        Args:
            now: the evaluation, with the pipeline's own arguments.

        Returns:
            Arguments by name.
        """
        states, changed = now.inputs["encoder_hidden_states"], {}
        embeds_BTC = self._rows(now)
        if embeds_BTC is not None:
            changed["encoder_hidden_states"] = _with_rows(states, now.cond, embeds_BTC.to(states.dtype))
        if self.edit.weight is not None:
            weight_BK = self.edit.weight.to(device=states.device, dtype=torch.float32)
            mask_BK = (1 + weight_BK.log() / _MASK_BIAS).clamp_min(0)
            full_BK = torch.ones(states.shape[:2], device=states.device)
            changed["encoder_attention_mask"] = _with_rows(full_BK, now.cond, mask_BK)
        return changed

    def update(self, now: Evaluation, own: ExtraPasses) -> tuple[MoveTrace, ...]:
        """Let the objectives move rows before an evaluation.

        Args:
            now: the evaluation, with the pipeline's own arguments.
            own: runs the denoiser.

        Returns:
            What was found and done.
        """
        acting = [each for each in self.edit.objectives if each.window.holds(now.step)]
        if not acting and self.edit.perturb is None:
            return ()
        states = now.inputs["encoder_hidden_states"]
        exact = torch.promote_types(states.dtype, torch.float32)
        base_BKC = states[now.cond].detach().to(exact)
        here_BKC = self._rows(now)
        embeds_BTC = start_BKC = base_BKC if here_BKC is None else here_BKC
        trace: list[MoveTrace] = []
        # The mask of this call must reach extra passes too.
        masked = replace(now, inputs={**now.inputs, **self.inputs(now)})
        for objective in acting:
            seen = _without_pooled(masked) if objective.zero_pooled else masked
            found = update_embeds(embeds_BTC, objective, _Passes(own, seen), now.step, states.dtype)
            embeds_BTC = self._take(found, trace)
            own.cost.backwards += found.backwards
        if self.edit.perturb is not None:
            embeds_BTC = self._take(
                perturb_embeds(embeds_BTC, self.edit.perturb(embeds_BTC, now.step), now.step, states.dtype), trace
            )
        change_BKC = embeds_BTC - start_BKC
        self.moved = change_BKC if self.moved is None else self.moved + change_BKC
        return tuple(trace)

    def _take(self, found: EmbedMove, trace: list[MoveTrace]) -> Tensor:
        trace.extend(found.trace)
        return found.rows

    def _rows(self, now: Evaluation) -> Tensor | None:
        """The rows of this evaluation, or None where they are those of the pipeline."""
        during_BKC = self.edit.during(now.step) if self.edit.during is not None else None
        added = [each for each in (during_BKC, self.moved) if each is not None]
        if not added:
            return None
        embeds_BTC = now.inputs["encoder_hidden_states"][now.cond].detach()
        embeds_BTC = embeds_BTC.to(torch.promote_types(embeds_BTC.dtype, torch.float32))
        for each in added:
            embeds_BTC = embeds_BTC + each.to(embeds_BTC)
        return embeds_BTC


def _without_pooled(now: Evaluation) -> Evaluation:
    """An evaluation whose pooled text states, where there are any, are zero."""
    added = now.inputs.get("added_cond_kwargs") or {}
    if "text_embeds" not in added:
        return now
    zero = {**added, "text_embeds": torch.zeros_like(added["text_embeds"])}
    return replace(now, inputs={**now.inputs, "added_cond_kwargs": zero})


def _with_rows(full: Tensor, rows: slice, values: Tensor) -> Tensor:
    """A copy of a tensor with some batch rows replaced."""
    made = full.clone()
    made[rows] = values.to(made)
    return made

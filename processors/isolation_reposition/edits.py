"""What isolation and reposition do in attention layers.

Legend: ``B`` batch row, ``R`` rows of one scene, ``H`` head, ``N`` position, ``Q`` position of a subject, ``K`` text
position, ``D`` head width, ``C`` channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from t2ictl.attention.edits import AttentionCall, Edit, Heads, fused, project_keys, split_heads
from t2ictl.attention.grouped import Grouping, grouped_attention
from t2ictl.attention.layers import Layer
from t2ictl.errors import UnsupportedPipeline
from t2ictl.processors.isolation_reposition.scene_state import Scenes
from t2ictl.settings.windows import Step

__all__ = ["Apart", "Retold"]


@dataclass(eq=False)
class Apart(Edit):
    """Self-attention: subjects do not see each other, and read their portraits."""

    scenes: Scenes
    apart: frozenset[Layer]

    def acts(self, step: Step) -> bool:
        """Inside the window, as soon as some place is known."""
        return self.scenes.acts(step)

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Attend group by group in the scenes, as ever in all other rows."""
        if heads.mask is not None:
            raise UnsupportedPipeline(
                f"The self-attention of {call.layer.address} has a mask.", "Keep this control's layers away from it."
            )
        self.scenes.keep(call, heads.context)
        states_BNC = self.scenes.absent_states(call, heads.context)
        if states_BNC is not None:
            k_BHND, v_BHND = projected(call.attention, states_BNC)
            heads = replace(heads, k=torch.cat([heads.k, k_BHND]), v=torch.cat([heads.v, v_BHND]))
        grouped: dict[tuple[int, ...], Grouping] = {}
        for image in self.scenes.assignment.scenes:
            rows = self.scenes.rows(call.batch, image)
            grouping = self.scenes.grouping(call, image, rows, apart=call.layer in self.apart) if rows else None
            if grouping is not None:
                grouped[tuple(rows.values())] = grouping
        taken = {row for rows in grouped for row in rows}
        plain = [row for row in range(len(heads.q)) if row not in taken]
        out_BHND = torch.empty_like(heads.q)
        if plain:
            own = replace(heads, q=heads.q[plain], k=heads.k[plain], v=heads.v[plain])
            out_BHND[plain] = fused(call.attention, own)
        for own_rows, grouping in grouped.items():
            out_RHND = grouped_attention(heads.q, heads.k, heads.v, own_rows, grouping, call.attention.scale)
            out_BHND[list(own_rows)] = out_RHND
        return out_BHND


@dataclass(eq=False)
class Retold(Edit):
    """Cross-attention: positions read what portraits say beside the prompt, on the conditional side."""

    scenes: Scenes

    def acts(self, step: Step) -> bool:
        """Inside the window, as soon as some place is known."""
        return self.scenes.acts(step)

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Blend the two at the positions of subjects."""
        own_BHND, weight = fused(call.attention, heads), self.scenes.settings.cross * self.scenes.settings.strength
        out_BHND = own_BHND.clone()  # written into; what the kernel keeps for its own backward pass is not
        for image in self.scenes.assignment.scenes:
            row = self.scenes.rows(call.batch, image).get("cond")
            places = self.scenes.told_positions(image, call.size) if row is not None else ()
            for number, places_Q in enumerate(places):
                text = self._text(call, heads, image, number) if len(places_Q) else None
                if row is None or text is None:
                    continue
                q_1HQD = heads.q[row : row + 1].index_select(2, places_Q)
                told_HQD = fused(call.attention, replace(heads, q=q_1HQD, k=text[0], v=text[1], mask=text[2]))[0]
                own_HQD = own_BHND[row].index_select(1, places_Q)
                out_BHND[row, :, places_Q] = torch.lerp(own_HQD, told_HQD, weight)
        return out_BHND

    def _text(
        self, call: AttentionCall, heads: Heads, image: int, number: int
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Keys, values and mask of what a subject is told: of the portrait's row, or of a text of its own."""
        states_KC = self.scenes.texts.get((image, number))
        if states_KC is not None:
            attention, states_1KC = call.attention, states_KC[None].to(heads.context)
            if attention.norm_cross:
                states_1KC = attention.norm_encoder_hidden_states(states_1KC)
            return *projected(attention, states_1KC), None
        portrait = self.scenes.assignment.portraits[image][number - 1] if number else None
        if self.scenes.settings.subject_text != "portrait_prompt" or portrait not in self.scenes.assignment.shown:
            return None
        there = self.scenes.rows(call.batch, portrait)["cond"]
        own = slice(there, there + 1)
        return heads.k[own], heads.v[own], None if heads.mask is None else heads.mask[own]


def projected(attention: Attention, states_BKC: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer for given states: ``k_BHKD, v_BHKD``."""
    return project_keys(attention, states_BKC), split_heads(attention, attention.to_v(states_BKC))

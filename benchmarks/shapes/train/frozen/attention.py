"""Joint attention of the transformer in training: explicit, and with a bias on keys.

Legend: ``B`` batch row, ``H`` head, ``Q`` position, ``K`` key, ``D`` head width, image rows first, text rows behind.
"""

from __future__ import annotations

from typing import Any

import torch


class ExplicitJointAttention:
    """Attention of image and text rows as products and a softmax.

    On a CPU the backward of the fused kernel costs more than that of its parts at this size.

    Example:
        >>> ExplicitJointAttention().__class__.__name__
        'ExplicitJointAttention'
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend.

        Args:
            attn: the layer.
            hidden_states: image rows, shape ``(B, Q, W)``.
            encoder_hidden_states: text rows, shape ``(B, T, W)``.
            attention_mask: bias on scores, broadcast to ``(B, H, Q + T, Q + T)``, or None.

        Returns:
            Image rows and text rows.
        """
        pixels = hidden_states.shape[1]

        def project(image: Any, text: Any, norm_image: Any, norm_text: Any) -> torch.Tensor:
            parts = []
            for linear, norm, rows in ((image, norm_image, hidden_states), (text, norm_text, encoder_hidden_states)):
                part = linear(rows).unflatten(-1, (attn.heads, -1))
                parts.append(part if norm is None else norm(part))
            return torch.cat(parts, dim=1).transpose(1, 2)

        query_BHQD = project(attn.to_q, attn.add_q_proj, attn.norm_q, attn.norm_added_q)
        key_BHKD = project(attn.to_k, attn.add_k_proj, attn.norm_k, attn.norm_added_k)
        value_BHKD = project(attn.to_v, attn.add_v_proj, None, None)
        scores_BHQK = (query_BHQD * query_BHQD.shape[-1] ** -0.5) @ key_BHKD.transpose(-1, -2)
        if attention_mask is not None:
            scores_BHQK = scores_BHQK + attention_mask
        mixed = (scores_BHQK.softmax(dim=-1) @ value_BHKD).transpose(1, 2).flatten(2)
        image, text = mixed[:, :pixels], mixed[:, pixels:]
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)

"""What may be done inside an attention layer: edits, at fixed stages.

One processor owns the arithmetic (:mod:`t2ictl.attention.processor`); a method is an edit of what goes through it.

Legend: ``B`` batch row, ``H`` head, ``Q`` image position (query), ``K`` text token or image
position (key), ``D`` head width, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.layers import Layer
from t2ictl.attention.softmax import scores, softmax
from t2ictl.errors import ControlConflict
from t2ictl.settings.windows import Step

__all__ = ["AttentionCall", "Edit", "Heads", "attend", "fused", "project_keys", "split_heads"]


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """What an edit may know about the layer it acts on.

    Args:
        layer: address of the layer.
        size: height and width of its image positions (map cells).
        batch: what each batch row is.
        step: which denoiser evaluation this is.
        attention: the layer itself, for its projections.
        image: where the places of the image stand among queries and keys of joint attention; None elsewhere.
        text: where text stands among them; None elsewhere.
    """

    layer: Layer
    size: tuple[int, int]
    batch: BatchLayout
    step: Step
    attention: Any
    image: slice | None = None
    text: slice | None = None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What attention proper works on.

    Args:
        q: queries ``q_BHQD``.
        k: keys ``k_BHKD``.
        v: values ``v_BHKD``.
        mask: bias of the logits that broadcasts to ``BHQK``, or None.
        context: ``context_BKC``, what the keys were projected from.
        scale: factor on the products; None for that of the layer.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    context: Tensor
    scale: float | None = None

    def factor(self, attention: Any) -> float:
        """Return the factor on the products."""
        return float(attention.scale) if self.scale is None else self.scale


class Edit:
    """One intervention in attention; override the stages it needs and leave the others.

    Edits of ``tokens``, ``values``, ``project``, ``attend`` and ``output`` keep the fused kernel. Overriding
    ``scores`` or ``weights`` costs an explicit softmax at the edit's own layers and steps.
    An edit returns new tensors and writes into none that it was given.

    Example:
        >>> class Mute(Edit):
        ...     def output(self, call, out_BQC):
        ...         return out_BQC * 0
        >>> Mute().stages
        ('output',)
    """

    STAGES = ("tokens", "values", "project", "attend", "scores", "weights", "output")

    def acts(self, step: Step) -> bool:
        """Return whether this edit has anything to do at a step; where none has, the call is not touched."""
        return True

    def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
        """Change what goes in: image states and context, before the projections."""
        return hidden_BQC, context_BKC

    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        """Change what values are projected from; keys keep the context that they have."""
        return context_BKC

    def project(
        self, call: AttentionCall, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Change queries, keys and values, split by head."""
        return q_BHQD, k_BHKD, v_BHKD

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Take the place of attention proper: give ``out_BHQD``. Only one edit of a layer can."""
        return fused(call.attention, heads)

    def scores(self, call: AttentionCall, scores_BHQK: Tensor) -> Tensor:
        """Change the logits before the softmax."""
        return scores_BHQK

    def weights(self, call: AttentionCall, weights_BHQK: Tensor) -> Tensor:
        """Change the attention weights after the softmax."""
        return weights_BHQK

    def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
        """Change the result, before the residual is added."""
        return out_BQC

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this edit overrides, in the order in which they run."""
        return tuple(name for name in self.STAGES if getattr(type(self), name) is not getattr(Edit, name))


def split_heads(attention: Attention, x_BNC: Tensor) -> Tensor:
    """Split channels by head.

    Args:
        attention: the layer.
        x_BNC: projected states.

    Returns:
        ``x_BHND``.
    """
    batch, length, width = x_BNC.shape
    return x_BNC.view(batch, length, attention.heads, width // attention.heads).transpose(1, 2)


def project_keys(attention: Attention, context_BKC: Tensor) -> Tensor:
    """Project a context to the keys of a layer.

    Args:
        attention: the layer.
        context_BKC: text or image states.

    Returns:
        ``k_BHKD``.
    """
    k_BHKD = split_heads(attention, attention.to_k(context_BKC))
    return k_BHKD if attention.norm_k is None else attention.norm_k(k_BHKD)


def fused(attention: Attention, heads: Heads) -> Tensor:
    """Attention proper by torch's fused kernel.

    Args:
        attention: the layer, for its scale.
        heads: queries, keys, values and mask.

    Returns:
        ``out_BHQD``.
    """
    return F.scaled_dot_product_attention(
        heads.q, heads.k, heads.v, attn_mask=heads.mask, scale=heads.factor(attention)
    )


def attend(call: AttentionCall, edits: Sequence[Edit], heads: Heads) -> Tensor:
    """Attention proper: fused, unless an edit has to see scores or weights, or takes its place.

    Args:
        call: what the edits may know.
        edits: the edits of this layer, in order.
        heads: queries, keys, values and mask.

    Returns:
        ``out_BHQD``.

    Raises:
        ControlConflict: if several edits want the softmax.
    """
    instead, on_scores, on_weights = (
        [edit for edit in edits if stage in edit.stages] for stage in ("attend", "scores", "weights")
    )
    if len(instead) + bool(on_scores or on_weights) > 1:
        names = ", ".join(dict.fromkeys(type(edit).__name__ for edit in [*instead, *on_scores, *on_weights]))
        raise ControlConflict(f"At {call.layer.address} several edits want the softmax: {names}.", "Use one of them.")
    if instead:
        return instead[0].attend(call, heads)
    if not on_scores and not on_weights:
        return fused(call.attention, heads)
    upcast = bool(getattr(call.attention, "upcast_attention", False))
    scores_BHQK = scores(heads.q, heads.k, heads.mask, heads.factor(call.attention), upcast=upcast)
    for edit in on_scores:
        scores_BHQK = edit.scores(call, scores_BHQK)
    weights_BHQK = softmax(scores_BHQK).to(heads.v.dtype)
    for edit in on_weights:
        weights_BHQK = edit.weights(call, weights_BHQK)
    return weights_BHQK @ heads.v

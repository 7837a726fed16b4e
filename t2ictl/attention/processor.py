"""The one attention processor, which runs the edits of a layer at their stages.

Instead of one full processor a method, one processor stands at each touched layer. It owns
the attention arithmetic once. With nothing to do for a layer it hands the call, untouched,
to the processor that was there before, so an idle session leaves images bit-equal.

Legend: ``B`` batch row, ``H`` head, ``Q`` image position (query), ``K`` text token or image
position (key), ``D`` head width, ``C`` channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor

from t2ictl.attention.cache import TensorCache
from t2ictl.attention.edits import AttentionCall, Edit, Heads, attend, project_keys, split_heads
from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import ActivePass, DenoiserPass, PassKind, Rows, StopForward, Tap
from t2ictl.attention.softmax import attention_and_map, summed_attention
from t2ictl.errors import ShapeMismatch, UnsupportedPipeline
from t2ictl.settings.windows import Step

__all__ = [
    "AttentionCall",
    "ControlledAttention",
    "Edit",
    "Inputs",
    "KeptProjections",
    "Step",
    "edited_attention",
    "lone_key_attention",
]


# Processors whose result is plain attention with the layer's own weights: our arithmetic may
# stand in for them. Any other (an IP-Adapter's, say) carries weights of its own.
STOCK_PROCESSORS = (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)


@dataclass(frozen=True)
class KeptProjections:
    """What one layer made of the text rows that it read last.

    Args:
        made_with: signature of the layer's weights.
        keys: ``k_BHKD`` by text rows.
        values: ``v_BHKD`` by text rows.
    """

    made_with: Hashable | None = None
    keys: TensorCache = field(default_factory=TensorCache)
    values: TensorCache = field(default_factory=TensorCache)


class ControlledAttention:
    """The attention processor that a session puts at each touched layer.

    Args:
        layer: address of the layer it stands at.
        previous: the processor that was there; it does the work whenever no edit acts.
        active_pass: tells which pass is in progress.
        kept: keys and values of text that were projected before, for the next pass.
    """

    def __init__(
        self, layer: Layer, previous: Any, active_pass: ActivePass, kept: KeptProjections | None = None
    ) -> None:
        self.layer = layer
        self.previous: Any = previous
        while type(self.previous) is ControlledAttention:  # one that was kept from a session before
            self.previous = self.previous.previous
        self.active_pass = active_pass
        # diffusers drops keyword arguments that the signature of `processor.__call__` does not
        # name (IP-Adapter masks, for one). The call itself goes to the class; the instance
        # attribute exists to be inspected, and shows the signature of the one that was there.
        self.kept = KeptProjections() if kept is None else kept
        vars(self)["__call__"] = functools.wraps(self.previous.__call__)(functools.partial(type(self).__call__, self))

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        inputs = Inputs(attn, hidden_states, encoder_hidden_states, attention_mask, kwargs)
        now = self.active_pass.current
        if now is None:
            return inputs.send(self.previous)
        now.visited.add(self.layer.address)
        if now.kind is PassKind.OTHER_TEXT:
            return self._free(inputs)
        edits = [edit for edit in now.edits.get(self.layer.address, ()) if edit.acts(now.step)]
        taps = [tap for tap in now.taps if self.layer.address in tap.layers]
        if not edits and not taps:
            return inputs.send(self.previous)
        call = self._call(attn, hidden_states, now)
        if now.kind is PassKind.MAPS and not edits and isinstance(self.previous, STOCK_PROCESSORS):
            return self._shared(call, taps, inputs, ends=now.stop_after == self.layer.address)
        for tap in taps:
            tap.take(call, _attention_map(inputs, tap.rows))
        if now.stop_after == self.layer.address:
            raise StopForward
        if not edits:
            return inputs.send(self.previous)
        return edited_attention(self.previous, call, edits, inputs)

    def _free(self, inputs: Inputs) -> Tensor:
        is_lone = self.layer.kind == "cross" and isinstance(inputs.context, Tensor) and inputs.context.shape[1] == 1
        if is_lone and isinstance(self.previous, STOCK_PROCESSORS):
            return lone_key_attention(inputs)
        return inputs.send(self.previous)

    def _shared(self, call: AttentionCall, taps: Sequence[Tap], inputs: Inputs, *, ends: bool) -> Tensor:
        """The layer and its maps from one projection of queries and of keys; taps of extra passes hear all rows.

        Text rows are the same at every evaluation: what is projected from them is kept for the next one.
        """
        attn = inputs.attn
        hidden_BQC, context_BKC = inputs.states()
        q_BHQD = _query(attn, hidden_BQC)
        k_BHKD = self.kept.keys(context_BKC, "k", lambda: project_keys(attn, context_BKC))
        mask = _mask(inputs, context_BKC.shape[1], slice(None))
        v_BHKD = self.kept.values(context_BKC, "v", lambda: split_heads(attn, attn.to_v(context_BKC)))
        out_BHQD, map_BQK = attention_and_map(q_BHQD, k_BHKD, v_BHKD, mask, attn.scale, upcast=attn.upcast_attention)
        for tap in taps:
            tap.take(call, map_BQK)
        if ends:
            raise StopForward
        return _finished(inputs, _projected(attn, out_BHQD.transpose(1, 2).flatten(2).to(q_BHQD.dtype)))

    def _call(self, attn: Attention, hidden: Tensor, now: DenoiserPass) -> AttentionCall:
        size = self.layer.size(now.latent_size)
        if hidden.ndim != 3 or hidden.shape[1] != size[0] * size[1]:
            raise ShapeMismatch(
                f"Layer {self.layer.address} got image states of shape {tuple(hidden.shape)} "
                f"where {size[0]} x {size[1]} positions were expected.",
                "Token-merging patches that change the number of positions cannot be combined with a session.",
            )
        return AttentionCall(layer=self.layer, size=size, batch=now.batch, step=now.step, attention=attn)


@dataclass(frozen=True)
class Inputs:
    """The arguments of one attention call, so that they can be passed on exactly.

    Args:
        attn: the layer.
        hidden: image states.
        context: text states, or a pair with an IP-Adapter's image states, or None in self-attention.
        mask: attention mask as the denoiser gives it, or None.
        kwargs: what else the processor was called with.
    """

    attn: Attention
    hidden: Tensor
    context: Any
    mask: Tensor | None
    kwargs: dict[str, Any]

    def send(self, processor: Callable[..., Tensor]) -> Tensor:
        """Call a processor with all of them."""
        return processor(
            self.attn, self.hidden, encoder_hidden_states=self.context, attention_mask=self.mask, **self.kwargs
        )

    def states(self, rows: Rows = slice(None)) -> tuple[Tensor, Tensor]:
        """Image states and context of some rows, normalized as the layer does it before its projections."""
        attn, hidden_BQC = self.attn, self.hidden[rows]
        if attn.group_norm is not None:
            hidden_BQC = attn.group_norm(hidden_BQC.transpose(1, 2)).transpose(1, 2)
        # An IP-Adapter hands over (text states, image states).
        context = self.context[0] if isinstance(self.context, tuple) else self.context
        if context is None:
            return hidden_BQC, hidden_BQC
        # All rows: the very tensor, by which an edit knows that the layer before read the same one.
        context_BKC = context if rows == slice(None) else context[rows]
        return hidden_BQC, attn.norm_encoder_hidden_states(context_BKC) if attn.norm_cross else context_BKC


def _query(attn: Attention, hidden_BQC: Tensor) -> Tensor:
    q_BHQD = split_heads(attn, attn.to_q(hidden_BQC))
    return q_BHQD if attn.norm_q is None else attn.norm_q(q_BHQD)


def _query_key(attn: Attention, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
    return _query(attn, hidden_BQC), project_keys(attn, context_BKC)


def _projected(attn: Attention, out_BQC: Tensor) -> Tensor:
    """The projection of a layer's result, and its dropout."""
    projected: Tensor = attn.to_out[1](attn.to_out[0](out_BQC))
    return projected


def _finished(inputs: Inputs, out_BQC: Tensor) -> Tensor:
    """What a layer does after its projection."""
    if inputs.attn.residual_connection:
        out_BQC = out_BQC + inputs.hidden
    return out_BQC / inputs.attn.rescale_output_factor


def _mask(inputs: Inputs, keys: int, rows: Rows) -> Tensor | None:
    if inputs.mask is None:
        return None
    batch = inputs.hidden.shape[0]
    if inputs.mask.shape[-1] != keys:
        raise ShapeMismatch(
            f"The attention mask has {inputs.mask.shape[-1]} entries for {keys} keys.",
            "An edit that changes the number of keys cannot act on a layer that gets an attention mask.",
        )
    prepared = inputs.attn.prepare_attention_mask(inputs.mask, keys, batch)
    return prepared.view(batch, inputs.attn.heads, -1, prepared.shape[-1])[rows]


def _attention_map(inputs: Inputs, rows: Rows) -> Tensor:
    """Attention weights summed over heads, computed beside the image path, for some rows."""
    attn = inputs.attn
    hidden_BQC, context_BKC = inputs.states(rows)
    q_BHQD, k_BHKD = _query_key(attn, hidden_BQC, context_BKC)
    mask = _mask(inputs, context_BKC.shape[1], rows)
    return summed_attention(q_BHQD, k_BHKD, mask, attn.scale, upcast=attn.upcast_attention)


def lone_key_attention(inputs: Inputs) -> Tensor:
    """Cross-attention to a single position: its softmax is 1, so every place gets ``W_o W_v s``.

    Queries and keys, and the projection of a result that is the same everywhere, are not computed; the
    value is that of the whole arithmetic.

    Args:
        inputs: the arguments of the call, with a context of one position.

    Returns:
        The layer's result, shape of its image states.
    """
    attn = inputs.attn
    _, context_BKC = inputs.states()
    out_BKC = _projected(attn, attn.to_v(context_BKC))
    return _finished(inputs, out_BKC.expand(-1, inputs.hidden.shape[1], -1))


def edited_attention(previous: Any, call: AttentionCall, edits: Sequence[Edit], inputs: Inputs) -> Tensor:
    """Run one attention layer with edits at their stages.

    Args:
        previous: the processor that stood here; it must be a stock one, since this stands in for it.
        call: what the edits may know.
        edits: the edits of this layer, in order.
        inputs: the arguments of the call.

    Returns:
        The layer's result, shape of its image states.

    Raises:
        UnsupportedPipeline: if ``previous`` carries weights of its own.
    """
    attn = call.attention
    if not isinstance(previous, STOCK_PROCESSORS):
        raise UnsupportedPipeline(
            f"The attention processor at {call.layer.address} is {type(previous).__name__}, "
            "which an edit cannot replace.",
            "Put the earlier processors back if you set this one yourself, unload it (for an IP-Adapter: "
            "pipe.unload_ip_adapter()), or keep this control's layers away from it.",
        )
    hidden_BQC, context_BKC = inputs.states()
    for edit in edits:
        hidden_BQC, context_BKC = edit.tokens(call, hidden_BQC, context_BKC)
    valued_BKC = context_BKC
    for edit in edits:
        valued_BKC = edit.values(call, valued_BKC)
    q_BHQD, k_BHKD = _query_key(attn, hidden_BQC, context_BKC)
    v_BHKD = split_heads(attn, attn.to_v(valued_BKC))
    for edit in edits:
        q_BHQD, k_BHKD, v_BHKD = edit.project(call, q_BHQD, k_BHKD, v_BHKD)
    mask = _mask(inputs, k_BHKD.shape[2], slice(None))
    heads = Heads(q=q_BHQD, k=k_BHKD, v=v_BHKD, mask=mask, context=context_BKC)
    out_BHQD = attend(call, edits, heads)
    out_BQC = _projected(attn, out_BHQD.transpose(1, 2).flatten(2).to(q_BHQD.dtype))
    for edit in edits:
        out_BQC = edit.output(call, out_BQC)
    return _finished(inputs, out_BQC)

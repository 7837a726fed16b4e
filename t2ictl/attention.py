"""The one attention processor, and the stages at which an edit may act.

Instead of one full processor a method, one processor stands at each touched layer. It owns
the attention arithmetic once. With nothing to do for a layer it hands the call, untouched,
to the processor that was there before, so an idle session leaves pictures bit-equal.

Legend: ``B`` batch row, ``H`` head, ``Q`` image position (query), ``K`` text token or image
position (key), ``D`` head width, ``C`` channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor

from t2ictl.errors import ShapeMismatch, UnsupportedPipeline
from t2ictl.lanes import Lanes
from t2ictl.sites import Site

__all__ = [
    "AttentionCall",
    "ControlledAttention",
    "DenoiserPass",
    "Edit",
    "Rows",
    "Step",
    "StopForward",
    "Switch",
    "Tap",
]

Rows = slice | list[int]

# Processors whose result is plain attention with the layer's own weights: our arithmetic may
# stand in for them. Any other (an IP-Adapter's, say) carries weights of its own.
STOCK_PROCESSORS = (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One evaluation of the denoiser.

    Args:
        index: which evaluation of this call, from 0.
        total: how many evaluations this call makes.
        timestep: the scheduler's timestep.
    """

    index: int
    total: int
    timestep: float


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """What an edit may know about the layer it acts on.

    Args:
        site: address of the layer.
        size: height and width of its image positions (map cells).
        lanes: what each batch row is.
        step: which denoiser evaluation this is.
        attention: the layer itself, for its projections.
    """

    site: Site
    size: tuple[int, int]
    lanes: Lanes
    step: Step
    attention: Attention


class Edit:
    """One intervention in attention; override the stages it needs and leave the others.

    Edits of ``tokens``, ``project`` and ``output`` keep the fused kernel. Overriding
    ``scores`` or ``weights`` costs an explicit softmax at the edit's own sites and steps.
    An edit returns new tensors and writes into none that it was given.

    Example:
        >>> class Mute(Edit):
        ...     def output(self, call, out_BQC):
        ...         return out_BQC * 0
        >>> Mute().stages
        ('output',)
    """

    STAGES = ("tokens", "project", "scores", "weights", "output")

    def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
        """Change what goes in: image states and context, before the projections."""
        return hidden_BQC, context_BKC

    def project(
        self, call: AttentionCall, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Change queries, keys and values, split by head."""
        return q_BHQD, k_BHKD, v_BHKD

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


class Tap(Protocol):
    """A read-only listener to attention maps. It never touches the image path.

    It hears what the layer's own queries and keys say, before any edit of that layer acts: the
    columns are then the tokens of the prompt, whatever an edit adds to the keys.
    """

    sites: frozenset[str]
    rows: Rows

    def take(self, call: AttentionCall, mass_BQK: Tensor) -> None:
        """Receive the attention weights of one layer, summed over its heads, for the tap's rows."""


class StopForward(Exception):
    """Ends a forward pass of our own after the last layer it was made for."""


@dataclass(kw_only=True)
class DenoiserPass:
    """What is to happen during one forward pass of the denoiser.

    Args:
        lanes: what each row of this pass is.
        latent_size: height and width of the latent (cells).
        step: which evaluation this is.
        edits: edits by site address, in order.
        taps: listeners to maps.
        stop_after: address of the site after whose maps the pass may end, or None.
        is_free: a pass of our own under another text: without edits and taps, and short for a text of one position.
    """

    lanes: Lanes
    latent_size: tuple[int, int]
    step: Step
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict)
    taps: Sequence[Tap] = ()
    stop_after: str | None = None
    is_free: bool = False


class Switch:
    """The pass in progress, shared by all processors of a session; None when none is."""

    current: DenoiserPass | None = None


class ControlledAttention:
    """The attention processor that a session puts at each touched layer.

    Args:
        site: address of the layer it stands at.
        previous: the processor that was there; it does the work whenever no edit acts.
        switch: tells which pass is in progress.
    """

    def __init__(self, site: Site, previous: Any, switch: Switch) -> None:
        self.site = site
        self.previous = previous
        self.switch = switch
        # diffusers drops keyword arguments that the signature of `processor.__call__` does not
        # name (IP-Adapter masks, for one). The call itself goes to the class; the instance
        # attribute exists to be inspected, and shows the signature of the one that was there.
        vars(self)["__call__"] = functools.wraps(previous.__call__)(functools.partial(type(self).__call__, self))

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        inputs = _Inputs(attn, hidden_states, encoder_hidden_states, attention_mask, kwargs)
        now = self.switch.current
        if now is None:
            return inputs.send(self.previous)
        if now.is_free:
            return self._free(inputs)
        edits = now.edits.get(self.site.address, ())
        taps = [tap for tap in now.taps if self.site.address in tap.sites]
        if not edits and not taps:
            return inputs.send(self.previous)
        call = self._call(attn, hidden_states, now)
        for tap in taps:
            tap.take(call, _mass(inputs, tap.rows))
        if now.stop_after == self.site.address:
            raise StopForward
        if not edits:
            return inputs.send(self.previous)
        return edited_attention(self.previous, call, edits, inputs)

    def _free(self, inputs: _Inputs) -> Tensor:
        is_lone = self.site.kind == "cross" and isinstance(inputs.context, Tensor) and inputs.context.shape[1] == 1
        if is_lone and isinstance(self.previous, STOCK_PROCESSORS):
            return lone_key_attention(inputs)
        return inputs.send(self.previous)

    def _call(self, attn: Attention, hidden: Tensor, now: DenoiserPass) -> AttentionCall:
        size = self.site.size(now.latent_size)
        if hidden.ndim != 3 or hidden.shape[1] != size[0] * size[1]:
            raise ShapeMismatch(
                f"Layer {self.site.address} got image states of shape {tuple(hidden.shape)} "
                f"where {size[0]} x {size[1]} positions were expected.",
                "Token-merging patches that change the number of positions cannot be combined with a session.",
            )
        return AttentionCall(site=self.site, size=size, lanes=now.lanes, step=now.step, attention=attn)


@dataclass(frozen=True)
class _Inputs:
    """The arguments of one attention call, so that they can be passed on exactly."""

    attn: Attention
    hidden: Tensor
    context: Any
    mask: Tensor | None
    kwargs: dict[str, Any]

    def send(self, processor: Callable[..., Tensor]) -> Tensor:
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
        context_BKC = context[rows]
        return hidden_BQC, attn.norm_encoder_hidden_states(context_BKC) if attn.norm_cross else context_BKC


def _heads(attn: Attention, x_BNC: Tensor) -> Tensor:
    batch, length, width = x_BNC.shape
    return x_BNC.view(batch, length, attn.heads, width // attn.heads).transpose(1, 2)


def _query_key(attn: Attention, hidden_BQC: Tensor, context_BKC: Tensor) -> tuple[Tensor, Tensor]:
    q_BHQD, k_BHKD = _heads(attn, attn.to_q(hidden_BQC)), _heads(attn, attn.to_k(context_BKC))
    if attn.norm_q is not None:
        q_BHQD = attn.norm_q(q_BHQD)
    if attn.norm_k is not None:
        k_BHKD = attn.norm_k(k_BHKD)
    return q_BHQD, k_BHKD


def _mask(inputs: _Inputs, keys: int, rows: Rows) -> Tensor | None:
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


def _scores(attn: Attention, q_BHQD: Tensor, k_BHKD: Tensor, mask: Tensor | None) -> Tensor:
    if attn.upcast_attention:  # SD 2.1 overflows in half precision
        exact = torch.promote_types(q_BHQD.dtype, torch.float32)
        q_BHQD, k_BHKD = q_BHQD.to(exact), k_BHKD.to(exact)
    scores_BHQK = q_BHQD @ k_BHKD.transpose(-1, -2) * attn.scale
    return scores_BHQK if mask is None else scores_BHQK + mask


def _softmax(scores_BHQK: Tensor) -> Tensor:
    """Softmax over keys in at least float32: half precision loses the small weights that maps are made of."""
    exact = scores_BHQK.float() if scores_BHQK.dtype in (torch.float16, torch.bfloat16) else scores_BHQK
    return exact.softmax(dim=-1)


def _mass(inputs: _Inputs, rows: Rows) -> Tensor:
    """Attention weights summed over heads, computed beside the image path, for some rows."""
    attn = inputs.attn
    hidden_BQC, context_BKC = inputs.states(rows)
    q_BHQD, k_BHKD = _query_key(attn, hidden_BQC, context_BKC)
    mask = _mask(inputs, context_BKC.shape[1], rows)
    return _softmax(_scores(attn, q_BHQD, k_BHKD, mask)).sum(dim=1)


def _attend(
    call: AttentionCall, edits: Sequence[Edit], q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention proper: fused, unless an edit has to see scores or weights."""
    on_scores = [edit for edit in edits if "scores" in edit.stages]
    on_weights = [edit for edit in edits if "weights" in edit.stages]
    if not on_scores and not on_weights:
        return F.scaled_dot_product_attention(q_BHQD, k_BHKD, v_BHKD, attn_mask=mask, scale=call.attention.scale)
    scores_BHQK = _scores(call.attention, q_BHQD, k_BHKD, mask)
    for edit in on_scores:
        scores_BHQK = edit.scores(call, scores_BHQK)
    weights_BHQK = _softmax(scores_BHQK).to(v_BHKD.dtype)
    for edit in on_weights:
        weights_BHQK = edit.weights(call, weights_BHQK)
    return weights_BHQK @ v_BHKD


def lone_key_attention(inputs: _Inputs) -> Tensor:
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
    out_BKC = attn.to_out[1](attn.to_out[0](attn.to_v(context_BKC)))
    out_BQC = out_BKC.expand(-1, inputs.hidden.shape[1], -1)
    if attn.residual_connection:
        out_BQC = out_BQC + inputs.hidden
    return out_BQC / attn.rescale_output_factor


def edited_attention(previous: Any, call: AttentionCall, edits: Sequence[Edit], inputs: _Inputs) -> Tensor:
    """Run one attention layer with edits at the five stages.

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
            f"The attention processor at {call.site.address} is {type(previous).__name__}, "
            "which an edit cannot replace.",
            "Unload it (for an IP-Adapter: pipe.unload_ip_adapter()), or keep this control's sites away from it.",
        )
    hidden_BQC, context_BKC = inputs.states()
    for edit in edits:
        hidden_BQC, context_BKC = edit.tokens(call, hidden_BQC, context_BKC)
    q_BHQD, k_BHKD = _query_key(attn, hidden_BQC, context_BKC)
    v_BHKD = _heads(attn, attn.to_v(context_BKC))
    for edit in edits:
        q_BHQD, k_BHKD, v_BHKD = edit.project(call, q_BHQD, k_BHKD, v_BHKD)
    mask = _mask(inputs, k_BHKD.shape[2], slice(None))
    out_BHQD = _attend(call, edits, q_BHQD, k_BHKD, v_BHKD, mask)
    out_BQC = out_BHQD.transpose(1, 2).flatten(2).to(q_BHQD.dtype)
    out_BQC = attn.to_out[1](attn.to_out[0](out_BQC))
    for edit in edits:
        out_BQC = edit.output(call, out_BQC)
    if attn.residual_connection:
        out_BQC = out_BQC + inputs.hidden
    return out_BQC / attn.rescale_output_factor

"""The attention processor for transformers: it wraps the one that was there, and acts where that calls the kernel.

Families differ in how they project, normalize, rotate and concatenate. None of that is repeated here: the processor
that was there does it, and a seam at the kernel (:mod:`t2ictl.attention.seam`) reads or changes what it hands over.
With nothing to do for a layer the call goes to that processor untouched.

Legend: ``B`` batch row, ``H`` head, ``L`` position that asks, ``M`` position that is asked, ``Q`` image position, ``K``
text position, ``D`` head width, ``C`` channels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor, nn

from t2ictl.attention.edits import AttentionCall, Edit, Heads, attend
from t2ictl.attention.kernel_maps import kernel_map
from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import ActivePass, DenoiserPass, PassKind, StopForward, Tap, map_kind
from t2ictl.attention.seam import KernelCall, KernelSeam
from t2ictl.errors import ShapeMismatch, UnsupportedPipeline
from t2ictl.patching import instance_attribute

__all__ = ["KernelAttention", "native_kernels"]

_BACKEND = "_attention_backend"
#: Stages that act where the kernel is called.
_AT_KERNEL = frozenset({"values", "project", "attend", "scores", "weights"})
#: What layers call their processors with by position, whatever a processor calls it itself.
_POSITIONS = ("attn", "hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")


class _Heard(Exception):
    """Ends a run of a layer that was made only to hear its queries and keys."""


class KernelAttention:
    """The attention processor that a session puts at each layer of a transformer.

    Args:
        layer: address of the layer it stands at.
        previous: the processor that was there.
        active_pass: tells which pass is in progress.
        kept: not used: text states of a transformer differ from block to block and from step to step.
    """

    def __init__(self, layer: Layer, previous: Any, active_pass: ActivePass, kept: object = None) -> None:
        self.layer = layer
        self.previous: Any = previous
        while type(self.previous) is KernelAttention:  # one that was kept from a session before
            self.previous = self.previous.previous
        self.active_pass = active_pass
        # Layers pass on only those keyword arguments that the signature of their processor names.
        vars(self)["__call__"] = functools.wraps(self.previous.__call__)(functools.partial(type(self).__call__, self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = self.active_pass.current
        if now is None:
            return self.previous(*args, **kwargs)
        now.visited.add(self.layer.address)
        edits = [edit for edit in now.edits.get(self.layer.address, ()) if edit.acts(now.step)]
        taps = [tap for tap in now.taps if self.layer.address in tap.layers]
        with ExitStack() if now.kind is PassKind.IMAGE else _native(self.previous):
            # Of a pass of the session's own no image comes, and not every back-end lets a gradient through.
            if now.kind is PassKind.OTHER_TEXT or (not edits and not taps):
                return self.previous(*args, **kwargs)
            named = {**dict(zip(chain(_POSITIONS, map(str, count())), args, strict=False)), **kwargs}
            return _LayerRun(self.layer, self.previous, now, edits, taps, named, len(args)).result()


@dataclass
class _LayerRun:
    """One layer in one pass, with something to do.

    Args:
        layer: the layer.
        previous: the processor that does the work.
        now: the pass.
        edits: the edits that act.
        taps: who listens.
        arguments: what the layer calls its processor with, by name.
        positional: how many of them, the first ones, it passes by position.
    """

    layer: Layer
    previous: Any
    now: DenoiserPass
    edits: Sequence[Edit]
    taps: Sequence[Tap]
    arguments: dict[str, Any]
    positional: int
    _has_heard: bool = field(default=False, init=False)

    @property
    def _ends(self) -> bool:
        return self.now.stop_after == self.layer.address

    def result(self) -> Any:
        """Run the layer."""
        stages = {stage for edit in self.edits for stage in edit.stages}
        if self.taps and "tokens" in stages:
            self._listen()  # to what the layer's own inputs give, before an edit changes them
        if "tokens" in stages:
            self._change_tokens()
        with KernelSeam(self._fits, self._on) as seam:
            result = self._run()
        if not seam.has_seen:
            if stages & _AT_KERNEL:
                raise self._unseen("edited")
            if self.taps and not self._has_heard:
                self._listen()
        return self._finished(result) if "output" in stages else result

    def _run(self) -> Any:
        names = list(self.arguments)[self.positional :]
        first = list(self.arguments.values())[: self.positional]
        return self.previous(*first, **{name: self.arguments[name] for name in names})

    # -- at the kernel ----------------------------------------------------------------------

    def _fits(self, call: KernelCall) -> bool:
        """Whether a kernel call is the layer's own: an IP-Adapter makes one more, with keys of its own."""
        queries, keys = call.q.shape[2], call.k.shape[2]
        if self.layer.text == "keys":
            return queries == self._places and keys == self._context().shape[1]
        if self.layer.text == "none":
            return queries == keys == self._places
        return min(queries, keys) >= self._places + self.now.text_length

    def _on(self, kernel: KernelCall) -> Tensor | None:
        call = self._call()
        if self.taps and not self._has_heard:
            self._hear(call, kernel)
        if self._ends:
            raise StopForward
        if not any(_AT_KERNEL & set(edit.stages) for edit in self.edits):
            return None
        q_BHLD, k_BHMD, v_BHMD = kernel.q, kernel.k, self._values(call, kernel)
        for edit in self.edits:
            q_BHLD, k_BHMD, v_BHMD = edit.project(call, q_BHLD, k_BHMD, v_BHMD)
        context = self._context()
        heads = Heads(q=q_BHLD, k=k_BHMD, v=v_BHMD, mask=kernel.bias, context=context, scale=kernel.factor)
        return attend(call, self.edits, heads).to(kernel.v.dtype)

    def _hear(self, call: AttentionCall, kernel: KernelCall) -> None:
        """Compute the maps that somebody listens to."""
        self._has_heard = True
        known: dict[Any, Tensor] = {}
        for tap in self.taps:
            key = (map_kind(tap), str(tap.rows))
            if key not in known:
                known[key] = kernel_map(kernel, call, map_kind(tap), tap.rows)
            tap.take(call, known[key])

    def _listen(self) -> None:
        """Run the layer as far as its queries and keys, by the native kernel: the image's own run is not touched."""
        call = self._call()

        def hear(kernel: KernelCall) -> Tensor | None:
            self._hear(call, kernel)
            if self._ends:
                raise StopForward
            raise _Heard

        try:
            with _native(self.previous), KernelSeam(self._fits, hear):
                self._run()
        except _Heard:
            return
        raise self._unseen("read")

    # -- before and after it ----------------------------------------------------------------

    def _context(self) -> Tensor:
        context = self.arguments.get("encoder_hidden_states")
        return self.arguments["hidden_states"] if context is None else context

    def _change_tokens(self) -> None:
        call = self._call()
        has_context = self.arguments.get("encoder_hidden_states") is not None
        for edit in self.edits:
            hidden_BQC, context_BKC = edit.tokens(call, self.arguments["hidden_states"], self._context())
            self.arguments["hidden_states"] = hidden_BQC
            if has_context:
                self.arguments["encoder_hidden_states"] = context_BKC

    def _values(self, call: AttentionCall, kernel: KernelCall) -> Tensor:
        """Values, projected from what edits put in the place of their own states."""
        own_BKC = valued_BKC = self._context()
        for edit in self.edits:
            valued_BKC = edit.values(call, valued_BKC)
        if valued_BKC is own_BKC:
            return kernel.v
        if self.layer.kind not in ("cross", "self"):
            raise UnsupportedPipeline(
                f"At {self.layer.address} values of text cannot come of other text: it goes on in the layer's result.",
                "Use a layer of the kind 'cross', or edit the states (stage 'tokens').",
            )
        batch, length = valued_BKC.shape[:2]
        v_BKC: Tensor = call.attention.to_v(valued_BKC)
        return v_BKC.view(batch, length, -1, kernel.v.shape[-1]).transpose(1, 2)

    def _finished(self, result: Any) -> Any:
        """The result after the edits of the image's part of it."""
        call = self._call()
        out_BLC, *more = result if isinstance(result, tuple) else (result,)
        # Text is a part of this result, or a second one; tokens of reference images stand behind those of the image.
        own = call.image if self.layer.kind == "single" else slice(0, self._places)
        out_BQC = out_BLC if out_BLC.shape[1] == self._places else out_BLC[:, own]
        for edit in self.edits:
            out_BQC = edit.output(call, out_BQC)
        if out_BLC.shape[1] == self._places:
            out_BLC = out_BQC
        else:
            out_BLC = out_BLC.clone()
            out_BLC[:, own] = out_BQC
        return (out_BLC, *more) if isinstance(result, tuple) else out_BLC

    # -- what is known of it ----------------------------------------------------------------

    @functools.cached_property
    def _places(self) -> int:
        height, width = self.layer.size(self.now.latent_size)
        return height * width

    def _call(self) -> AttentionCall:
        text, places = self.now.text_length, self._places
        image, words = {
            "first": (slice(text, text + places), slice(0, text)),
            "last": (slice(0, places), slice(places, places + text)),
        }.get(self.layer.text, (None, None))
        hidden = self.arguments["hidden_states"]
        if self.layer.kind != "single" and hidden.shape[1] < places and hidden.ndim == 3:
            raise ShapeMismatch(
                f"Layer {self.layer.address} got image states of shape {tuple(hidden.shape)} where {places} positions "
                "were expected.",
                "Patches that change the number of positions cannot be combined with a session.",
            )
        return AttentionCall(
            layer=self.layer,
            size=self.layer.size(self.now.latent_size),
            batch=self.now.batch,
            step=self.now.step,
            attention=self.arguments["attn"],
            image=image,
            text=words,
        )

    def _unseen(self, what: str) -> UnsupportedPipeline:
        return UnsupportedPipeline(
            f"The attention of {type(self.previous).__name__} at {self.layer.address} cannot be {what}: it does not "
            f"call torch's attention kernel for {self._places} places.",
            "Choose the native back-end for the length of the session: "
            "pipe.transformer.set_attention_backend('native'); or keep this control's layers away from it.",
        )


def _native(processor: Any) -> Any:
    """Hold a processor at torch's own kernel for the length of a ``with`` block, where it has a choice."""
    if not hasattr(processor, _BACKEND):
        return ExitStack()
    return instance_attribute(processor, _BACKEND, AttentionBackendName.NATIVE)


@contextmanager
def native_kernels(module: nn.Module) -> Iterator[None]:
    """Hold all attention in a module at torch's own kernel for the length of a ``with`` block, where it has a choice.

    Args:
        module: a block of a denoiser, or all of it.

    Example:
        >>> from diffusers.models.transformers.transformer_flux import FluxAttention
        >>> layer = FluxAttention(8, heads=1, dim_head=8)
        >>> with native_kernels(nn.Sequential(layer)):
        ...     layer.processor._attention_backend.value
        'native'
        >>> layer.processor._attention_backend is None
        True
    """
    with ExitStack() as held:
        for each in module.modules():
            processor = getattr(each, "processor", None)
            while isinstance(processor, KernelAttention):
                processor = processor.previous
            held.enter_context(_native(processor))
        yield

"""Activation checkpointing of extra passes: less memory for the backward pass, some layers computed twice.

Only modules in which nobody listens are run again: feed-forward layers, residual blocks, attention that nobody edits or
hears, or whole blocks without any that somebody does. They are plain functions of what goes in, so they need nothing of
the pass they were first run in, and the gradient is the same to the last bit where kernels are deterministic. Layers
with maps keep little as it is (:mod:`t2ictl.attention.softmax`). Diffusers' own checkpointing runs whole blocks again,
maps included, and is held off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import nn
from torch.utils.checkpoint import checkpoint

from t2ictl.attention.kernel_processor import native_kernels
from t2ictl.errors import BadSetting, shown
from t2ictl.patching import InstanceAttributes
from t2ictl.ports.base import DenoiserPort
from t2ictl.session.hooks import Frozen

__all__ = ["Checkpointing", "Recomputed", "check_checkpointing"]

Checkpointing = Literal["off", "feed_forward", "all", "block"]
# Four times as wide as the rest, and twice that at its gate: half of what an update of a U-Net keeps, a sixth of its
# work. SANA has convolutions in its place; the single blocks of FLUX.1 have none of their own.
_FEED_FORWARD = (FeedForward, GLUMBConv)


def check_checkpointing(value: Checkpointing) -> Checkpointing:
    """Return back the name of a known way.

    Args:
        value: ``"off"``, ``"feed_forward"``, ``"all"`` or ``"block"``.

    Returns:
        The same.

    Raises:
        BadSetting: if it is no such name.

    Example:
        >>> check_checkpointing("off")
        'off'
    """
    if not isinstance(value, str) or value not in get_args(Checkpointing):
        raise BadSetting(f"checkpointing cannot be {shown(value)}.", "Use 'off', 'feed_forward', 'all' or 'block'.")
    return value


class Recomputed:
    """Keep only the inputs of modules in which nobody listens, for the length of a ``with`` block.

    Args:
        port: that of the denoiser.
        kind: ``"feed_forward"`` for these layers alone; ``"all"`` for residual blocks and attention in which nobody
            listens, too; ``"block"`` for whole blocks in which nobody does, and ``"all"`` in the others; or ``"off"``.
        heard: names of the attention modules in which somebody listens or edits.

    Example:
        >>> import t2ictl
        >>> from t2ictl.ports.unet import UNetPort
        >>> unet = t2ictl.load("shapes", device="cpu").unet
        >>> x = torch.randn(1, 4, 16, 16, requires_grad=True)
        >>> text = torch.randn(1, 24, unet.config.cross_attention_dim)
        >>> with Recomputed(UNetPort(unet), "block", heard=())():
        ...     noise = unet(x, 1, text).sample
        >>> (gradient,) = torch.autograd.grad(noise.sum(), x)
        >>> (plain,) = torch.autograd.grad(unet(x, 1, text).sample.sum(), x)
        >>> torch.equal(gradient, plain)
        True
    """

    def __init__(self, port: DenoiserPort, kind: Checkpointing, heard: Collection[str]) -> None:
        self._port, self._kind, self._heard = port, kind, frozenset(heard)
        self._held = InstanceAttributes()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the modules' ``forward`` for the length of the block; leave their ``__dict__`` as it was found."""
        try:
            # Looked up anew for each pass: modules may be replaced between two evaluations.
            for module in list(self._modules()):
                self._held.set(module, "forward", functools.partial(_kept_short, module, module.forward))
            yield
        finally:
            self.restore()

    def _modules(self) -> Iterator[nn.Module]:
        """Yield the modules to be run again; none lies in another."""
        if self._kind == "off":
            return
        whole: tuple[str, ...] = ()
        for name, block in self._port.blocks() if self._kind == "block" else ():
            if not any(each.startswith(f"{name}.") for each in self._heard):
                whole += (f"{name}.",)
                yield block
        kinds = _FEED_FORWARD if self._kind == "feed_forward" else (*_FEED_FORWARD, Attention, ResnetBlock2D)
        attention = set() if self._kind == "feed_forward" else {layer.module for layer in self._port.layers}
        for name, module in self._port.denoiser.named_modules():
            if name not in self._heard and not f"{name}.".startswith(whole):
                if isinstance(module, kinds) or name in attention:
                    yield module

    def restore(self) -> None:
        """Let the modules go. It can be run again after a break."""
        self._held.undo()


def _kept_short(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    names = tuple(kwargs)

    def frozen(*values: Any) -> Any:
        by_position = len(values) - len(names)
        # The second run comes after our pass, when the weights' flags and the kernels are the user's again.
        with Frozen(module)(), native_kernels(module):
            return forward(*values[:by_position], **dict(zip(names, values[by_position:], strict=True)))

    # All by position: torch saves these tensors as it saves any, where hooks of saved tensors (offloading) find them,
    # and holds those passed by name unseen. Asking a GPU for its random state would wait for it; only dropout in
    # training reads it.
    return checkpoint(frozen, *args, *kwargs.values(), use_reentrant=False, preserve_rng_state=module.training)

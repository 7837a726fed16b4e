"""Activation checkpointing of extra passes: less memory for the backward pass, some layers computed twice.

Only modules in which nobody listens are run again: feed-forward layers, residual blocks, and attention that nobody
edits or hears. They are plain functions of what goes in, so they need nothing of the pass they were first run in, and
the gradient is the same to the last bit where kernels are deterministic. Layers with maps keep little as it is
(:mod:`t2ictl.attention.softmax`). Diffusers' own checkpointing runs whole blocks again, maps included, and is held off.
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
from torch import nn
from torch.utils.checkpoint import checkpoint

from t2ictl.errors import BadSetting, shown
from t2ictl.patching import InstanceAttributes
from t2ictl.session.hooks import Frozen

__all__ = ["Checkpointing", "Recomputed", "check_checkpointing"]

Checkpointing = Literal["off", "feed_forward", "all"]
_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "off": (),
    # Four times as wide as the rest, and twice that at its gate: half of what an update keeps, a sixth of its work.
    "feed_forward": (FeedForward,),
    "all": (FeedForward, Attention, ResnetBlock2D),
}


def check_checkpointing(value: Checkpointing) -> Checkpointing:
    """Return back the name of a known way.

    Args:
        value: ``"off"``, ``"feed_forward"`` or ``"all"``.

    Returns:
        The same.

    Raises:
        BadSetting: if it is no such name.

    Example:
        >>> check_checkpointing("off")
        'off'
    """
    if not isinstance(value, str) or value not in get_args(Checkpointing):
        raise BadSetting(f"checkpointing cannot be {shown(value)}.", "Use 'off', 'feed_forward' or 'all'.")
    return value


class Recomputed:
    """Keep only the inputs of modules in which nobody listens, for the length of a ``with`` block.

    Args:
        denoiser: the model.
        kind: ``"feed_forward"`` for these layers alone, ``"all"`` for all in which nobody listens, or ``"off"``.
        heard: names of the attention modules in which somebody listens.

    Example:
        >>> block = ResnetBlock2D(in_channels=32, temb_channels=None)
        >>> x = torch.randn(1, 32, 4, 4, requires_grad=True)
        >>> with Recomputed(nn.Sequential(block), "all", heard=())():
        ...     y = block(x, None)
        >>> (gradient,) = torch.autograd.grad(y.sum(), x)
        >>> (plain,) = torch.autograd.grad(block(x, None).sum(), x)
        >>> torch.equal(gradient, plain)
        True
    """

    def __init__(self, denoiser: nn.Module, kind: Checkpointing, heard: Collection[str]) -> None:
        self._denoiser, self._kinds, self._heard = denoiser, _KINDS[kind], frozenset(heard)
        self._held = InstanceAttributes()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the modules' ``forward`` for the length of the block; leave their ``__dict__`` as it was found."""
        try:
            # Looked up anew for each pass: modules may be replaced between two evaluations.
            for name, module in self._denoiser.named_modules() if self._kinds else ():
                if isinstance(module, self._kinds) and name not in self._heard:
                    self._held.set(module, "forward", functools.partial(_kept_short, module, module.forward))
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Let the modules go. It can be run again after a break."""
        self._held.undo()


def _kept_short(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def frozen(*args: Any, **kwargs: Any) -> Any:
        # The second run comes after our pass, when the weights' flags are the user's again.
        with Frozen(module)():
            return forward(*args, **kwargs)

    # Asking a GPU for its random state would wait for it; only dropout in training reads it.
    return checkpoint(frozen, *args, use_reentrant=False, preserve_rng_state=module.training, **kwargs)

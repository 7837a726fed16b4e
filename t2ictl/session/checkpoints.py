"""Activation checkpointing of extra passes: less memory for the backward pass, some layers computed twice.

Only modules in which nobody listens are run again: feed-forward layers, residual blocks, and attention without one of
our processors. They are plain functions of what goes in, so they need nothing of the pass they were first run in, and
the gradient is the same to the last bit where kernels are deterministic. Layers with maps keep little as it is
(:mod:`t2ictl.attention.softmax`). Diffusers' own checkpointing runs whole blocks again, maps included, and is held off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from t2ictl.attention.processor import ControlledAttention
from t2ictl.errors import BadSetting
from t2ictl.patching import instance_attribute
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
    if value not in get_args(Checkpointing):
        raise BadSetting(f"checkpointing cannot be {value!r}.", "Use 'off', 'feed_forward' or 'all'.")
    return value


class Recomputed:
    """Keep only the inputs of modules in which nobody listens, for the length of a ``with`` block.

    Args:
        denoiser: the model, with the session's processors in place.
        kind: ``"feed_forward"`` for these layers alone, ``"all"`` for all in which nobody listens, or ``"off"``.

    Example:
        >>> block = ResnetBlock2D(in_channels=32, temb_channels=None)
        >>> x = torch.randn(1, 32, 4, 4, requires_grad=True)
        >>> with Recomputed(nn.Sequential(block), "all")():
        ...     y = block(x, None)
        >>> (gradient,) = torch.autograd.grad(y.sum(), x)
        >>> (plain,) = torch.autograd.grad(block(x, None).sum(), x)
        >>> torch.equal(gradient, plain)
        True
    """

    def __init__(self, denoiser: nn.Module, kind: Checkpointing) -> None:
        kinds = _KINDS[kind]
        self._modules = [each for each in denoiser.modules() if isinstance(each, kinds) and _is_alone(each)]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the modules' ``forward`` for the length of the block; leave their ``__dict__`` as it was found."""
        with ExitStack() as held:
            for module in self._modules:
                short = functools.partial(_kept_short, module, module.forward)
                held.enter_context(instance_attribute(module, "forward", short))
            yield


def _is_alone(module: nn.Module) -> bool:
    return not isinstance(getattr(module, "processor", None), ControlledAttention)


def _kept_short(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def frozen(*args: Any, **kwargs: Any) -> Any:
        # The second run comes after our pass, when the weights' flags are the user's again.
        with Frozen(module)():
            return forward(*args, **kwargs)

    # Asking a GPU for its random state would wait for it; only dropout in training reads it.
    return checkpoint(frozen, *args, use_reentrant=False, preserve_rng_state=module.training, **kwargs)

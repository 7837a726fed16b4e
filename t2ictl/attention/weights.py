"""What a layer's result depends on beside its inputs: for results that are kept from one evaluation to the next."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["weights_signature"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_SAMPLES = 16


def weights_signature(module: nn.Module) -> Hashable | None:
    """Return what differs as soon as a module computes something else.

    It knows every parameter and buffer by identity, version, kind and some of its values: what is written through
    ``.data``, as merging of adapters does, counts no version. Beside them it has all plain attributes of all
    submodules, among which are active adapters, their scales and their switches.

    Args:
        module: any module.

    Returns:
        Something to compare, or None where it would cost more than computing anew (weights on an accelerator, whose
        values one has to wait for) or cannot be known (inference tensors).

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = weights_signature(layer)
        >>> before == weights_signature(layer)
        True
        >>> layer.weight.data += 1
        >>> before == weights_signature(layer)
        False
    """
    found: list[Hashable] = []
    for name, part in module.named_modules():
        found.append((name, type(part), part.training, *(tuple(vars(part)[each]) for each in _HOOKS)))
        found.append(repr([(key, _plain(each)) for key, each in vars(part).items() if key not in _OF_EVERY_MODULE]))
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is None:
                continue
            if tensor.device.type != "cpu" or tensor.is_inference():
                return None
            found.append((id(tensor), tensor._version, tensor.dtype, tuple(tensor.shape), _some_values(tensor)))
    return tuple(found)


def _some_values(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLES)].contiguous().view(torch.uint8).numpy().tobytes()


def _plain(value: Any) -> Any:
    """A value that its ``repr`` tells whole; of anything else its identity."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    return id(value)

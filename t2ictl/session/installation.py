"""Put attention processors at the layers that a call needs, and take them away again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import ActivePass
from t2ictl.attention.processor import ControlledAttention

__all__ = ["AttnProcessorPatch"]

_PREVIOUS = "t2ictl_previous_processor"


class AttnProcessorPatch:
    """The processors that a session has put on a denoiser.

    Args:
        denoiser: the U-Net.
        active_pass: tells the processors which pass is in progress.
    """

    def __init__(self, denoiser: Any, active_pass: ActivePass) -> None:
        self._denoiser, self._active_pass = denoiser, active_pass
        self._placed: list[tuple[Any, ControlledAttention]] = []

    def place(self, layers: Iterable[Layer]) -> None:
        """Put a processor at each layer; what was there goes on working behind it.

        Args:
            layers: the layers.
        """
        for layer in layers:
            attention = self._denoiser.get_submodule(layer.module)
            ours = ControlledAttention(layer, attention.processor, self._active_pass)
            attention.set_processor(ours)
            if isinstance(ours.previous, nn.Module):  # keep its weights where offloading finds them
                attention.add_module(_PREVIOUS, ours.previous)
            self._placed.append((attention, ours))

    def remove(self) -> None:
        """Put back what was there, unless someone else has replaced ours since."""
        for attention, ours in self._placed:
            attention._modules.pop(_PREVIOUS, None)
            if attention.processor is ours:
                attention.set_processor(ours.previous)
        self._placed = []
        # Projections that were fused inside the session come apart later, to the processors of that moment.
        saved = getattr(self._denoiser, "original_attn_processors", None) or {}
        for name, processor in saved.items():
            if isinstance(processor, ControlledAttention):
                saved[name] = processor.previous

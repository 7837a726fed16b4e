"""Put attention processors at the layers of a denoiser for the length of one evaluation.

Between two evaluations, in callbacks and between calls, the layers have the user's own processors: whoever looks at
their types, stores them or sets others never meets ours. Within an evaluation ours shadows the attribute of the
instance, so that a processor with weights stays a submodule of its layer, and names of weights stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import ActivePass
from t2ictl.attention.processor import ControlledAttention, KeptProjections
from t2ictl.attention.weights import weights_signature
from t2ictl.patching import InstanceAttributes
from t2ictl.ports.base import DenoiserPort

__all__ = ["AttnProcessorPatch", "ProcessorsBefore"]


class AttnProcessorPatch:
    """The processors that a session has put on a denoiser.

    Args:
        port: the denoiser.
        active_pass: tells the processors which pass is in progress.
    """

    def __init__(self, port: DenoiserPort, active_pass: ActivePass) -> None:
        self._denoiser, self._active_pass = port.denoiser, active_pass
        self._processor: Any = port.processor_class
        self._placed = InstanceAttributes()
        self._kept: dict[str, KeptProjections] = {}

    def place(self, layers: Iterable[Layer]) -> None:
        """Put a new processor at each layer; what is there now goes on working behind it.

        Args:
            layers: the layers.
        """
        self.remove()
        for layer in layers:
            attention: Any = self._denoiser.get_submodule(layer.module)
            ours = self._processor(layer, attention.processor, self._active_pass, self._kept_for(layer, attention))
            self._placed.set(attention, "processor", ours)

    def _kept_for(self, layer: Layer, attention: nn.Module) -> KeptProjections:
        """What was projected from text at the evaluation before, unless the weights have changed since."""
        is_kept = layer.kind == "cross" and self._processor is ControlledAttention
        made_with = weights_signature(attention) if is_kept else None
        kept = self._kept.get(layer.address)
        if kept is None or made_with is None or kept.made_with != made_with:
            self._kept[layer.address] = kept = KeptProjections(made_with)
        return kept

    def remove(self) -> None:
        """Put back what was there, unless someone else has replaced ours since."""
        self._placed.undo()


class ProcessorsBefore:
    """The processors of all layers before a call, for a call that is broken off with others in place.

    Some pipelines set processors of their own after encoding, and put the earlier ones back only at their end.

    Args:
        denoiser: the model.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._kept = [(each, each.processor) for each in denoiser.modules() if hasattr(each, "get_processor")]

    def restore(self) -> None:
        """Put them back where others stand now."""
        for attention, processor in self._kept:
            if attention.processor is not processor:
                attention.set_processor(processor)  # type: ignore[operator]

"""Ports: one denoiser class each. A port names the arguments of a forward pass, and knows no pipeline.

A session moves latents, reads text rows and runs passes of its own. What these are called, how latents are packed and
which arguments have a row for each image differs between denoisers; all of that is behind a port.

Legend: ``R`` row of the denoiser's batch, ``B`` image, ``C`` channels, ``Y`` ``X`` rows and columns of the latent,
``T`` position of the text row.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from t2ictl.attention.kernel_processor import KernelAttention
from t2ictl.attention.layers import Layer

__all__ = ["Arguments", "DenoiserPort", "Inputs", "Rows", "take_rows"]

Inputs = Mapping[str, Any]
"""The arguments of one forward pass by name."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Rows = slice | list[int] | Tensor


def take_rows(value: Any, rows: Rows, total: int) -> Any:
    """Keep some batch rows of every tensor in a nest of arguments; leave everything else as it is.

    Args:
        value: a tensor, or a nest of dicts, lists and tuples.
        rows: which rows.
        total: rows of the batch; a tensor of another first dimension has no rows.

    Returns:
        A new nest.

    Example:
        >>> take_rows({"a": torch.arange(2), "b": [torch.zeros(3)]}, slice(1, 2), 2)
        {'a': tensor([1]), 'b': [tensor([0., 0., 0.])]}
    """
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and value.shape[0] == total else value
    if isinstance(value, dict):
        return {key: take_rows(each, rows, total) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(take_rows(each, rows, total) for each in value)
    return value


class DenoiserPort(ABC):
    """One denoiser class.

    Args:
        denoiser: the model; the port reads it and changes nothing.
    """

    component: ClassVar[str] = "transformer"
    """Name of the denoiser in a pipeline."""
    sample_name: ClassVar[str] = "hidden_states"
    """Argument that holds the latents."""
    text_names: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    """Arguments that hold text rows; several stand one behind the other in the row that attention reads."""
    unbatched: ClassVar[frozenset[str]] = frozenset()
    """Arguments without a row for each image, whatever their first dimension is."""
    several_calls: ClassVar[bool] = True
    """Whether pipelines may call the denoiser several times between two scheduler steps."""

    processor_class: ClassVar[type] = KernelAttention
    """Processor that a session puts at the attention layers."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser
        names = _parameter_names(type(denoiser).forward)
        # A model class of somebody's own may hide the arguments of the class above it behind ``*args``.
        self._names = names if self.sample_name in names else _parameter_names(self._stock_class().forward)

    @classmethod
    @abstractmethod
    def _stock_class(cls) -> type[nn.Module]:
        """Return the denoiser class of diffusers."""

    # -- arguments --------------------------------------------------------------------------

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Name the arguments of a forward pass.

        Args:
            args: the positional ones.
            kwargs: the others.

        Returns:
            Value by name.
        """
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def arguments(self, inputs: Inputs, positional: int) -> Arguments:
        """Return named arguments as they are passed.

        Args:
            inputs: value by name.
            positional: how many go by position, as the pipeline passed them.

        Returns:
            Positional and keyword arguments.
        """
        first = self._names[:positional]
        return tuple(inputs[name] for name in first), {
            name: value for name, value in inputs.items() if name not in first
        }

    def take(self, inputs: Inputs, rows: Rows) -> dict[str, Any]:
        """Keep some rows of the batch.

        Args:
            inputs: arguments of a pass.
            rows: the rows.

        Returns:
            The arguments of a pass of these rows; containers are new ones.
        """
        total = len(inputs[self.sample_name])
        return {
            name: value if name in self.unbatched else take_rows(value, rows, total) for name, value in inputs.items()
        }

    def time(self, inputs: Inputs) -> float:
        """Return the time that the denoiser is told, in its own unit."""
        return float(torch.as_tensor(inputs["timestep"]).flatten()[0])

    # -- latents ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latent; a denoiser for inpainting gets more, of which these come first."""

    def latents(self, inputs: Inputs) -> Tensor:
        """Return the latents of a pass, ``x_RCYX``."""
        return inputs[self.sample_name][:, : self.latent_channels]

    def with_latents(self, inputs: Inputs, x_RCYX: Tensor) -> dict[str, Any]:
        """Put other latents in the place of those of a pass; what else its sample holds stays.

        Args:
            inputs: arguments of a pass.
            x_RCYX: latents, as many rows.

        Returns:
            New arguments.
        """
        sample = inputs[self.sample_name]
        return {**inputs, self.sample_name: torch.cat([x_RCYX, sample[:, self.latent_channels :]], dim=1)}

    def pipeline_form(self, x_BCYX: Tensor) -> Tensor:
        """Return latents in the form in which a pipeline hands them to its scheduler."""
        return x_BCYX

    @property
    @abstractmethod
    def native_cells(self) -> tuple[int, int]:
        """Height and width of the latent that the model was made for (cells)."""

    @property
    def cell_multiple(self) -> int:
        """What height and width of the latent must be a multiple of."""
        return 1

    # -- text -------------------------------------------------------------------------------

    def texts(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the text rows of a pass, ``rows_RTC``, in the order in which attention reads them."""
        return tuple(inputs[name] for name in self.text_names if inputs.get(name) is not None)

    def text_length(self, inputs: Inputs) -> int:
        """Return how many text positions attention reads."""
        return sum(each.shape[1] for each in self.texts(inputs))

    def attended_text(self, rows_BTC: Tensor) -> Tensor:
        """Return text rows as cross-attention reads them, for models that project them once for all blocks.

        Args:
            rows_BTC: as the text encoders give them.
        """
        return rows_BTC

    def without_text(self, inputs: Inputs) -> dict[str, Any]:
        """Take out what speaks of the prompt beside its rows.

        Args:
            inputs: arguments of a pass.

        Returns:
            New arguments.
        """
        return dict(inputs)

    # -- parts ------------------------------------------------------------------------------

    @cached_property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The attention layers, in the order in which the denoiser runs them."""

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the blocks that may be computed a second time for the backward pass, with their names."""
        return iter(())


@functools.cache
def _parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]

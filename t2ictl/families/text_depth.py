"""Encode a text with the first layers of its encoder only: what it means there, before the later ones have read it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from t2ictl.errors import BadSetting, UnsupportedPipeline
from t2ictl.patching import instance_attribute

__all__ = ["truncated_encoder"]


@contextmanager
def truncated_encoder(encoders: Sequence[nn.Module], depth: float) -> Iterator[None]:
    """Let text encoders stop after a share of their layers; what follows these, a final norm for one, stays.

    The layers behind are run and their results not used, so that the pipeline takes its states from where it always
    does: after the last layer, or before it.

    Args:
        encoders: text encoders of transformers; changed for the length of the block only.
        depth: share of the layers, in [0, 1], rounded to whole layers of each encoder; 1 is the whole encoder.

    Raises:
        BadSetting: for a depth out of range.
        UnsupportedPipeline: if an encoder has not one list of layers.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes", device="cpu")
        >>> whole = pipe.encode_prompt("a red circle", "cpu", 1, False)[0]
        >>> with truncated_encoder([pipe.text_encoder], 1.0):
        ...     bool((pipe.encode_prompt("a red circle", "cpu", 1, False)[0] == whole).all())
        True

    Reference:
        Toker, Orgad, Ventura, Arad, Belinkov: "Diffusion Lens: Interpreting Text Encoders in Text-to-Image Pipelines",
        ACL 2024, arXiv 2403.05846.
    """
    if not 0 <= depth <= 1:
        raise BadSetting(f"The depth {depth:g} is no share of the layers.", "Give a number from 0 to 1.")
    with ExitStack() as changed:
        for encoder in encoders:
            layers = _layers(encoder)
            for layer in layers[round(depth * len(layers)) :]:
                # Not a hook: transformers takes the states of layers before any hook of theirs acts.
                changed.enter_context(instance_attribute(layer, "forward", functools.partial(_pass_on, layer.forward)))
        yield


def _layers(encoder: nn.Module) -> list[nn.Module]:
    found = [each for module in encoder.modules() if isinstance(each := getattr(module, "layers", None), nn.ModuleList)]
    if len(found) != 1:
        raise UnsupportedPipeline(
            f"{type(encoder).__name__} has {len(found)} lists of layers where one was expected.",
            "Use the whole encoder (depth 1).",
        )
    return list(found[0])


def _pass_on(forward: Callable[..., Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a layer and give what came in, in the form of what came out."""
    output = forward(hidden_states, *args, **kwargs)
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

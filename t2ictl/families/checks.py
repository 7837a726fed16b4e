"""What keeps a denoiser from being controlled: it is compiled, its weights are away, its layers are cached."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPTokenizer

from t2ictl.errors import UnsupportedPipeline

__all__ = ["WEIGHTS_AWAY", "check_gradients", "has_clip", "hook_names", "refuse_cached", "refuse_compiled"]

# Names under which diffusers registers its hooks of group offloading and of layerwise casting.
WEIGHTS_AWAY = {"group_offloading", "lazy_prefetch_group_offloading", "layerwise_casting"}


def check_gradients(denoiser: nn.Module) -> None:
    """See that a gradient can be taken through a denoiser.

    Args:
        denoiser: the model.

    Raises:
        UnsupportedPipeline: with the reason why not.
    """
    if any(parameter.is_meta for parameter in denoiser.parameters()):
        raise UnsupportedPipeline(
            "The denoiser's weights are not in memory (sequential CPU offload), so no gradient can pass through.",
            "Use pipe.enable_model_cpu_offload(), which keeps one whole model at a time.",
        )
    hooks = {name for each in denoiser.modules() for name in hook_names(each)}
    if hooks & WEIGHTS_AWAY:
        found = ", ".join(sorted(hooks & WEIGHTS_AWAY))
        raise UnsupportedPipeline(
            f"The denoiser's weights are moved or cast away after each layer ({found}), "
            "and the backward pass would not find them.",
            "Use pipe.enable_model_cpu_offload() in place of group offloading or layerwise casting.",
        )


def hook_names(module: nn.Module) -> tuple[str, ...]:
    """Name the hooks of diffusers that a module carries.

    Args:
        module: any module.

    Returns:
        Their names, in the order in which they were put there.

    Example:
        >>> hook_names(nn.Linear(1, 1))
        ()
    """
    registry = module.__dict__.get("_diffusers_hook")
    return () if registry is None else tuple(registry.hooks)


def has_clip(pipe: Any, suffix: str, kind: type) -> bool:
    """Return whether a pipeline has a CLIP text encoder, or had one and was left only its tokenizer.

    Args:
        pipe: a diffusers pipeline.
        suffix: ``""`` for the first encoder, ``"_2"`` for the second.
        kind: class of the encoder.

    Returns:
        True also where the encoder was dropped to save memory, since the words are read by the tokenizer.
    """
    encoder = getattr(pipe, f"text_encoder{suffix}", None)
    return isinstance(encoder, kind) or (
        encoder is None and isinstance(getattr(pipe, f"tokenizer{suffix}", None), CLIPTokenizer)
    )


def refuse_compiled(denoiser: Any) -> None:
    """Raise for a denoiser that ``torch.compile`` runs, as a whole or in parts.

    Args:
        denoiser: the model of a pipeline.

    Raises:
        UnsupportedPipeline: if it is compiled.
    """
    if isinstance(denoiser, torch._dynamo.OptimizedModule):
        name = "transformer" if "Transformer" in type(denoiser._orig_mod).__name__ else "unet"
        remedy = f"Take the model itself for the session: pipe.{name} = pipe.{name}._orig_mod."
    elif any(each._compiled_call_impl is not None for each in denoiser.modules()):
        remedy = "Load the model anew for the session, and compile another copy."
    else:
        return
    raise UnsupportedPipeline(
        "The denoiser is compiled (torch.compile), and a compiled forward pass cannot be controlled.", remedy
    )


def refuse_cached(denoiser: Any) -> None:
    """Raise for a transformer whose step cache is on: the passes of a session would be kept in it.

    Args:
        denoiser: the model of a pipeline.

    Raises:
        UnsupportedPipeline: if a cache of diffusers is enabled.
    """
    if getattr(denoiser, "is_cache_enabled", False):
        raise UnsupportedPipeline(
            "The transformer's cache is on (enable_cache): blocks would be left out whose attention is to be read.",
            "Call pipe.transformer.disable_cache() for the length of the session.",
        )

"""Pipeline families, and which one a pipeline belongs to."""

from __future__ import annotations

from typing import Any

import torch

from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.base import Adapter, Encoded, refuse_compiled
from t2ictl.families.stable_diffusion import StableDiffusionAdapter
from t2ictl.families.stable_diffusion_xl import StableDiffusionXLAdapter
from t2ictl.prompts.prompt import Prompt

__all__ = ["ADAPTERS", "Adapter", "Encoded", "find_adapter", "parse"]

ADAPTERS: tuple[type[Adapter], ...] = (StableDiffusionAdapter, StableDiffusionXLAdapter)


def find_adapter(pipe: Any) -> Adapter:
    """Find the adapter of a pipeline.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        The adapter of its family.

    Raises:
        UnsupportedPipeline: if no family matches.
    """
    denoiser = getattr(pipe, "unet", None)
    if isinstance(denoiser, torch.nn.Module):
        refuse_compiled(denoiser)
    for adapter in ADAPTERS:
        if adapter.matches(pipe):
            return adapter(pipe)
    raise UnsupportedPipeline(
        f"{type(pipe).__name__} is not a pipeline that can be controlled.",
        f"Supported families: {', '.join(adapter.family for adapter in ADAPTERS)} (U-Net and CLIP text encoders).",
    )


def parse(pipe: Any, text: str, *more: str, parser: str = "grammar") -> Prompt:
    """Parse a prompt as a pipeline reads it: words, objects with attributes, and their tokens.

    Args:
        pipe: a diffusers pipeline; nothing is run and nothing changed.
        text: the prompt.
        *more: the second encoder's own prompt, if it has one.
        parser: ``"grammar"`` or ``"spacy"``.

    Returns:
        The parsed prompt.

    Example:
        >>> import t2ictl
        >>> prompt = t2ictl.parse(t2ictl.load("shapes"), "a red circle and a blue square")
        >>> [phrase.noun.text for phrase in prompt.objects()]
        ['circle', 'square']
    """
    return find_adapter(pipe).parse((text, *more), parser=parser)

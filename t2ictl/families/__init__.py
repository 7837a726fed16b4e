"""Pipeline families, and which one a pipeline belongs to."""

from __future__ import annotations

from typing import Any

import torch

from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.base import Adapter, Encoded
from t2ictl.families.checks import refuse_compiled
from t2ictl.families.flux import ChromaAdapter, FluxAdapter
from t2ictl.families.hunyuan_dit import HunyuanDiTAdapter
from t2ictl.families.pixart import PixArtAdapter
from t2ictl.families.sana import SanaAdapter
from t2ictl.families.stable_diffusion import StableDiffusionAdapter
from t2ictl.families.stable_diffusion_3 import StableDiffusion3Adapter
from t2ictl.families.stable_diffusion_xl import StableDiffusionXLAdapter
from t2ictl.prompts.prompt import Prompt

__all__ = ["ADAPTERS", "Adapter", "Encoded", "find_adapter", "list_families", "own_arguments", "parse"]

ADAPTERS: tuple[type[Adapter], ...] = (
    StableDiffusionAdapter,
    StableDiffusionXLAdapter,
    StableDiffusion3Adapter,
    FluxAdapter,
    ChromaAdapter,
    PixArtAdapter,
    SanaAdapter,
    HunyuanDiTAdapter,
)


def list_families() -> dict[str, type[Adapter]]:
    """List the pipeline families that can be controlled.

    Returns:
        Adapter class by the family's short name; its ``offers`` are what controls may need.

    Example:
        >>> sorted(list_families()["flux"].offers)
        ['maps']
    """
    return {adapter.family: adapter for adapter in ADAPTERS}


def find_adapter(pipe: Any) -> Adapter:
    """Find the adapter of a pipeline.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        The adapter of its family.

    Raises:
        UnsupportedPipeline: if no family matches.
    """
    for name in ("unet", "transformer"):
        if isinstance(getattr(pipe, name, None), torch.nn.Module):
            refuse_compiled(getattr(pipe, name))
    for adapter in ADAPTERS:
        if adapter.matches(pipe):
            return adapter(pipe)
    raise UnsupportedPipeline(
        f"{type(pipe).__name__} is not a pipeline that can be controlled.",
        f"Supported families: {', '.join(adapter.title for adapter in ADAPTERS)}.",
    )


def own_arguments(pipe: Any) -> dict[str, Any]:
    """Return arguments that a model wants in each call, and that its pipeline has otherwise by itself.

    :func:`t2ictl.generate` passes them on; for a call of your own: ``pipe(prompt, **t2ictl.own_arguments(pipe))``.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        Value by name: of Stable Diffusion 3 ``max_sequence_length``, where the tokenizer of T5 ends before the
        pipeline's 256, as in the embedded ``shapes-dit``; nothing for any other model.

    Example:
        >>> import t2ictl
        >>> own_arguments(t2ictl.load("shapes"))
        {}
    """
    return find_adapter(pipe).own_arguments


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

"""Arguments of ``encode_prompt`` as a session reads them: prompts, negative prompts, rows of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.errors import UnsupportedPipeline

__all__ = ["Encoded", "batch_layout", "listed", "negative_texts", "texts_by_prompt"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What one call of ``encode_prompt`` was asked for.

    Args:
        texts: for each prompt the text of each encoder; None if the caller gave embeddings only.
        embeddings: the embeddings that the caller gave, or None.
        batch: the rows of the batch that the denoiser will see.
        negatives: for each prompt the negative text of each encoder; empty where the caller gave none.
        how: arguments on which it depends how a text is read, beside the text.
    """

    texts: tuple[tuple[str, ...], ...] | None
    embeddings: Tensor | None
    batch: BatchLayout
    negatives: tuple[tuple[str, ...], ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict)


def listed(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return a prompt argument as a tuple: one string, a list of strings, or nothing."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def texts_by_prompt(arguments: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Read the text of each encoder for each prompt.

    Args:
        arguments: bound arguments of ``encode_prompt``.
        names: for each encoder the name of its prompt; one that was not given, or is empty, is the first one's.

    Returns:
        For each prompt the texts.

    Raises:
        UnsupportedPipeline: if the encoders get different numbers of prompts.

    Example:
        >>> texts_by_prompt({"prompt": ["a", "b"], "prompt_2": None}, ("prompt", "prompt_2"))
        (('a', 'a'), ('b', 'b'))
    """
    first = listed(arguments.get("prompt"))
    each = [listed(arguments.get(name) or None) or first for name in names]
    for name, own in zip(names, each, strict=True):
        if len(own) != len(first):
            raise UnsupportedPipeline(
                f"There are {len(first)} prompts and {len(own)} in {name}.",
                f"Give one {name} for each prompt, or none.",
            )
    return tuple(zip(*each, strict=True))


def negative_texts(
    arguments: Mapping[str, Any], prompts: int, names: Sequence[str] = ("negative_prompt", "negative_prompt_2")
) -> tuple[tuple[str, ...], ...]:
    """Read the negative prompts of a call of ``encode_prompt``: one for each prompt, one text stands for all.

    Args:
        arguments: its bound arguments.
        prompts: number of prompts.
        names: for each encoder the name of its negative prompt.

    Returns:
        For each prompt the texts of the encoders; nothing where the caller gave none, or embeddings in their place.
    """
    first = listed(arguments.get("negative_prompt"))
    if not first or arguments.get("negative_prompt_embeds") is not None:
        return ()
    own = [listed(arguments.get(name) or None) or first for name in names]
    every = [one * (prompts if len(one) == 1 else 1) for one in own]
    return tuple(zip(*every, strict=True)) if {len(one) for one in every} == {prompts} else ()


def batch_layout(arguments: Mapping[str, Any], prompts: int) -> BatchLayout:
    """Lay out the rows of a call from the arguments of its ``encode_prompt``.

    A pipeline that guides by calls of their own, or not at all, has conditional rows alone.
    """
    return BatchLayout.from_counts(
        prompts=prompts,
        images_per_prompt=int(arguments["num_images_per_prompt"]),
        guided=bool(arguments.get("do_classifier_free_guidance", False)),
    )

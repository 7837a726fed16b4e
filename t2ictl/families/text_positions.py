"""Encode a text as if it began further on: its words get the position embeddings of another place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from t2ictl.errors import UnsupportedPipeline

__all__ = ["position_offset"]


@contextmanager
def position_offset(encoders: Sequence[nn.Module], first: Sequence[int]) -> Iterator[None]:
    """Let text encoders read each text of a batch from a position of its own on.

    The start token keeps position 0; the first word has position ``first``, the next ``first + 1``, and so on, as in a
    longer text of which only these words are there. Positions after the last one that the encoder knows repeat it;
    a causal encoder has read the words by then.

    Args:
        encoders: CLIP text encoders; changed for the length of the block only.
        first: position of the first word of each text, from 1.

    Raises:
        UnsupportedPipeline: if an encoder has no position embedding, or does not read the texts in one batch.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes", device="cpu")
        >>> ids = pipe.tokenizer("a red circle", padding="max_length", return_tensors="pt").input_ids
        >>> with position_offset([pipe.text_encoder], [5]):
        ...     later = pipe.text_encoder(ids)[0]
        >>> bool((later[0, 1] - pipe.text_encoder(ids)[0][0, 1]).abs().max() > 0.1)
        True
    """

    def shift(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the table of positions other ones than its own."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if len(ids) != len(first):
            raise UnsupportedPipeline(
                f"The text encoder reads {len(ids)} texts where {len(first)} were given.",
                "Use positions='own': this pipeline does not encode its texts in one batch.",
            )
        table: Any = module.position_embedding
        places = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        shifted = places + torch.tensor(first, device=ids.device)[:, None] - 1
        return args[:1], {**kwargs, "position_ids": shifted.clamp_max(table.num_embeddings - 1).where(places > 0, 0)}

    tables = [module for each in encoders for module in each.modules() if hasattr(module, "position_embedding")]
    if len(tables) != len(encoders):
        raise UnsupportedPipeline(
            "A text encoder has no table of positions to read from.", "Use positions='own', or a CLIP text encoder."
        )
    hooks = []
    try:
        for table in tables:
            hooks.append(table.register_forward_pre_hook(shift, with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()

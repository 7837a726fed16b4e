"""Hide words from a text encoder: the others are then read as if these were not there, at their own places.

Legend: ``B`` text, ``K`` position of the text row (of two, the one that reads), ``J`` the one that is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from t2ictl.errors import UnsupportedPipeline

__all__ = ["masked_tokens", "visible_except", "seen_without_pairs"]


def visible_except(hidden: Sequence[Sequence[int]], length: int) -> Tensor:
    """Return which positions of each text an encoder may read: all but the hidden ones.

    Args:
        hidden: for each text the hidden positions.
        length: positions of the encoder's row.

    Returns:
        ``seen_BK``, boolean.

    Example:
        >>> visible_except([[1], []], 3).tolist()
        [[True, False, True], [True, True, True]]
    """
    seen_BK = torch.ones(len(hidden), length, dtype=torch.bool)
    for row, positions in enumerate(hidden):
        seen_BK[row, list(positions)] = False
    return seen_BK


def seen_without_pairs(readers: Sequence[Sequence[int]], hidden: Sequence[Sequence[int]], length: int) -> Tensor:
    """Return which positions may read which: some readers do not see some positions, and all else is as ever.

    What reaches a reader through a third word stays; :func:`visible_except` takes that away too.

    Args:
        readers: for each text the positions that read.
        hidden: for each text the positions that these do not see.
        length: positions of the encoder's row.

    Returns:
        ``seen_BKJ``, boolean.

    Example:
        >>> seen_without_pairs([[2]], [[1]], 3)[0].int().tolist()
        [[1, 1, 1], [1, 1, 1], [1, 0, 1]]
    """
    seen_BKJ = torch.ones(len(readers), length, length, dtype=torch.bool)
    for row, (reading, positions) in enumerate(zip(readers, hidden, strict=True)):
        for reader in reading:
            seen_BKJ[row, reader, list(positions)] = False
    return seen_BKJ


@contextmanager
def masked_tokens(
    encoders: Sequence[nn.Module], seen: Sequence[Tensor], *, are_causal: Sequence[bool] = ()
) -> Iterator[None]:
    """Let text encoders read each text of a batch without some of its positions.

    The hidden positions keep their rows, which nobody has read. A mask that the pipeline itself gives stays in force.
    A causal encoder stays causal: a position never reads a later one.

    Args:
        encoders: text encoders; changed for the length of the block only.
        seen: for each encoder ``seen_BK``, or ``seen_BKJ`` for pairs of reader and read.
        are_causal: for each encoder whether it reads backwards only, as CLIP does; a mask of pairs has to say it again.
            Empty: all do.

    Raises:
        UnsupportedPipeline: if an encoder does not read the texts in one batch of rows of that length.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes", device="cpu")
        >>> pair = ["a red circle", "a blue circle"]
        >>> ids = pipe.tokenizer(pair, padding="max_length", return_tensors="pt").input_ids
        >>> with masked_tokens([pipe.text_encoder], [visible_except([[2], [2]], 24)]):
        ...     one, other = pipe.text_encoder(ids)[0]
        >>> bool((one[3] == other[3]).all()), bool((one[2] == other[2]).all())
        (True, False)
    """
    hooks = []
    try:
        for encoder, mask, is_causal in zip(encoders, seen, are_causal or [True] * len(encoders), strict=True):
            hooks.append(encoder.register_forward_pre_hook(_Hider(mask, is_causal), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Hider:
    """Gives an encoder another attention mask than it was called with."""

    def __init__(self, seen: Tensor, is_causal: bool) -> None:
        self._seen, self._is_causal = seen, is_causal

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if tuple(ids.shape) != (self._seen.shape[0], self._seen.shape[-1]):
            raise UnsupportedPipeline(
                f"The text encoder reads ids of shape {tuple(ids.shape)} where "
                f"{self._seen.shape[0]} texts of {self._seen.shape[-1]} positions were announced.",
                "Use how='alone': this pipeline does not encode its texts in one batch of whole rows.",
            )
        seen = self._seen.to(ids.device)
        own = kwargs.get("attention_mask")
        if own is None and len(args) > 1:
            own, args = args[1], args[:1]
        if own is not None:
            seen = seen & (own.bool() if seen.ndim == 2 else own.bool()[:, None, :])
        return args, {**kwargs, "attention_mask": self._as_mask(seen, module)}

    def _as_mask(self, seen: Tensor, module: nn.Module) -> Tensor:
        """A mask in the one form that all encoders read alike: whole numbers for rows, something to add for pairs."""
        if seen.ndim == 2:
            return seen.long()
        length = seen.shape[-1]
        if self._is_causal:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
        dtype = next(module.parameters()).dtype
        low = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
        return torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), low)[:, None]

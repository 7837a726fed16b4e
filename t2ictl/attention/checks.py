"""Whether queries, keys, mask and positions belong together, asked before any of them is used.

Legend: ``B`` batch row, ``H`` head, ``Q`` query, ``L`` position in a sequence (key), ``P`` some of them, ``D`` head
width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.errors import BadSetting, ShapeMismatch

__all__ = ["check_attention", "checked_places", "checked_positions"]


def check_attention(q_BHQD: Tensor, k_BHLD: Tensor, mask: Tensor | None, budget: int) -> None:
    """Raise if an attention of these is not defined.

    Args:
        q_BHQD: queries.
        k_BHLD: keys; their number of heads divides that of the queries.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHQL``. Or None.
        budget: most bytes of a block of logits.

    Raises:
        ShapeMismatch: if queries, keys and mask do not belong together.
        BadSetting: if the mask holds whole numbers, or the budget is below 1.

    Example:
        >>> check_attention(torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8), torch.ones(3, 5, dtype=torch.bool), 1)
    """
    queries, keys = tuple(q_BHQD.shape), tuple(k_BHLD.shape)
    if len(queries) != 4 or len(keys) != 4 or queries[0] != keys[0] or queries[3] != keys[3] or 0 in keys:
        raise ShapeMismatch(
            f"Queries of shape {queries} and keys of shape {keys} make no attention.",
            "Give (batch rows, heads, positions, head width) with the same rows and width, and at least one key.",
        )
    if queries[1] % keys[1]:
        raise ShapeMismatch(
            f"{queries[1]} heads of queries cannot share {keys[1]} heads of keys.",
            "Give keys whose number of heads divides that of the queries.",
        )
    if budget < 1:
        raise BadSetting(f"`budget` is {budget} bytes.", "Give at least 1; a block has at least one query.")
    if mask is not None:
        _check_mask(mask, (*queries[:3], keys[2]))


def _check_mask(mask: Tensor, logits: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise BadSetting(
            f"`mask` is of {mask.dtype}, and whole numbers may mean either kind of mask.",
            "Give a boolean mask (True: may be read) or a bias in floating point.",
        )
    sizes = zip(reversed(mask.shape), reversed(logits), strict=False)
    if mask.dim() > 4 or any(own not in (1, size) for own, size in sizes):
        raise ShapeMismatch(
            f"`mask` of shape {tuple(mask.shape)} does not broadcast to logits of shape {logits}.",
            "Cut from the kernel's mask the rows of these queries and the columns of these keys.",
        )


def checked_positions(name: str, positions: slice | Tensor, of_BHLD: Tensor) -> slice | Tensor:
    """Return some positions of a sequence, or raise if they do not lie in it.

    Args:
        name: what they are called in messages.
        positions: a slice, or positions one by one.
        of_BHLD: the sequence.

    Returns:
        The slice, or ``positions_P`` on the device of the sequence.

    Raises:
        ShapeMismatch: if they are no positions of the sequence.
        BadSetting: if they are no whole numbers.

    Example:
        >>> checked_positions("text", slice(0, 3), torch.zeros(1, 2, 5, 8))
        slice(0, 3, None)
    """
    if not isinstance(positions, slice):
        return checked_places(name, positions, of_BHLD)
    count = of_BHLD.shape[2]
    if max(positions.start or 0, positions.stop or 0) > count or (positions.step or 1) < 1:
        raise ShapeMismatch(f"`{name}` is {positions}, of {count} positions.", "Give a slice that lies within.")
    return positions


def checked_places(name: str, places_P: Tensor, of_BHLD: Tensor) -> Tensor:
    """Return positions one by one, or raise if they do not lie in a sequence.

    Those that lie on an accelerator are left to the indexing that follows, which checks them without a wait.

    Args:
        name: what they are called in messages.
        places_P: positions, from 0; one may be there several times.
        of_BHLD: the sequence.

    Returns:
        ``places_P`` on the device of the sequence.

    Raises:
        ShapeMismatch: if they are no positions of the sequence.
        BadSetting: if they are no whole numbers.

    Example:
        >>> checked_places("places", torch.tensor([4, 0]), torch.zeros(1, 2, 5, 8))
        tensor([4, 0])
    """
    count = of_BHLD.shape[2]
    if places_P.dtype not in (torch.int32, torch.int64):
        raise BadSetting(
            f"`{name}` is of {places_P.dtype}.", "Give positions; of a boolean mask, mask.nonzero()[:, 0]."
        )
    is_outside = places_P.device.type == "cpu" and bool(((places_P < 0) | (places_P >= count)).any())
    if places_P.dim() != 1 or is_outside:
        raise ShapeMismatch(
            f"`{name}` of shape {tuple(places_P.shape)} is no list of positions among {count}.",
            f"Give one dimension of whole numbers from 0 to {count - 1}.",
        )
    return places_P.to(of_BHLD.device)

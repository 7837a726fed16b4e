"""Which words belong together: objects with what describes them, and words that belong to nothing.

A loss that binds gets a number for each word: words of one number belong together, others do not. Which of them is the
noun is told apart.

Legend: B batch row, N word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.errors import BadSetting, ShapeMismatch


def checked_groups(maps_BNYX: Tensor, owner_BN: Tensor, noun_BN: Tensor) -> None:
    """Check that numbers and nouns fit the maps.

    Args:
        maps_BNYX: one map for each word.
        owner_BN: number of the object that a word belongs to, whole numbers.
        noun_BN: true where a word is the noun of its object.

    Raises:
        ShapeMismatch: one of them does not fit the maps.
        BadSetting: one of them has another type.

    Example:
        >>> checked_groups(torch.ones(1, 2, 3, 3), torch.tensor([[0, 0]]), torch.tensor([[True, False]]))
    """
    expected = tuple(maps_BNYX.shape[:2])
    for name, given in (("owner_BN", owner_BN), ("noun_BN", noun_BN)):
        if tuple(given.shape) != expected:
            raise ShapeMismatch(
                f"`{name}` has shape {tuple(given.shape)}, expected {expected}.", "Give one for each word of each row."
            )
    if owner_BN.is_floating_point() or owner_BN.dtype == torch.bool:
        raise BadSetting(f"`owner_BN` has dtype {owner_BN.dtype}, expected whole numbers.", "Number the objects.")
    if noun_BN.dtype != torch.bool:
        raise BadSetting(f"`noun_BN` has dtype {noun_BN.dtype}, expected torch.bool.", "Convert it with .bool().")


def together(owner_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return which two words belong to one object; a word does not belong to itself.

    Args:
        owner_BN: number of the object that a word belongs to.
        mask_BN: true where a word is real.

    Returns:
        same_BNN, boolean, symmetric.

    Example:
        >>> together(torch.tensor([[0, 0, 1]]), torch.ones(1, 3, dtype=torch.bool))[0, 0].tolist()
        [False, True, False]
    """
    same_BNN = owner_BN[:, :, None] == owner_BN[:, None]
    itself_NN = torch.eye(owner_BN.shape[1], dtype=torch.bool, device=owner_BN.device)
    return same_BNN & real_pairs(mask_BN) & ~itself_NN


def described(owner_BN: Tensor, noun_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return which word is the noun of an object, and which other word belongs to that object.

    Args:
        owner_BN: number of the object that a word belongs to.
        noun_BN: true where a word is the noun of its object.
        mask_BN: true where a word is real.

    Returns:
        pair_BNM, boolean: noun ``N``, and ``M`` what describes it.

    Example:
        >>> noun_BN = torch.tensor([[False, True, True]])
        >>> described(torch.tensor([[0, 0, 1]]), noun_BN, torch.ones(1, 3, dtype=torch.bool)).nonzero().tolist()
        [[0, 1, 0]]
    """
    return together(owner_BN, mask_BN) & noun_BN[:, :, None] & ~noun_BN[:, None]


def apart(owner_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return which two words belong to different objects.

    Args:
        owner_BN: number of the object that a word belongs to.
        mask_BN: true where a word is real.

    Returns:
        other_BNN, boolean, symmetric.

    Example:
        >>> apart(torch.tensor([[0, 0, 1]]), torch.ones(1, 3, dtype=torch.bool))[0, 0].tolist()
        [False, False, True]
    """
    return (owner_BN[:, :, None] != owner_BN[:, None]) & real_pairs(mask_BN)


def real_pairs(mask_BN: Tensor) -> Tensor:
    """Return which pairs are of two real words.

    Args:
        mask_BN: true where a word is real.

    Returns:
        real_BNN, boolean.

    Example:
        >>> real_pairs(torch.tensor([[True, False]]))[0].tolist()
        [[True, False], [False, False]]
    """
    return mask_BN[:, :, None] & mask_BN[:, None]


def mean_over(value_BNM: Tensor, counts_BNM: Tensor) -> Tensor:
    """Return the mean along the last dimension of the values that count; 0 where none does.

    Args:
        value_BNM: values.
        counts_BNM: boolean, true where a value counts.

    Returns:
        mean_BN.

    Example:
        >>> mean_over(torch.tensor([[[1.0, 5.0], [7.0, 7.0]]]), torch.tensor([[[True, True], [False, False]]]))
        tensor([[3., 0.]])
    """
    sum_BN = torch.where(counts_BNM, value_BNM, 0.0).sum(-1)
    return sum_BN / counts_BNM.sum(-1).clamp(min=1)

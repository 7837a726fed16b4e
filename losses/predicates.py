"""Statements about an image as losses, by fuzzy logic: those of Predicated Diffusion.

A map is read as the degree to which "there is a dog at this place" holds. "There is a dog" is then that it holds at
some place, "the dog is black" that both hold at the same places, and "the black is not the bird's" that they hold
together nowhere. Each loss is minus the logarithm of the degree to which its statement holds.

The paper multiplies over places; here the mean of the logarithms is taken, so that a loss does not grow with the
resolution of the maps.

Legend: B batch row, N word, Y X map rows and columns, P place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.losses.groups import apart, checked_groups, described
from t2ictl.losses.overlap import checked_maps

# Ours: how near to 1 a degree may come inside of a logarithm.
MARGIN = 1e-6


def stretched(maps_BNYX: Tensor) -> Tensor:
    """Return maps whose smallest cell is 0 and whose largest is 1, as the degrees that the statements speak of.

    Args:
        maps_BNYX: one map for each word.

    Returns:
        maps_BNYX in [0, 1]; a constant map becomes 0.

    Example:
        >>> stretched(torch.tensor([[[[1.0, 2.0, 3.0]], [[5.0, 5.0, 5.0]]]]))[0, :, 0]
        tensor([[0.0000, 0.5000, 1.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    low, high = maps_BNYX.amin((-2, -1), keepdim=True), maps_BNYX.amax((-2, -1), keepdim=True)
    is_flat = high - low <= MARGIN * high.abs()
    return torch.where(is_flat, 0.0, (maps_BNYX - low) / torch.where(is_flat, 1.0, high - low))


def existence_loss(maps_BNYX: Tensor, mask_BN: Tensor | None = None, offset: float | None = None) -> Tensor:
    """Return, for each row, how little it holds that every concept is somewhere.

    ``-sum over n of log(1 - exp(mean over places of log(1 - A_n)))``.

    Args:
        maps_BNYX: degrees in [0, 1], one map for each concept.
        mask_BN: true where a concept is real; None if all are. Padded concepts add nothing and get no gradient.
        offset: added inside of the logarithm, ``log(1 - A_n + offset)``, as published code does (1e-4); None holds
            degrees below 1 instead.

    Returns:
        loss_B, not negative up to the offset; 0 for a row without concepts.

    Raises:
        ShapeMismatch: the maps are not four-dimensional, or the mask does not fit them.
        BadSetting: the mask is not boolean.

    Example:
        >>> existence_loss(torch.tensor([[[[0.5, 0.5]]]]))  # ln 2
        tensor([0.6931])

    Reference:
        Sueyoshi, Matsubara: "Predicated Diffusion: Predicate Logic-Based Attention Guidance for Text-to-Image Diffusion
        Models", CVPR 2024, arXiv 2311.16117, the loss of existence.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    nowhere_BN = _log_not(maps_BNYX, offset).mean((-2, -1)).exp()
    return -torch.where(mask_BN, (1 - nowhere_BN).clamp(min=MARGIN).log(), 0.0).sum(1)


def correspondence_loss(
    maps_BNYX: Tensor,
    owner_BN: Tensor,
    noun_BN: Tensor,
    mask_BN: Tensor | None = None,
    offset: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return, for each row, how little modifiers hold where their nouns do, and how much where other nouns do.

    ``same = -sum over (n, m) of mean over places of [log(1 - A_n (1 - A_m)) + log(1 - A_m (1 - A_n))]`` over pairs of a
    noun and one of its modifiers, and ``leak = -sum over (n, m) of mean over places of log(1 - A_n A_m)`` over pairs of
    a noun and a modifier of another one.

    Args:
        maps_BNYX: degrees in [0, 1], one map for each word.
        owner_BN: number of the object that a word belongs to.
        noun_BN: true where a word is the noun of its object.
        mask_BN: true where a word is real; None if all are. Padded words add nothing and get no gradient.
        offset: as for :func:`existence_loss` (1e-20 in published code).

    Returns:
        same_B and leak_B, not negative; 0 where there are no such pairs.

    Raises:
        ShapeMismatch: maps, numbers, nouns and mask do not fit each other.
        BadSetting: one of them has another type.

    Example:
        >>> maps_BNYX = torch.tensor([[[[0.5]], [[0.5]], [[0.5]]]])
        >>> nouns, owners = torch.tensor([[True, False, True]]), torch.tensor([[0, 0, 1]])
        >>> correspondence_loss(maps_BNYX, owners, nouns)  # -2 ln 0.75, and -ln 0.75
        (tensor([0.5754]), tensor([0.2877]))

    Reference:
        Sueyoshi, Matsubara: "Predicated Diffusion: Predicate Logic-Based Attention Guidance for Text-to-Image Diffusion
        Models", CVPR 2024, arXiv 2311.16117, the losses of one-to-one correspondence and of possession.
    """
    maps_BNYX, mask_BN = checked_maps(maps_BNYX, mask_BN)
    checked_groups(maps_BNYX, owner_BN, noun_BN)
    of_another_BNN = apart(owner_BN, mask_BN) & noun_BN[:, :, None] & ~noun_BN[:, None]
    one_BNNP, other_BNNP = maps_BNYX.flatten(2)[:, :, None], maps_BNYX.flatten(2)[:, None]
    same_BNN = -(_log_not(one_BNNP * (1 - other_BNNP), offset) + _log_not(other_BNNP * (1 - one_BNNP), offset)).mean(-1)
    leak_BNN = -_log_not(one_BNNP * other_BNNP, offset).mean(-1)
    same_B = torch.where(described(owner_BN, noun_BN, mask_BN), same_BNN, 0.0).sum((1, 2))
    return same_B, torch.where(of_another_BNN, leak_BNN, 0.0).sum((1, 2))


def possession_table(maps_BNYX: Tensor, offset: float | None = None) -> Tensor:
    """Return how little "word N holds only where word M does" holds, for each two words.

    ``-mean over places of log(1 - A_n (1 - A_m))``: the loss of possession, and either half of that of correspondence.

    Args:
        maps_BNYX: degrees in [0, 1], one map for each word.
        offset: as for :func:`existence_loss`.

    Returns:
        loss_BNM, not negative.

    Example:
        >>> possession_table(torch.tensor([[[[0.5]], [[1.0]]]]))[0, 0]  # ln(4/3) for itself, 0 for a word everywhere
        tensor([0.2877, -0.0000])
    """
    one_BNNP, other_BNNP = maps_BNYX.flatten(2)[:, :, None], maps_BNYX.flatten(2)[:, None]
    return -_log_not(one_BNNP * (1 - other_BNNP), offset).mean(-1)


def leak_table(maps_BNYX: Tensor, offset: float | None = None) -> Tensor:
    """Return how much two words hold at the same places, for each two words: the loss of leaks.

    ``-mean over places of log(1 - A_n A_m)``.

    Args:
        maps_BNYX: degrees in [0, 1], one map for each word.
        offset: as for :func:`existence_loss`.

    Returns:
        loss_BNM, not negative, symmetric.

    Example:
        >>> leak_table(torch.tensor([[[[0.5]], [[0.5]]]]))[0, 0, 1]  # -ln 0.75
        tensor(0.2877)
    """
    one_BNNP, other_BNNP = maps_BNYX.flatten(2)[:, :, None], maps_BNYX.flatten(2)[:, None]
    return -_log_not(one_BNNP * other_BNNP, offset).mean(-1)


def _log_not(degree: Tensor, offset: float | None) -> Tensor:
    if offset is None:
        return torch.log1p(-degree.clamp(max=1 - MARGIN))
    return (1 - degree + offset).log()

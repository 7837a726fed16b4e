"""Merging rows of a text encoding: several words become one composite row, and the others leave.

Cross-attention knows no order of its keys, so a row that leaves may be compacted away (what follows moves up, and
the row ends in one more empty position), masked (it stays and gets no attention), or set to zero (it stays,
with logit 0 and value 0, and takes the share of attention that a logit of 0 gets).

Legend: ``K`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Removal", "TokenGroup", "RowMerging"]

Removal = Literal["compact", "mask", "zero"]


@dataclass(frozen=True, kw_only=True)
class TokenGroup:
    """Positions of one group of words.

    Args:
        noun: positions of the noun; the first one becomes the composite.
        members: positions of what is added to it.
        dropped: positions that leave: all of the group's words but the composite.
    """

    noun: tuple[int, ...]
    members: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RowMerging:
    """How the rows of one prompt are merged.

    Args:
        groups: the groups; no position stands in two of them.
        length: number of positions of the row.
        end: position of the first end token.
        removal: how rows leave.

    Example:
        >>> groups = (TokenGroup(noun=(3,), members=(2,), dropped=(2,)),)  # start, a, red, cat, end, pad
        >>> RowMerging(groups=groups, length=6, end=4, removal="compact").moved
        (0, 1, 2, 2, 3, 4)
    """

    groups: tuple[TokenGroup, ...]
    length: int
    end: int
    removal: Removal

    @property
    def dropped(self) -> frozenset[int]:
        """All positions that leave."""
        return frozenset(position for group in self.groups for position in group.dropped)

    @property
    def kept(self) -> tuple[int, ...]:
        """Positions before the end token that stay, in order."""
        return tuple(position for position in range(self.end) if position not in self.dropped)

    @property
    def moved(self) -> tuple[int, ...]:
        """For each old position the one where its meaning is now; that of a dropped one is with its composite."""
        moved = list(range(self.length))
        if self.removal == "compact":
            for new, old in enumerate(self.kept):
                moved[old] = new
            for old in range(self.end, self.length):
                moved[old] = old - self.end + len(self.kept)
        for group in self.groups:
            for old in group.dropped:
                moved[old] = moved[group.noun[0]]
        return tuple(moved)

    @property
    def composites(self) -> tuple[int, ...]:
        """New position of each composite."""
        return tuple(self.moved[group.noun[0]] for group in self.groups)

    def rows(self, rows_KC: Tensor, noun: float, members: float, tail: tuple[Tensor, int] | None) -> Tensor:
        """Merge the rows.

        Args:
            rows_KC: encoding of the prompt.
            noun: weight of the noun's rows in the sum.
            members: weight of the others.
            tail: end-token substitution: encoding of the merged prompt, and the position of its first end token,
                which goes to the first end token here, as further ones to further ones. None: the prompt's own.

        Returns:
            ``rows_KC`` of the same length.
        """
        made_KC = rows_KC.clone()
        for group in self.groups:
            sum_C = noun * rows_KC[list(group.noun)].sum(dim=0)
            made_KC[group.noun[0]] = sum_C + members * rows_KC[list(group.members)].sum(dim=0)
        source_KC, first = (rows_KC, self.end) if tail is None else tail
        kept = list(self.kept) if self.removal == "compact" else list(range(self.end))
        if self.removal == "zero":
            made_KC[sorted(self.dropped)] = 0
        # The last position of the source stands in for those that it does not have.
        ends = [min(first + number, self.length - 1) for number in range(self.length - len(kept))]
        return torch.cat([made_KC[kept], source_KC[ends].to(made_KC)])

    def weight(self, strength: float) -> Tensor:
        """What each position counts in attention.

        Args:
            strength: 1: positions that leave count nothing; 0: they count as before.

        Returns:
            ``weight_K`` in [0, 1]; all 1 unless rows are masked.
        """
        weight_K = torch.ones(self.length)
        if self.removal == "mask":
            weight_K[sorted(self.dropped)] = 1.0 - strength
        return weight_K


def row_mask(positions: Sequence[Sequence[int]], length: int) -> Tensor:
    """Mark positions of several rows.

    Args:
        positions: for each image the positions.
        length: number of positions of a row.

    Returns:
        ``mask_BK``, True at them.

    Example:
        >>> row_mask([[1], []], 3).tolist()
        [[False, True, False], [False, False, False]]
    """
    mask_BK = torch.zeros(len(positions), length, dtype=torch.bool)
    for row, own in enumerate(positions):
        mask_BK[row, list(own)] = True
    return mask_BK

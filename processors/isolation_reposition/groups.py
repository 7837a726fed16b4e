"""Which positions may attend to which when several subjects share an image: labels, and the groups that follow.

Legend: ``S`` subject, ``N`` position of a map, ``Y`` ``X`` its rows and columns, ``M`` position taken from a reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from t2ictl.attention.grouped import AttentionGroup, Grouping, KeySource

__all__ = ["Aspect", "Reading", "Sampling", "isolated_groups", "resampled_positions", "subject_labels"]

# A cell belongs to a subject that covers a quarter of it: the border of a subject is rather its own than background.
LEAST_COVERAGE = 0.25
LEAST_CELLS = 4

Aspect = Literal["stretch", "fit"]
Sampling = Literal["centers", "corners"]


def subject_labels(coverage_SYX: Tensor) -> Tensor:
    """Share out the cells of a map among subjects.

    A cell belongs to the subject that covers most of it, if that is a quarter of it at least. A subject that would be
    left with fewer than four cells takes those of the background that it covers most, up to four; who has least, first.

    Args:
        coverage_SYX: share of each cell that each subject covers, in [0, 1]; all zero for a subject that is not there.

    Returns:
        ``labels_YX``: 0 for background, ``s + 1`` for subject ``s``.

    Example:
        >>> subject_labels(torch.tensor([[[1.0, 0.6, 0.1]], [[0.0, 0.4, 0.1]]])).tolist()
        [[1, 1, 2]]
    """
    if not len(coverage_SYX):
        return torch.zeros(coverage_SYX.shape[1:], dtype=torch.long)
    labels_N = torch.zeros(coverage_SYX[0].numel(), dtype=torch.long)
    most_N, first_N = (each.flatten() for each in coverage_SYX.max(dim=0))
    labels_N[most_N >= LEAST_COVERAGE] = first_N[most_N >= LEAST_COVERAGE] + 1
    counts = [int((labels_N == number).sum()) for number in range(1, len(coverage_SYX) + 1)]
    for count, number in sorted(zip(counts, range(1, len(counts) + 1), strict=True)):
        missing = LEAST_CELLS - count
        free_N = coverage_SYX[number - 1].flatten() * (labels_N == 0)
        if missing > 0:
            best_N = free_N.sort(descending=True, stable=True).indices[:missing]
            labels_N[best_N[free_N[best_N] > 0]] = number
    return labels_N.view(coverage_SYX.shape[1:])


def resampled_positions(
    target_YX: Tensor, reference_YX: Tensor, aspect: Aspect = "stretch", sampling: Sampling = "centers"
) -> Tensor:
    """Positions of a reference when its box is resampled to the box of the target, nearest neighbor.

    Attention knows no order, so it is the same to paste the resampled features at the target's place and to
    read the positions that were sampled: a position that is sampled twice counts twice.

    Args:
        target_YX: True where the subject shall be.
        reference_YX: True where it is in its own image.
        aspect: ``"stretch"`` to the whole target box (as published), or ``"fit"``: one scale for both sides.
        sampling: a cell takes what lies under its ``"centers"``, or under its first ``"corners"`` (as published): of
            three cells read in two, those are 0 and 2, or 0 and 1.

    Returns:
        ``positions_M`` in the reference, those outside of its mask left out; empty if either mask is empty.

    Example:
        >>> half = torch.tensor([[True, True, False, False]])
        >>> resampled_positions(torch.ones(1, 4, dtype=torch.bool), half).tolist()
        [0, 0, 1, 1]
    """
    if not target_YX.any() or not reference_YX.any():
        return torch.zeros(0, dtype=torch.long)
    (top, height), (left, width) = (_extent(reference_YX.any(dim=dim)) for dim in (1, 0))
    sides = [_extent(target_YX.any(dim=dim))[1] for dim in (1, 0)]
    if aspect == "fit":
        scale = min(sides[0] / height, sides[1] / width)
        sides = [max(1, math.floor(scale * side + 0.5)) for side in (height, width)]
    rows_Y, columns_X = (
        first + torch.div((2 * torch.arange(side) + (sampling == "centers")) * length, 2 * side, rounding_mode="floor")
        for first, length, side in ((top, height, sides[0]), (left, width, sides[1]))
    )
    positions_YX = rows_Y[:, None] * reference_YX.shape[1] + columns_X
    return positions_YX[reference_YX[rows_Y[:, None], columns_X]]


def _extent(line: Tensor) -> tuple[int, int]:
    """First true entry, and how many there are from it to the last."""
    places = line.nonzero().flatten()
    return int(places[0]), int(places[-1] - places[0]) + 1


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a subject reads from its reference.

    Args:
        row: for each batch row of the scene, that of the reference.
        positions: ``positions_M`` in it.
        strength: added to the logits of all of them.
        reads: ``bool_N``, positions of the scene that read it now.
    """

    row: tuple[int, ...]
    positions: Tensor
    strength: float
    reads: Tensor


def isolated_groups(
    labels_N: Tensor, readings: Mapping[int, Reading] | None = None, isolation: float = 1.0
) -> Grouping | None:
    """Group the positions of a scene: subjects do not see each other, and may read their references.

    Background reads everything; subject ``s`` reads the background, itself and, where it does now, its reference. With
    ``isolation`` below 1 it sees the others too, with logits lowered by ``log(1 - isolation)``.

    Args:
        labels_N: subject of each position, 0 for background.
        readings: for some subjects (from 1) what they read.
        isolation: 1: subjects do not see each other; 0: they do, as without.

    Returns:
        The groups; None if plain attention does the same.
    """
    readings = readings or {}
    groups = [_group(labels_N == 0, KeySource())]
    for number in labels_N.unique().tolist():
        if number == 0:
            continue
        own, reading = _own_keys(labels_N, number, isolation), readings.get(number)
        is_here = labels_N == number
        reads = is_here & reading.reads if reading is not None and len(reading.positions) else torch.zeros_like(is_here)
        groups.append(_group(is_here & ~reads, own))
        if reading is not None:
            source = KeySource(row=reading.row, keys=reading.positions, bias=reading.strength)
            groups.append(_group(reads, own, source))
    kept = tuple(group for group in groups if len(group.queries))
    is_plain = all(source.is_plain for group in kept for source in group.sources)
    return None if is_plain else Grouping(kept)


def _group(where_N: Tensor, *sources: KeySource) -> AttentionGroup:
    return AttentionGroup(queries=where_N.nonzero().flatten(), sources=sources)


def _own_keys(labels_N: Tensor, number: int, isolation: float) -> KeySource:
    """What a subject reads of its own image."""
    is_other_N = (labels_N != 0) & (labels_N != number)
    if isolation == 0 or not is_other_N.any():
        return KeySource()
    if isolation == 1:
        return KeySource(keys=(~is_other_N).nonzero().flatten())
    return KeySource(bias=is_other_N.float() * math.log(1 - isolation))

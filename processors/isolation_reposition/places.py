"""Where the subjects of each image are: given regions, or those of their words' attention maps.

Legend: ``B`` image, ``N`` subject, ``Y`` ``X`` map rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ictl.controls.concepts import ConceptMaps
from t2ictl.controls.layouts import Region
from t2ictl.maps.masks import binarize, resize_mask
from t2ictl.processors.isolation_reposition.cast import SubjectAssignment

__all__ = ["SubjectRegions"]


class SubjectRegions:
    """Where the subjects of each image are: given regions, or those of their words' attention maps.

    Maps are averaged over the evaluations, each new one with the weight ``1 - memory``. A cell belongs to the subject
    whose map, over its own mean, is largest there, if it lies above that map's Otsu threshold.

    Args:
        assignment: who is in which image.
        maps: concept maps of the subjects.
        ema: weight of the maps before, in [0, 1).
    """

    def __init__(self, assignment: SubjectAssignment, maps: ConceptMaps, memory: float) -> None:
        self.assignment, self.maps = assignment, maps
        self.version = 0
        self._memory = memory
        self._held_BNYX: Tensor | None = None
        self._seen_BNYX: Tensor | None = None

    @property
    def needs_maps(self) -> bool:
        """Whether some subject has no given region."""
        return any(region is None for own in self.assignment.regions for region in own)

    @property
    def has_regions(self) -> bool:
        """Whether some subject has a given region."""
        return any(region is not None for own in self.assignment.regions for region in own)

    def take(self, maps_BYXT: Tensor) -> None:
        """Learn from the maps of an evaluation."""
        maps_BNYX = self.maps(maps_BYXT.detach())
        held = self._held_BNYX
        self._held_BNYX = held = maps_BNYX if held is None else torch.lerp(maps_BNYX, held, self._memory)
        share_BNYX = held / held.mean(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(held.dtype).tiny)
        is_largest_BNYX = share_BNYX == share_BNYX.amax(dim=1, keepdim=True)
        self._seen_BNYX = (binarize(held) & is_largest_BNYX).float().cpu()  # the one wait for the device in a step
        self.version += 1

    def region(self, image: int, number: int) -> Region | None:
        """Return where a subject is, as far as that is known.

        Args:
            image: the image.
            number: the subject.

        Returns:
            The region that was given, or one with a mask of where the maps show it; None if they do not.
        """
        given = self.assignment.regions[image][number]
        if given is not None or self._seen_BNYX is None:
            return given
        mask_YX = self._seen_BNYX[image, number] > 0
        word = self.assignment.rows[image][number].text
        return Region(word=word, mask=tuple(map(tuple, mask_YX.int().tolist()))) if mask_YX.any() else None

    def found(self, image: int, number: int) -> Tensor:
        """Return where the maps show a subject.

        Args:
            image: the image.
            number: the subject.

        Returns:
            ``mask_YX``, boolean, with at least one true cell: where it is nowhere the strongest, the cell of the
            largest value that is nobody else's.
        """
        assert self._held_BNYX is not None and self._seen_BNYX is not None, "no evaluation yet"
        seen_NYX = self._seen_BNYX[image] > 0
        if seen_NYX[number].any():
            return seen_NYX[number]
        free_YX = ~seen_NYX.any(dim=0)
        most_YX = self._held_BNYX[image, number].cpu().masked_fill(~free_YX, -1)
        return most_YX == most_YX.max()

    def coverage(self, image: int, size: tuple[int, int]) -> Tensor:
        """Return the share of each cell of a map that each subject of an image covers.

        Args:
            image: the image.
            size: height and width of the map.

        Returns:
            ``coverage_NYX``; zero for a subject of which nothing is known yet.
        """
        regions = self.assignment.regions[image]
        coverage = torch.zeros(len(regions), *size)
        for number, region in enumerate(regions):
            if region is not None:
                coverage[number] = region.cells(*size)
        free_YX = 1 - coverage.amax(dim=0) if regions else coverage  # what was given is nobody else's
        for number, region in enumerate(regions):
            if region is None and self._seen_BNYX is not None:
                coverage[number] = resize_mask(self._seen_BNYX[image, number], *size) * free_YX
        return coverage

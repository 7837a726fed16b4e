"""The images that rows of a call are held at: those that show a subject alone, and composites of several.

Legend: ``N`` subject, ``Y`` ``X`` rows and columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from t2ictl.maps.masks import resize_mask
from t2ictl.processors.isolation_reposition.cast import SubjectAssignment
from t2ictl.processors.isolation_reposition.composites import Piece, compose
from t2ictl.processors.isolation_reposition.subjects import Subject
from t2ictl.settings.images import open_image

__all__ = ["ReferenceImages"]

# An image is brought to the size of the call; sides that differ by more than this are a visible distortion.
ASPECT_TOLERANCE = 0.02


class ReferenceImages:
    """Opens the given images of a call, once its size is known.

    Args:
        assignment: who is in which image.
    """

    def __init__(self, assignment: SubjectAssignment) -> None:
        self._assignment = assignment
        self._covered: dict[int, Tensor] = {}
        self.by_image: dict[int, Callable[[int, int], Image.Image]] = {}
        for image, own in enumerate(assignment.subjects):
            if image in assignment.composites:
                self.by_image[image] = partial(self._composite, image)
            elif image in assignment.shown and own[0] is not None and own[0].image:
                self.by_image[image] = partial(_portrait, own[0])

    def coverage(self, image: int, size: tuple[int, int]) -> Tensor | None:
        """Return how much of each cell of a map the subjects of a composite cover.

        Args:
            image: the image.
            size: height and width of the map.

        Returns:
            ``coverage_NYX``; None if it is no composite, or not made yet.
        """
        covered_NYX = self._covered.get(image)
        return None if covered_NYX is None else torch.stack([resize_mask(each, *size) for each in covered_NYX])

    def _composite(self, image: int, height: int, width: int) -> Image.Image:
        assignment, pieces, numbers = self._assignment, [], []
        for number, (subject, target) in enumerate(
            zip(assignment.subjects[image], assignment.regions[image], strict=True)
        ):
            if subject is None or target is None or subject.image is None or subject.region is None:
                continue
            pieces.append(Piece(image=open_image(subject.image), source=subject.region, target=target))
            numbers.append(number)
        made, coverage_NYX = compose(pieces, height, width)
        covered_NYX = torch.zeros(len(assignment.subjects[image]), height, width)
        covered_NYX[numbers] = coverage_NYX
        self._covered[image] = covered_NYX
        return made


def _portrait(subject: Subject, height: int, width: int) -> Image.Image:
    """The image of a subject at the size of the call."""
    assert subject.image is not None
    image = open_image(subject.image)
    if abs(image.width * height / (image.height * width) - 1) > ASPECT_TOLERANCE:
        warnings.warn(
            f"The image of {subject.name!r} is {image.width} x {image.height} and is stretched to "
            f"{width} x {height}. Crop it to the aspect of the call first.",
            UserWarning,
            stacklevel=2,
        )
    return image.resize((width, height), Image.Resampling.LANCZOS)

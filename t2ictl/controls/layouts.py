"""Layouts: regions of the image that the user gives to words.

Legend: ``B`` image, ``N`` concept, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BeforeValidator
from torch import Tensor

from t2ictl.controls.base import PlanContext
from t2ictl.errors import BadSetting, SpanNotFound
from t2ictl.maps.masks import box_mask, resize_mask
from t2ictl.prompts.prompt import Prompt, Span
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.images import open_image
from t2ictl.settings.trust import require_files

__all__ = ["Layout", "Mask", "Region", "Rounding", "opened_mask", "strips"]

Rounding = Literal["centers", "half_even"]

# Maps have at most 64 cells a side in the supported families; a finer mask would say nothing more.
MASK_CELLS = 64


def opened_mask(value: Any) -> Any:
    """Open a mask that is a file or an image; arrays and nested lists stay as they are.

    Args:
        value: a mask in any form.

    Returns:
        Something that numpy reads as an array of rows and columns, above one half inside.

    Raises:
        BadSetting: if there is no such file, or it is no image.
    """
    if isinstance(value, (str, Path)):
        require_files(value)
        if not Path(value).is_file():
            raise BadSetting(f"There is no mask file {str(value)!r}.", "Give the path of a black and white image.")
        value = open_image(str(value))
    return np.asarray(value.convert("L")) / 255 if isinstance(value, Image.Image) else value


def _rows(value: Any) -> Any:
    """Read a mask (file, image, array, nested lists) as rows of 0 and 1, at most 64 cells a side."""
    if value is None:
        return None
    value = opened_mask(value)
    mask = torch.as_tensor(np.ascontiguousarray(value), dtype=torch.float32)
    if mask.ndim != 2 or not mask.numel():
        raise BadSetting(f"A mask of shape {tuple(mask.shape)} cannot be used.", "Give rows and columns.")
    inside_YX = (mask > 0.5).float()
    if not inside_YX.any():
        raise BadSetting("The mask is empty.", "Mark the region with values above one half.")
    height, width = (min(side, MASK_CELLS) for side in inside_YX.shape)
    return tuple(tuple(row) for row in _at_size(inside_YX, height, width).int().tolist())


def _at_size(mask_YX: Tensor, height: int, width: int) -> Tensor:
    """A mask at another size; one that is thinner than a cell takes the cells that it covers most."""
    coverage_YX = resize_mask(mask_YX, height, width)
    return coverage_YX >= min(0.5, float(coverage_YX.max()))


Mask = Annotated[tuple[tuple[int, ...], ...], BeforeValidator(_rows)]


@settings_class
class Region:
    """The part of the image in which a word shall be.

    Args:
        word: a word or phrase that is one of the control's concepts.
        box: left, top, right and bottom edge as fractions of the image; or
        mask: an image file, image, array or nested list, above one half inside. It is kept at
            64 cells a side at most.

    Raises:
        BadSetting: unless there is exactly one of ``box`` and ``mask``, and it is well formed.

    Example:
        >>> Region(word="cat", box=(0, 0, 0.5, 1)).box
        (0.0, 0.0, 0.5, 1.0)
        >>> Region(word="cat", mask=[[1, 0]]).mask
        ((1, 0),)
    """

    word: str = setting(default="", help="a word or phrase that is one of the concepts")
    box: tuple[float, float, float, float] | None = setting(default=None, help="edges x0, y0, x1, y1 (fractions)")
    mask: Mask | None = setting(default=None, help="image file or array, above one half inside")

    def __post_init__(self) -> None:
        if not self.word or (self.box is None) == (self.mask is None):
            raise BadSetting(f"The region of {self.word!r} is not clear.", "Give a word, and a box or a mask.")
        if self.box is not None:
            box_mask(self.box, 1, 1)  # raises for edges in the wrong order

    def cells(self, height: int, width: int, rounding: Rounding = "centers") -> Tensor:
        """Return the region as a boolean map.

        Args:
            height: rows of the map.
            width: columns of the map.
            rounding: cells of a box: those whose ``"centers"`` it holds, or from edge to edge, each rounded to the
                nearest whole cell, halves to the even one (``"half_even"``), as in published code.

        Returns:
            ``mask_YX``, true inside, with at least one true cell.
        """
        if self.box is not None:
            box = self.box
            if rounding == "half_even":  # a box that is rounded away keeps the cells that it has
                x0, x1, y0, y1 = (
                    round(edge * side)
                    for edge, side in zip((box[0], box[2], box[1], box[3]), (width, width, height, height), strict=True)
                )
                if x0 < x1 and y0 < y1:
                    mask_YX = torch.zeros(height, width, dtype=torch.bool)
                    mask_YX[y0:y1, x0:x1] = True
                    return mask_YX
            return box_mask(box, height, width)
        return _at_size(torch.tensor(self.mask, dtype=torch.float32), height, width)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The regions of a pipeline call, matched to its concepts.

    Args:
        regions: for each image, the region of each concept, None where the user gave none.
        rounding: as for :meth:`Region.cells`.
        held: the masks by map size, made once.
    """

    regions: tuple[tuple[Region | None, ...], ...]
    rounding: Rounding = "centers"
    held: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def from_regions(cls, regions: Sequence[Region], context: PlanContext, rows: Sequence[Sequence[Span]]) -> Layout:
        """Match regions to concepts by their tokens.

        Args:
            regions: what the user gave.
            context: the pipeline call.
            rows: the concepts of each image.

        Returns:
            The layout.

        Raises:
            SpanNotFound: if the word of a region is in none of the prompts.
            BadSetting: if it is in a prompt, but is no concept of the control; or if a concept has two regions.
        """
        matched: list[list[Region | None]] = [[None for _ in spans] for spans in rows]
        for region in regions:
            hits = 0
            for row, (spans, prompt) in enumerate(zip(rows, context.row_prompts, strict=True)):
                number = _meant(prompt, region.word, spans, strict=len(context.prompts) == 1)
                if number is not None:
                    if matched[row][number] is not None:
                        raise BadSetting(
                            f"The layout gives two regions to {spans[number].text!r} in {prompt.text!r}.",
                            "Give each word one region; a second one of the same word is 'cat#2'.",
                        )
                    matched[row][number], hits = region, hits + 1
            if not hits:
                known = sorted({span.text for spans in rows for span in spans})
                raise BadSetting(
                    f"The layout gives a region to {region.word!r}, which is none of the concepts {known}.",
                    "Name it in concepts= too, or use one of these words.",
                )
        return cls(regions=tuple(tuple(row) for row in matched))

    def over(self, learned_BNYX: Tensor) -> Tensor:
        """Put the user's regions in the place of the learned ones, where there are some.

        Args:
            learned_BNYX: regions taken from maps, boolean or 0 and 1.

        Returns:
            ``regions_BNYX`` of the same kind.
        """
        if not any(region for row in self.regions for region in row):
            return learned_BNYX
        masks_BNYX, given_BN = self.masks(learned_BNYX)
        return torch.where(given_BN[..., None, None], masks_BNYX.to(learned_BNYX.dtype), learned_BNYX)

    def masks(self, maps_BNYX: Tensor) -> tuple[Tensor, Tensor]:
        """Return the regions at the size of some maps.

        Args:
            maps_BNYX: the maps.

        Returns:
            ``masks_BNYX``, boolean, and ``given_BN``, true where a concept has a region.
        """
        key = tuple(maps_BNYX.shape)
        if key not in self.held:
            self.held[key] = self._masks(key, maps_BNYX.device)
        return self.held[key]

    def _masks(self, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        masks_BNYX, given_BN = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape[:2], dtype=torch.bool)
        for row, regions in enumerate(self.regions):
            for number, region in enumerate(regions):
                if region is not None:
                    masks_BNYX[row, number] = region.cells(shape[-2], shape[-1], self.rounding)
                    given_BN[row, number] = True
        return masks_BNYX.to(device), given_BN.to(device)


def strips(rows: Sequence[Sequence[Span]]) -> Layout:
    """Return each concept of an image an equal strip, from left to right.

    Args:
        rows: the concepts of each image.

    Returns:
        The layout.

    Example:
        >>> cat, dog = (Span(text=word, start=0, end=3, by_encoder=((2,),)) for word in ("cat", "dog"))
        >>> [region.box for region in strips([[cat, dog]]).regions[0]]
        [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    """
    regions = (
        tuple(
            Region(word=span.text, box=(number / len(spans), 0.0, (number + 1) / len(spans), 1.0))
            for number, span in enumerate(spans)
        )
        for spans in rows
    )
    return Layout(regions=tuple(regions))


def _meant(prompt: Prompt, word: str, spans: Sequence[Span], *, strict: bool) -> int | None:
    """Number of the concept that a region is for; in a batch of several prompts its word need not be in all of them."""
    try:
        tokens = prompt.find(word).tokens
    except SpanNotFound:
        if strict:
            raise
        return None
    number = next((number for number, span in enumerate(spans) if span.tokens == tokens), None)
    if number is not None:
        return number
    # The first place of the word is inside of another one, as of "bear" in "a teddy bear and a bear".
    named = [number for number, span in enumerate(spans) if span.text.casefold() == word.strip().casefold()]
    return named[0] if len(named) == 1 else None

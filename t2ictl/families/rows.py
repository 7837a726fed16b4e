"""Rows by content: which rows of a denoiser's batch hold the prompt, and which the negative one.

Pipelines put unconditional rows first, or last, or in a call of their own. What they have encoded tells them apart.

Legend: ``B`` image, ``R`` row of the denoiser's batch, ``T`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout, BatchRow, Role

__all__ = ["KnownRows", "layout_by_content"]


@dataclass(frozen=True, kw_only=True)
class KnownRows:
    """The text rows of a call, as ``encode_prompt`` returned them.

    Args:
        cond: ``rows_BTC`` of the prompts, one tensor for each argument of the denoiser that holds text rows.
        uncond: those of the negative prompts, or None where there are none or nobody has seen them.
        masks: ``mask_BT`` of any of these, where the pipeline has masks.
    """

    cond: tuple[Tensor, ...]
    uncond: tuple[Tensor, ...] | None = None
    masks: tuple[Tensor | None, ...] = ()

    def mixes_masks(self, images: BatchLayout) -> bool:
        """Return whether images of one prompt have different masks.

        Some pipelines repeat the rows of two prompts as ``0 0 1 1`` and their masks as ``0 1 0 1``.

        Args:
            images: the batch.

        Example:
            >>> rows, images = torch.zeros(4, 2, 3), BatchLayout.from_counts(
            ...     prompts=2, images_per_prompt=2, guided=False)
            >>> mask_BT = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1]])
            >>> KnownRows(cond=(rows,), masks=(mask_BT,)).mixes_masks(images)
            True
        """
        prompts = [row.prompt for row in images.only("cond").rows]
        own = [each for each in self.masks if each is not None and len(each) == len(prompts)]
        return any(not torch.equal(mask_BT, mask_BT[[prompts.index(each) for each in prompts]]) for mask_BT in own)


def layout_by_content(
    known: KnownRows, texts: Sequence[Tensor], images: BatchLayout, *, uncond_first: bool
) -> BatchLayout | None:
    """Find out what each row of a batch is.

    Args:
        known: what was encoded.
        texts: ``rows_RTC`` of the pass, one tensor for each of ``known.cond``.
        images: the conditional rows, one an image.
        uncond_first: the order of the roles where prompt and negative prompt are the same.

    Returns:
        The batch; None if some rows are nobody's.

    Raises:
        UnsupportedPipeline: if the rows of one role are there several times.

    Example:
        >>> cond, uncond = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
        >>> known, image = KnownRows(cond=(cond,), uncond=(uncond,)), BatchLayout.from_counts(
        ...     prompts=1, images_per_prompt=1, guided=False)
        >>> found = layout_by_content(known, [torch.cat([cond, uncond])], image, uncond_first=True)
        >>> [row.role for row in found.rows]
        ['cond', 'uncond']
    """
    count, rows = images.images, len(texts[0])
    if rows % count or not rows:
        return None
    roles: list[Role] = []
    for first in range(0, rows, count):
        part = [each[first : first + count] for each in texts]
        fitting: list[Role] = ["cond"] if _are(part, known.cond) else []
        if known.uncond is not None and _are(part, known.uncond):
            fitting.append("uncond")
        if not fitting:
            return None
        order: list[Role] = ["uncond", "cond"] if uncond_first and rows > count else ["cond", "uncond"]
        left = [role for role in order if role in fitting and role not in roles]
        roles.append(left[0] if left else fitting[0])
    own = images.only("cond").rows
    batch = BatchLayout(
        rows=tuple(
            BatchRow(image=row.image, prompt=row.prompt, role=role) for role in dict.fromkeys(roles) for row in own
        )
    )
    batch.check_rows(rows)
    return batch


def _are(part: Sequence[Tensor], known: Sequence[Tensor]) -> bool:
    """Whether some rows are the known ones; pipelines cast them to the precision of the denoiser."""
    return len(part) == len(known) and all(
        mine.shape == theirs.shape and torch.equal(mine.to(device=theirs.device, dtype=theirs.dtype), theirs)
        for theirs, mine in zip(part, known, strict=True)
    )

"""Recognize batch rows by their text states, where nobody says what they are.

Legend: ``P`` prompt, ``B`` batch row, ``K`` text token, ``C`` channels.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout, BatchRow
from t2ictl.attention.cache import TensorCache

__all__ = ["MatchedLayout", "RowMatcher"]

# Distance of two text rows over the length of the one that is known, the largest of all positions. Rounding, also that
# of half precision through a whole encoder, is a few hundredths; another word is several tenths away, and so are,
# behind a causal encoder, all positions after it. An absolute limit would not do: some channels of CLIP are near 30.
SAME_STATES = 0.1


class RowMatcher:
    """Matches each row of a batch of text states with its prompt.

    Args:
        encoded_PKC: the text states of the prompts.

    Example:
        >>> match = RowMatcher(torch.tensor([[[1.0]], [[2.0]]]))
        >>> match(torch.tensor([[[0.0]], [[2.0]], [[1.01]]]))
        (None, 1, 0)
    """

    def __init__(self, encoded_PKC: Tensor) -> None:
        self._encoded_PKC = encoded_PKC

    def fits(self, context_BKC: Tensor) -> bool:
        """Return whether the states have the shape of a prompt's."""
        return context_BKC.shape[1:] == self._encoded_PKC.shape[1:]

    def __call__(self, context_BKC: Tensor) -> tuple[int | None, ...]:
        """Return the number of the prompt for each row, None for a row of no known prompt."""
        if not self.fits(context_BKC):
            return (None,) * len(context_BKC)
        states_BKC = context_BKC.detach().float()
        known_PKC = self._encoded_PKC.to(states_BKC)
        far_BP = torch.stack(
            [
                ((states_BKC - known_KC).norm(dim=-1) / known_KC.norm(dim=-1).clamp_min(1e-12)).amax(dim=1)
                for known_KC in known_PKC
            ],
            dim=1,
        )
        nearest = zip(far_BP.min(dim=1).values.tolist(), far_BP.argmin(dim=1).tolist(), strict=True)
        return tuple(number if far <= SAME_STATES else None for far, number in nearest)


class MatchedLayout:
    """Identifies each batch row by its text states; the layers of one pass ask about the very same tensor.

    It warns once if the first rows that come are all strangers: then most likely the pipeline encodes its prompts in
    another way than the processors did, and nothing would be edited.

    Args:
        match: tells rows of known prompts.
    """

    def __init__(self, match: RowMatcher) -> None:
        self._match, self._latest = match, TensorCache()
        self._is_told = False

    def __call__(self, context_BKC: Tensor) -> BatchLayout:
        """Return the batch; a row of no known prompt counts as unconditional."""
        batch: BatchLayout = self._latest(context_BKC, None, lambda: self._lanes(context_BKC))
        return batch

    def _lanes(self, context_BKC: Tensor) -> BatchLayout:
        numbers = self._match(context_BKC)
        if not self._is_told and all(number is None for number in numbers):
            warnings.warn(
                "No row of this batch has the text states of a prompt that these processors were made for, and nothing "
                "is edited in it. They know the prompts as the pipeline encodes them by itself: without prompt_2, "
                "clip_skip or a changed LoRA scale.",
                UserWarning,
                stacklevel=2,
            )
        self._is_told = True
        return BatchLayout(
            rows=tuple(
                BatchRow(image=row, prompt=number or 0, role="uncond" if number is None else "cond")
                for row, number in enumerate(numbers)
            )
        )

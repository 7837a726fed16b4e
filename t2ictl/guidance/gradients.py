"""Gradients through the user's denoiser, with the reason by name where none can be taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from t2ictl.errors import UnsupportedPipeline

__all__ = ["check_differentiable", "needs_gradient"]

# What torch writes where a tensor was changed in place that the backward pass needs, or where the way back was cut.
_IN_PLACE = ("modified by an inplace operation", "used in an in-place operation", "being modified inplace")
_CUT = ("does not require grad", "not have been used in the graph")


@contextmanager
def needs_gradient() -> Iterator[None]:
    """Name the reason if torch cannot differentiate what runs within the block.

    Raises:
        UnsupportedPipeline: if something in the denoiser changes tensors in place, or lets no gradient through.

    Example:
        >>> import torch
        >>> with needs_gradient():
        ...     torch.zeros(1).sum().backward()
        Traceback (most recent call last):
        t2ictl.errors.UnsupportedPipeline: No gradient passes from the loss to the latents: something on the way ...
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if any(each in text for each in _IN_PLACE):
            cause = "something on the way changes tensors in place"
        elif any(each in text for each in _CUT):
            cause = "something on the way detaches its result"
        else:
            raise
        raise UnsupportedPipeline(
            f"No gradient passes from the loss to the latents: {cause} ({text.splitlines()[0]}).",
            "Take out the attention processors or hooks of other tools, or call the plain pipeline of the family.",
        ) from error


def check_differentiable(loss_B: Tensor) -> None:
    """See that a loss hangs on what is moved.

    Args:
        loss_B: the loss of each image.

    Raises:
        UnsupportedPipeline: if nothing leads back from it.

    Example:
        >>> import torch
        >>> check_differentiable(torch.ones(1, requires_grad=True) * 2)
    """
    with needs_gradient():
        if not loss_B.requires_grad:
            raise RuntimeError("the loss does not require grad")

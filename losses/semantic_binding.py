"""Semantic binding: the loss of token merging that makes a composite token mean its phrase.

One token that stands for "a dog wearing a hat" should move the image like the phrase. So the noise that the denoiser
predicts under the token alone is compared with the noise that it predicts under the phrase. The second is a target: no
gradient flows into it.

Legend: G group (a phrase of an image), B batch row (an image), C channels, Y X rows and columns of the latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from t2ictl.errors import BadSetting, ShapeMismatch

Scale = Literal["mean", "sum"]


def semantic_binding_loss(
    predicted_GCYX: Tensor, target_GCYX: Tensor, rows_G: Tensor, rows: int, scale: Scale = "mean"
) -> Tensor:
    """Return, for each image, how far its tokens predict other noise than their phrases.

    ``sum over the image's groups k of ||eps(z, token_k, t) - eps(z, phrase_k, t)||^2``. The paper sums the squares
    over all elements, which makes the loss grow with the resolution; their mean has the same size at every one. The
    official code takes 10000 times the mean, which on latents of 4 x 128 x 128 is 0.153 times the sum. Images do
    not influence each other.

    Args:
        predicted_GCYX: noise predicted under the composite token of each group, any range; half precision is compared
            in float32. The mean has gradients of the order of 1 / (C Y X), which float16 rounds coarsely or to 0:
            take it of predictions in float32, or multiply before the backward pass.
        target_GCYX: noise predicted under the phrase of each group, same shape; detached here.
        rows_G: the image that each group belongs to, int64 in [0, rows), in any order. Keep it on the CPU: its
            numbers are checked there only, since elsewhere reading them would wait for the device, and a group with
            a number outside the range is then left out.
        rows: number of images B.
        scale: "mean" of the squares over the elements of a group, or their "sum"; groups are summed either way.

    Returns:
        loss_B, not negative; 0 where token and phrase agree, and for an image without groups. float32, or float64 if
        a prediction is float64.

    Raises:
        ShapeMismatch: the predictions are not four-dimensional, are empty or differ in shape, or `rows_G` does not
            have one number for each group.
        BadSetting: `rows_G` is not int64 or names an image that does not exist, `rows` is negative, or the scale is
            unknown.

    Example:
        >>> predicted_GCYX = torch.tensor([1.0, 2.0, 4.0]).reshape(3, 1, 1, 1).expand(3, 2, 1, 1)
        >>> target_GCYX = torch.zeros(3, 2, 1, 1)
        >>> semantic_binding_loss(predicted_GCYX, target_GCYX, torch.tensor([0, 0, 1]), rows=2)
        tensor([ 5., 16.])
        >>> semantic_binding_loss(predicted_GCYX, target_GCYX, torch.tensor([0, 0, 1]), rows=2, scale="sum")
        tensor([10., 32.])

    Reference:
        Hu et al.: "Token Merging for Training-Free Semantic Binding in Text-to-Image Synthesis", NeurIPS 2024, arXiv
        2411.07132, the semantic binding loss.
    """
    _check_predictions(predicted_GCYX, target_GCYX)
    _check_rows(rows_G, predicted_GCYX.shape[0], rows)
    if scale not in ("mean", "sum"):
        raise BadSetting(f"The scale is {scale!r}.", 'Use "mean" or "sum".')
    dtype = torch.promote_types(torch.promote_types(predicted_GCYX.dtype, target_GCYX.dtype), torch.float32)
    square_GCYX = (predicted_GCYX.to(dtype) - target_GCYX.detach().to(dtype)).square()
    distance_G = square_GCYX.mean((1, 2, 3)) if scale == "mean" else square_GCYX.sum((1, 2, 3))
    image_B1 = torch.arange(rows, device=distance_G.device)[:, None]
    # A selection, not index_add: that adds in a different order at each run on a GPU.
    return torch.where(rows_G.to(distance_G.device) == image_B1, distance_G, 0.0).sum(1)


def _check_predictions(predicted_GCYX: Tensor, target_GCYX: Tensor) -> None:
    if predicted_GCYX.dim() != 4 or 0 in predicted_GCYX.shape[1:]:
        raise ShapeMismatch(
            f"`predicted_GCYX` has shape {tuple(predicted_GCYX.shape)}, expected (G, C, Y, X) with at least one cell.",
            "Give one noise prediction for each group.",
        )
    if target_GCYX.shape != predicted_GCYX.shape:
        raise ShapeMismatch(
            f"`target_GCYX` has shape {tuple(target_GCYX.shape)}, expected {tuple(predicted_GCYX.shape)}, as "
            "`predicted_GCYX`.",
            "Give one target for each group, of the same latents.",
        )


def _check_rows(rows_G: Tensor, groups: int, rows: int) -> None:
    if tuple(rows_G.shape) != (groups,):
        raise ShapeMismatch(
            f"`rows_G` has shape {tuple(rows_G.shape)}, expected {(groups,)}.",
            "Give the number of one image for each group.",
        )
    if rows_G.dtype != torch.int64:
        raise BadSetting(f"`rows_G` has dtype {rows_G.dtype}, expected torch.int64.", "Convert it with .long().")
    if rows < 0:
        raise BadSetting(f"`rows` is {rows}.", "Give the number of images.")
    if rows_G.device.type == "cpu":
        strange = [row for row in rows_G.tolist() if not 0 <= row < rows]
        if strange:
            raise BadSetting(f"`rows_G` names the images {strange} of {rows}.", f"Count from 0 to {rows - 1}.")

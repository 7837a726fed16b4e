"""Maps of text tokens in joint attention, computed beside a fused kernel from the queries, keys and mask that it gets.

In joint attention text and image lie in one sequence, and an image position reads both. So the attention that it pays
to a token can be read in more than one way:

    text_attention           softmax over the text keys alone, the counterpart of cross-attention
    all_key_attention        softmax over all keys, of which the text keys are returned; they sum to ``text_mass``
    text_to_image_attention  softmax over image positions, of the text token's own query
    output_space_map         similarity of the results at an image position and at a text position

``self_attention_map`` is the part between image positions. Text keys that are no words (padding, template, registers)
are keys of the model as well and belong to the text keys here: without them their share would fall to the words.

Every map is a sum over heads; divided by the number of heads of the queries it is a mean. No softmax is kept for the
backward pass (:mod:`t2ictl.attention.blockwise`).

Legend: ``B`` batch row, ``H`` head, ``L`` position in the sequence that reaches the kernel, ``Q`` image position, ``P``
selected image position, ``K`` text position, ``D`` head width.
"""

from __future__ import annotations

from torch import Tensor

from t2ictl.attention.blockwise import BUDGET, Columns, share_of_columns, shares_of_all, summed_weights
from t2ictl.attention.checks import check_attention, checked_places, checked_positions
from t2ictl.errors import ShapeMismatch

__all__ = [
    "all_key_attention",
    "output_space_map",
    "self_attention_map",
    "text_attention",
    "text_mass",
    "text_to_image_attention",
]


def text_attention(
    q_BHQD: Tensor,
    k_BHKD: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    *,
    budget: int = BUDGET,
) -> Tensor:
    """Return the attention of image positions to text tokens, normalized over text.

    ``map[q, k] = sum_h softmax_k(scale q . k + mask)``, over the text keys only.

    Args:
        q_BHQD: queries of the image positions.
        k_BHKD: keys of the text positions; their number of heads divides that of the queries.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHQK`` and gets no gradient. Or None.
        scale: factor on the products; None for ``D ** -0.5``.
        budget: most bytes of a block of logits.

    Returns:
        ``map_BQK``, float32 at least; sums over ``K`` to ``H``, or to 0 where the mask leaves no text.

    Raises:
        ShapeMismatch: if queries, keys and mask do not belong together.
        BadSetting: if the mask holds whole numbers, or the budget is below 1.

    Example:
        >>> import torch
        >>> q, k = torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 3, 4)
        >>> text_attention(q, k, torch.tensor([True, True, False]))[0, 0]
        tensor([1., 1., 0.])
    """
    check_attention(q_BHQD, k_BHKD, mask, budget)
    return summed_weights(q_BHQD, k_BHKD, mask, _factor(q_BHQD, scale), budget=budget)


def all_key_attention(
    q_BHQD: Tensor,
    k_BHLD: Tensor,
    text: Columns,
    mask: Tensor | None = None,
    scale: float | None = None,
    *,
    budget: int = BUDGET,
) -> Tensor:
    """Return the attention of image positions to text tokens, as a share of their attention to all keys.

    ``map[q, k] = sum_h exp(scale q . k + mask - logsumexp_l(scale q . l + mask))``, with ``l`` over all keys.

    Args:
        q_BHQD: queries of the image positions.
        k_BHLD: keys of the whole sequence; their number of heads divides that of the queries.
        text: where the text lies among the keys: a slice, or ``text_K`` positions.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHQL`` and gets no gradient. Or None.
        scale: factor on the products; None for ``D ** -0.5``.
        budget: most bytes of a block of logits.

    Returns:
        ``map_BQK``, float32 at least; sums over ``K`` to :func:`text_mass`.

    Raises:
        ShapeMismatch: if queries, keys, mask and text positions do not belong together.
        BadSetting: if the mask holds whole numbers, positions do not, or the budget is below 1.

    Example:
        >>> import torch
        >>> q, k = torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 8, 4)
        >>> all_key_attention(q, k, slice(0, 2))[0, 0]
        tensor([0.2500, 0.2500])
    """
    check_attention(q_BHQD, k_BHLD, mask, budget)
    text = checked_positions("text", text, k_BHLD)
    return shares_of_all(q_BHQD, k_BHLD, text, mask, _factor(q_BHQD, scale), budget=budget)


def text_mass(
    q_BHQD: Tensor,
    k_BHLD: Tensor,
    text: Columns,
    mask: Tensor | None = None,
    scale: float | None = None,
    *,
    budget: int = BUDGET,
) -> Tensor:
    """Return the share of their attention that image positions give to text; it has no gradient.

    ``mass[q] = sum_h sum_k P[h, q, k]``, with ``P`` as in :func:`all_key_attention`.

    Args:
        q_BHQD: queries of the image positions.
        k_BHLD: keys of the whole sequence; their number of heads divides that of the queries.
        text: where the text lies among the keys: a slice, or ``text_K`` positions.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHQL``. Or None.
        scale: factor on the products; None for ``D ** -0.5``.
        budget: most bytes of a block of logits.

    Returns:
        ``mass_BQ``, float32 at least, in [0, H].

    Raises:
        ShapeMismatch: if queries, keys, mask and text positions do not belong together.
        BadSetting: if the mask holds whole numbers, positions do not, or the budget is below 1.

    Example:
        >>> import torch
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 8, 4)
        >>> text_mass(q, k, slice(0, 2))
        tensor([[0.5000, 0.5000, 0.5000]])
    """
    check_attention(q_BHQD, k_BHLD, mask, budget)
    text = checked_positions("text", text, k_BHLD)
    return share_of_columns(q_BHQD, k_BHLD, text, mask, _factor(q_BHQD, scale), budget=budget)


def text_to_image_attention(
    q_BHKD: Tensor,
    k_BHQD: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    *,
    budget: int = BUDGET,
) -> Tensor:
    """Return the attention of text tokens to image positions, normalized over the image.

    ``map[q, k] = sum_h softmax_q(scale k . q + mask)``: tokens do not compete for a position.

    Args:
        q_BHKD: queries of the text positions.
        k_BHQD: keys of the image positions; their number of heads divides that of the queries.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHKQ`` (text by image) and gets no
            gradient. Or None.
        scale: factor on the products; None for ``D ** -0.5``.
        budget: most bytes of a block of logits.

    Returns:
        ``map_BQK``, float32 at least; sums over ``Q`` to ``H``, or to 0 where the mask leaves no image.

    Raises:
        ShapeMismatch: if queries, keys and mask do not belong together.
        BadSetting: if the mask holds whole numbers, or the budget is below 1.

    Example:
        >>> import torch
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 8, 4)
        >>> text_to_image_attention(q, k)[0, 0]
        tensor([0.2500, 0.2500, 0.2500])
    """
    check_attention(q_BHKD, k_BHQD, mask, budget)
    return summed_weights(q_BHKD, k_BHQD, mask, _factor(q_BHKD, scale), budget=budget).transpose(1, 2)


def output_space_map(image_BHQD: Tensor, text_BHKD: Tensor, *, budget: int = BUDGET) -> Tensor:
    """Return the similarity of attention results at image positions to those at text positions.

    ``map[q, k] = H softmax_k(sum_h image[h, q] . text[h, k])``: one product over all channels, without a scale, and
    ``H`` times, so that a division by the number of heads leaves probabilities, as for the other maps.

    Args:
        image_BHQD: results of attention at the image positions, before the projection that follows.
        text_BHKD: results of attention at the text positions, or at those that are to compete.
        budget: most bytes of a block of products.

    Returns:
        ``map_BQK``, float32 at least; sums over ``K`` to ``H``.

    Raises:
        ShapeMismatch: if the two do not belong together.
        BadSetting: if the budget is below 1.

    Example:
        >>> import torch
        >>> image, text = torch.ones(1, 2, 4, 3), torch.zeros(1, 2, 5, 3)
        >>> output_space_map(image, text)[0, 0]
        tensor([0.4000, 0.4000, 0.4000, 0.4000, 0.4000])

    Reference:
        Helbling et al., "ConceptAttention: Diffusion Transformers Learn Highly Interpretable Features", 2025,
        arXiv 2502.04320. There the text positions are concepts of their own, carried beside the prompt.
    """
    check_attention(image_BHQD, text_BHKD, None, budget)
    heads = image_BHQD.shape[1]
    if text_BHKD.shape[1] != heads:
        raise ShapeMismatch(
            f"Results of {heads} heads at the image and {text_BHKD.shape[1]} at the text.", "Use one attention's."
        )
    image_B1QC, text_B1KC = (each.transpose(1, 2).flatten(2).unsqueeze(1) for each in (image_BHQD, text_BHKD))
    return heads * summed_weights(image_B1QC, text_B1KC, None, 1.0, budget=budget)


def self_attention_map(
    q_BHQD: Tensor,
    k_BHQD: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    places: Tensor | None = None,
    *,
    budget: int = BUDGET,
) -> Tensor:
    """Return the attention of image positions to image positions, normalized over the image.

    ``map[p, q] = sum_h softmax_q(scale p . q + mask)``, one head after the other.

    Args:
        q_BHQD: queries of the image positions.
        k_BHQD: keys of the image positions; their number of heads divides that of the queries.
        mask: bias of the logits, or True where a key may be read; broadcasts to ``BHQQ`` and gets no gradient. Or None.
        scale: factor on the products; None for ``D ** -0.5``.
        places: ``places_P``, the positions whose attention is wanted; None for all.
        budget: most bytes of a block of logits.

    Returns:
        ``map_BPQ``, float32 at least; sums over ``Q`` to ``H``, or to 0 where the mask leaves no image.

    Raises:
        ShapeMismatch: if queries, keys, mask and places do not belong together.
        BadSetting: if the mask holds whole numbers, places do not, or the budget is below 1.

    Example:
        >>> import torch
        >>> q, k = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4)
        >>> self_attention_map(q, k, places=torch.tensor([3]))
        tensor([[[0.4000, 0.4000, 0.4000, 0.4000, 0.4000]]])
    """
    check_attention(q_BHQD, k_BHQD, mask, budget)
    if places is not None:
        places = checked_places("places", places, q_BHQD)
        q_BHQD = q_BHQD.index_select(2, places)
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            mask = mask.index_select(-2, places)
    return summed_weights(q_BHQD, k_BHQD, mask, _factor(q_BHQD, scale), budget=budget, most_heads=1)


def _factor(q_BHQD: Tensor, scale: float | None) -> float:
    return q_BHQD.shape[-1] ** -0.5 if scale is None else scale

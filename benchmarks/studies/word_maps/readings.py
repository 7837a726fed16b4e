"""The readings of joint attention, and a listener that hands over the kernel calls of a forward pass.

Four of the readings are those that a session records; they are written out here once more, and a test compares the two.
The other two belong to the question which one points best: softmaxes over the words of the prompt alone, without start,
end and padding rows.

Legend: ``B`` image, ``H`` head, ``L`` position of the sequence, ``Q`` image position, ``K`` text position, ``D`` head
width, ``C`` channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["READINGS", "KernelListener", "JointCall", "read_maps", "read_mass"]

#: By name, what the tables call it.
READINGS = {
    "text": "(a) normalized over text",
    "words": "(a') over words alone",
    "all_keys": "(b) over all keys",
    "text_to_image": "(c) text to image",
    "output_space": "(d) output space",
    "output_words": "(d') output space, words alone",
}


@dataclass(frozen=True, kw_only=True)
class JointCall:
    """One call of the attention kernel without a mask, positions of the image first, as SD 3 has them.

    Args:
        logits_BHLL: products of queries and keys, scaled.
        out_BHLD: what the kernel made of it.
    """

    logits_BHLL: Tensor
    out_BHLD: Tensor

    @classmethod
    def of(cls, q_BHLD: Tensor, k_BHLD: Tensor, out_BHLD: Tensor, scale: float | None = None) -> JointCall:
        """Make one of what the kernel was given.

        Args:
            q_BHLD: queries.
            k_BHLD: keys.
            out_BHLD: its result.
            scale: factor on the products; None for ``D ** -0.5``.

        Returns:
            The call.
        """
        factor = q_BHLD.shape[-1] ** -0.5 if scale is None else scale
        return cls(logits_BHLL=q_BHLD @ k_BHLD.mT * factor, out_BHLD=out_BHLD)


class KernelListener(TorchFunctionMode):
    """Hands over every call of the attention kernel on sequences of one length, with its result.

    Attention of text encoders, and second layers that read the image alone, have other lengths.

    Args:
        length: positions of image and text together.
        on: gets the call.

    Example:
        >>> x, heard = torch.zeros(1, 1, 3, 4), []
        >>> with KernelListener(3, heard.append):
        ...     _ = F.scaled_dot_product_attention(x, x, x)
        >>> heard[0].logits_BHLL.shape
        torch.Size([1, 1, 3, 3])
    """

    def __init__(self, length: int, on: Callable[[JointCall], None]) -> None:
        super().__init__()
        self._length, self._on = length, on

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a torch function, and listen to it."""
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key"), args, strict=False)), **kwargs}
            if given["query"].shape[2] == given["key"].shape[2] == self._length:
                self._on(JointCall.of(given["query"], given["key"], made, given.get("scale")))
        return made


def read_maps(call: JointCall, places: int, words_BK: Tensor) -> dict[str, Tensor]:
    """Read one kernel call in all ways.

    Args:
        call: of joint attention.
        places: positions of the image.
        words_BK: true at the text positions that hold words.

    Returns:
        By reading ``maps_BQK``, means over heads; 0 at the positions that do not take part.

    Example:
        >>> x = torch.zeros(1, 2, 5, 4)
        >>> maps = read_maps(JointCall.of(x, x, x), 3, torch.tensor([[False, True]]))
        >>> {name: map_BQK[0, 0].tolist() for name, map_BQK in maps.items() if "words" in name}
        {'words': [0.0, 1.0], 'output_words': [0.0, 1.0]}
    """
    image, text = slice(0, places), slice(places, None)
    asked_BHQK, others_BK = call.logits_BHLL[:, :, image, text], ~words_BK
    out_BLC = call.out_BHLD.transpose(1, 2).flatten(2)
    similar_BQK = out_BLC[:, image] @ out_BLC[:, text].mT
    found = {
        "text": asked_BHQK.softmax(-1).mean(1),
        "words": asked_BHQK.masked_fill(others_BK[:, None, None], -torch.inf).softmax(-1).mean(1),
        "all_keys": call.logits_BHLL[:, :, image].softmax(-1)[..., text].mean(1),
        "text_to_image": call.logits_BHLL[:, :, text, image].softmax(-1).mean(1).mT,
        "output_space": similar_BQK.softmax(-1),
        "output_words": similar_BQK.masked_fill(others_BK[:, None], -torch.inf).softmax(-1),
    }
    return {name: found[name] for name in READINGS}


def read_mass(call: JointCall, places: int) -> Tensor:
    """Read how much of their attention the places of each image give to text.

    Args:
        call: of joint attention.
        places: positions of the image.

    Returns:
        ``mass_B`` in 0 to 1, mean over heads and places.

    Example:
        >>> x = torch.zeros(1, 2, 4, 4)
        >>> read_mass(JointCall.of(x, x, x), 3)
        tensor([0.2500])
    """
    return call.logits_BHLL[:, :, :places].softmax(-1)[..., places:].sum(-1).mean((1, 2))

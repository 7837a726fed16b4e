"""The kernel seam: what attention proper is called with, whoever projected, normalized and rotated it.

A torch function mode around a processor sees its call of the fused kernel. So queries, keys, values and mask are read
and changed as the kernel gets them, and no processor's arithmetic is written a second time.

Legend: ``B`` batch row, ``H`` head, ``L`` position that asks, ``M`` position that is asked, ``D`` head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["KernelCall", "KernelSeam"]

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """One call of ``scaled_dot_product_attention``.

    Args:
        q: queries ``q_BHLD``.
        k: keys ``k_BHMD``.
        v: values ``v_BHMD``.
        mask: what is added to the logits, or a boolean mask (True: to be read), which broadcasts to ``BHLM``; or None.
        scale: factor on the products; None for ``D ** -0.5``.
        others: further arguments by name.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    scale: float | None = None
    others: Mapping[str, Any]

    @classmethod
    def bind(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> KernelCall:
        """Read the arguments of a call, by position or by name.

        Args:
            args: the positional ones.
            kwargs: the others.
        """
        named = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        return cls(
            q=named.pop("query"),
            k=named.pop("key"),
            v=named.pop("value"),
            mask=named.pop("attn_mask", None),
            scale=named.pop("scale", None),
            others=named,
        )

    @property
    def factor(self) -> float:
        """The factor on the products."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def bias(self) -> Tensor | None:
        """The mask as something that is added to the logits, ``bias_BHLM``."""
        if self.mask is None or self.mask.dtype is not torch.bool:
            return self.mask
        zero = torch.zeros((), dtype=self.q.dtype, device=self.q.device)
        return zero.masked_fill(~self.mask, torch.finfo(self.q.dtype).min)

    def run(self) -> Tensor:
        """Return what the kernel makes of it, ``out_BHLD``."""
        return F.scaled_dot_product_attention(
            query=self.q, key=self.k, value=self.v, attn_mask=self.mask, scale=self.scale, **self.others
        )

    def with_heads(self, q: Tensor, k: Tensor, v: Tensor) -> KernelCall:
        """Return the same call with other queries, keys and values."""
        return replace(self, q=q, k=k, v=v)


class KernelSeam(TorchFunctionMode):
    """Hands the first fitting kernel call within its ``with`` block to somebody, and lets all others pass.

    Args:
        fits: whether a call is the layer's own attention, and not that of an adapter beside it.
        on: gets the call, and returns what it is to result in; None for what the kernel makes of it unchanged.

    Example:
        >>> x = torch.zeros(1, 1, 2, 4)
        >>> with KernelSeam(lambda call: True, lambda call: call.v + 1) as seam:
        ...     out = F.scaled_dot_product_attention(x, x, x)
        >>> float(out.sum()), seam.has_seen
        (8.0, True)
    """

    def __init__(self, fits: Callable[[KernelCall], bool], on: Callable[[KernelCall], Tensor | None]) -> None:
        super().__init__()
        self._fits, self._on = fits, on
        self.has_seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a torch function, or what takes its place."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or self.has_seen:
            return func(*args, **kwargs)
        call = KernelCall.bind(args, kwargs)
        if not self._fits(call):
            return func(*args, **kwargs)
        self.has_seen = True
        made = self._on(call)
        return func(*args, **kwargs) if made is None else made

"""Structured guidance: the noun phrases of a prompt give cross-attention several values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ictl.processors.structured_guidance.control import StructuredGuidance

__all__ = ["StructuredGuidance"]


def __getattr__(name: str) -> Any:
    # Late, so that the command line can name its commands without loading torch.
    if name == "StructuredGuidance":
        from t2ictl.processors.structured_guidance.control import StructuredGuidance

        return StructuredGuidance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

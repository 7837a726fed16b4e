"""Token merging: an object and its attributes become one composite token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ictl.processors.token_merging.control import TokenMerging

__all__ = ["TokenMerging"]


def __getattr__(name: str) -> Any:
    # Late, so that the command line can name its commands without loading torch.
    if name == "TokenMerging":
        from t2ictl.processors.token_merging.control import TokenMerging

        return TokenMerging
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

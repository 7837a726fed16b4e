"""Token flow: which word carries which meaning, and a repair of what leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ictl.processors.token_flow.control import TokenFlow

__all__ = ["TokenFlow"]


def __getattr__(name: str) -> Any:
    # Late, so that the command line can name its commands without loading torch.
    if name == "TokenFlow":
        from t2ictl.processors.token_flow.control import TokenFlow

        return TokenFlow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

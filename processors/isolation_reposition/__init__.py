"""Isolation and reposition attention: several subjects stay themselves over several images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ictl.processors.isolation_reposition.control import IsolationReposition

__all__ = ["IsolationReposition"]


def __getattr__(name: str) -> Any:
    # Late, so that the command line can name its commands without loading torch.
    if name == "IsolationReposition":
        from t2ictl.processors.isolation_reposition.control import IsolationReposition

        return IsolationReposition
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

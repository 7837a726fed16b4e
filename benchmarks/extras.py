"""Libraries that only benchmarks need; where one is missing, one line says what to install."""

from __future__ import annotations

import importlib
from typing import Any

from t2ictl.errors import MissingExtra

__all__ = ["need"]


def need(module: str, extra: str = "bench") -> Any:
    """Import a library of an extra.

    Args:
        module: its import name.
        extra: what installs it.

    Returns:
        The module.

    Raises:
        MissingExtra: if it is not installed.

    Example:
        >>> need("json").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"Benchmarks need the package {error.name!r}, which is not installed.",
            f"Install the extra: pip install 't2ictl[{extra}]'",
        ) from None

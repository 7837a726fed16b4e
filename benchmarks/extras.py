"""Libraries that only benchmarks need; where one is missing, one line says what to install."""

from __future__ import annotations

import importlib
from typing import Any

from t2ictl.errors import MissingExtra

__all__ = ["need"]


def need(module: str) -> Any:
    """Import a library of the extra ``bench``.

    Args:
        module: its import name.

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
            "Install the extra: pip install 't2ictl[bench]'",
        ) from None

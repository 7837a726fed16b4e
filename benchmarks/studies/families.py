"""Which controls act on which families of pipelines, and which blocks of each they read.

``t2ictl bench study families`` prints the tables of ``docs/transformers.md``; a test compares them, so a new control
or family cannot be forgotten there. Nothing is run: what a control needs and a family offers says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import t2ictl
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.markdown import markdown_table

__all__ = ["acting_table", "layers_table", "main"]


def acting_table() -> str:
    """Return a row for each control, with a mark for each family on which it acts, and what it needs.

    Returns:
        A Markdown table.

    Example:
        >>> acting_table().splitlines()[0].startswith("| control |")
        True
    """
    families = t2ictl.list_families().values()
    head = ("control", *(each.title for each in families), "needs")
    rows = [
        (
            f"`{cls.__name__}`",
            *("✓" if cls.needs <= each.offers else "" for each in families),
            ", ".join(sorted(cls.needs)),
        )
        for cls in t2ictl.list_controls().values()
    ]
    return "\n".join(markdown_table(head, rows))


def layers_table() -> str:
    """Return for each transformer family the layers whose maps losses read and records keep by default.

    Returns:
        A Markdown table.
    """
    families: list[Any] = list(t2ictl.list_families().values())
    head = ("family", "kind of layer", "share of them, in the order in which they run", "offers")
    rows = [
        (
            each.title,
            each.semantic_kind,
            " to ".join(f"{share:g}" for share in each.semantic_depths),
            ", ".join(sorted(each.offers)),
        )
        for each in families
        if hasattr(each, "semantic_depths")  # U-Nets choose by the size of maps
    ]
    return "\n".join(markdown_table(head, rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables.

    Args:
        arguments: command line; None for that of the process.

    Returns:
        0.
    """
    ArgumentParser(prog="t2ictl bench study families", description=__doc__).parse_args(arguments)
    print(acting_table())
    print()
    print(layers_table())
    return 0

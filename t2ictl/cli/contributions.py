"""Names and commands that methods contribute, ours and those of installed packages."""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

__all__ = ["contributed"]


@functools.cache
def contributed(kind: Literal["exports", "commands"]) -> dict[str, EntryPoint]:
    """Find what methods add to the names of ``t2ictl`` or to the command line; nothing is loaded yet.

    Args:
        kind: ``"exports"``: what becomes an attribute of ``t2ictl``; ``"commands"``: functions with typer's
            annotations. A package adds its own through the entry points ``t2ictl.exports`` and ``t2ictl.commands``.

    Returns:
        Where each is, by name. A name of ours cannot be taken by another package.

    Example:
        >>> contributed("exports")["story"].attr
        'story'
    """
    home = importlib.import_module("t2ictl.processors")  # by name: methods stand above the command line

    own = home.EXPORTS if kind == "exports" else home.COMMANDS
    group = f"t2ictl.{kind}"
    found = {point.name: point for point in entry_points(group=group)}
    return found | {name: EntryPoint(name, value, group) for name, value in own.items()}

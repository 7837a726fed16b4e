"""Verbs and commands that methods contribute, ours and those of installed packages."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

__all__ = ["contributed"]


@functools.cache
def contributed(kind: Literal["verbs", "commands"]) -> dict[str, EntryPoint]:
    """Find what methods add to the public verbs or to the command line; nothing is loaded yet.

    Args:
        kind: ``"verbs"``: functions that become attributes of ``t2ictl``; ``"commands"``: functions with typer's
            annotations. A package adds its own through the entry points ``t2ictl.verbs`` and ``t2ictl.commands``.

    Returns:
        Where each is, by name. A name of ours cannot be taken by another package.

    Example:
        >>> contributed("verbs")["story"].attr
        'story'
    """
    import t2ictl.processors as home

    own = home.VERBS if kind == "verbs" else home.COMMANDS
    group = f"t2ictl.{kind}"
    found = {point.name: point for point in entry_points(group=group)}
    return found | {name: EntryPoint(name, value, group) for name, value in own.items()}

"""Settings that hold for every prompt of a call, or one list for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2ictl.errors import BadSetting

__all__ = ["per_prompt"]


def per_prompt(values: Sequence[Any], prompts: int, *, setting: str, things: str) -> list[tuple[Any, ...]]:
    """Return the list of each prompt: its own, or the one that holds for all.

    Args:
        values: things, or one tuple of them for each prompt.
        prompts: number of prompts.
        setting: name of the setting, for the message.
        things: what is in a list, in the plural.

    Returns:
        One tuple a prompt.

    Raises:
        BadSetting: if there are lists, and not one for each prompt.

    Example:
        >>> per_prompt(("cat",), 2, setting="x.concepts", things="words")
        [('cat',), ('cat',)]
        >>> per_prompt((("cat",), ()), 2, setting="x.concepts", things="words")
        [('cat',), ()]
    """
    lists = [tuple(each) for each in values if isinstance(each, (tuple, list))]
    if lists and len(lists) != prompts:
        raise BadSetting(
            f"{setting} has {len(lists)} lists for {prompts} prompts.",
            f"Give one list of {things} for each prompt, or one flat list for all.",
        )
    return lists or [tuple(values)] * prompts

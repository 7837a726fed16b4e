"""Words of users in places that read Markdown: shown as they are."""

from __future__ import annotations

import re

__all__ = ["plain"]

# Everything that Markdown, its directives (:red[...], :material/...:), math or emoji codes could begin with.
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:&^=])")


def plain(text: str, longest: int = 200) -> str:
    """Escape a text of a user for a label, caption or message, which Streamlit reads as Markdown.

    Args:
        text: any text.
        longest: characters that are kept; what is cut off is shown by an ellipsis.

    Returns:
        Markdown that shows the text itself, on one line.

    Example:
        >>> plain(":red[*x*]")
        '\\\\:red\\\\[\\\\*x\\\\*\\\\]'
    """
    line = " ".join(text.split())
    if len(line) > longest:
        line = line[: longest - 1] + "…"
    return _SPECIAL.sub(r"\\\1", line)

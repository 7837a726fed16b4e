"""Token tables: what each encoder reads, and which item each token belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from t2ictl.processors.token_flow.items import ResolvedItem
from t2ictl.prompts.prompt import Prompt

__all__ = ["Token", "token_table"]


@dataclass(frozen=True, kw_only=True)
class Token:
    """One position of an encoder's row.

    Args:
        position: from the start token, 0.
        text: its characters in the prompt; empty where none stand behind it.
        role: ``"start"``, ``"item"``, ``"end"`` or ``"pad"``.
        item: name of the item that it belongs to, or None.
        is_cut: whether the text ends after it because the token limit cut the rest off.
    """

    position: int
    text: str
    role: str
    item: str | None
    is_cut: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return asdict(self)


def token_table(prompt: Prompt, items: Sequence[ResolvedItem]) -> tuple[tuple[Token, ...], ...]:
    """List the tokens of every encoder.

    Args:
        prompt: the parsed prompt.
        items: the items.

    Returns:
        For each encoder its tokens, one a position.
    """
    tables = []
    for number, encoding in enumerate(prompt.encodings):
        owner = {place: each.name for each in items for place in each.span.by_encoder[number]}
        last = max((place for place, role in enumerate(encoding.roles) if role == "item"), default=-1)
        tables.append(
            tuple(
                Token(
                    position=place,
                    text="" if offset is None else encoding.text[slice(*offset)],
                    role=role,
                    item=owner.get(place),
                    is_cut=encoding.truncated_at is not None and place == last,
                )
                for place, (role, offset) in enumerate(zip(encoding.roles, encoding.offsets, strict=True))
            )
        )
    return tuple(tables)

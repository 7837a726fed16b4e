"""What an analysis found: to read, to save and to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from t2ictl.errors import NotRecorded
from t2ictl.maps.record import AttentionRecord
from t2ictl.processors.token_flow.analysis.estimates import LeakCell, Scores, TokenCell
from t2ictl.processors.token_flow.analysis.repair import RepairOutcome
from t2ictl.processors.token_flow.analysis.screen import ScreenCell, TokenScreen
from t2ictl.processors.token_flow.items import Item
from t2ictl.processors.token_flow.tokens import Token
from t2ictl.session.cost import Cost

if TYPE_CHECKING:
    from t2ictl.processors.token_flow.control import TokenFlow

__all__ = ["REPORT_SCHEMA", "FlowFindings"]

REPORT_SCHEMA = 1
"""Layout of ``report.json``; a change that old readers would misread raises it."""


@dataclass(frozen=True, kw_only=True)
class FlowFindings:
    """The result of :func:`t2ictl.flow`.

    Args:
        prompt: the analyzed prompt.
        items: the items.
        table: tokens of each encoder.
        screen: what targets have read of sources, from encodings alone.
        token_screen: what the phrases of items and the ends have read of single tokens.
        scores: what the judge said, or None without a judge.
        tokens: what each token does for its item; empty without a judge.
        carriers: for each item the fewest tokens that carry it.
        leaks: the leakage matrix; empty without a judge.
        repairs: what was tried against each leak.
        seeds: of all conditions.
        confirmed: of the confirmation of repairs.
        images: images by condition and seed.
        image: the whole prompt's image of the first seed.
        record: its word maps.
        cost: the work of all images.
        reused: images that were there from an earlier run.
        settings: everything that made this, as plain JSON data.
    """

    prompt: str
    items: tuple[Item, ...]
    table: tuple[tuple[Token, ...], ...]
    screen: tuple[ScreenCell, ...]
    token_screen: tuple[TokenScreen, ...]
    scores: Scores | None
    tokens: tuple[TokenCell, ...]
    carriers: Mapping[str, tuple[int, ...]]
    leaks: tuple[LeakCell, ...]
    repairs: tuple[RepairOutcome, ...]
    seeds: tuple[int, ...]
    confirmed: tuple[int, ...]
    images: Mapping[tuple[str, int], Image.Image]
    image: Image.Image
    record: AttentionRecord
    cost: Cost
    reused: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fix(self) -> TokenFlow | None:
        """The control that makes the first accepted repair, or None."""
        from t2ictl.processors.token_flow.control import TokenFlow

        accepted = next((each for each in self.repairs if each.accepted), None)
        return None if accepted is None else TokenFlow(**accepted.settings())

    def leak(self, target: str, source: str) -> LeakCell:
        """Return a cell of the matrix: by sense where there is one, else by presence.

        Args:
            target: an item.
            source: another one.

        Returns:
            The cell.

        Raises:
            NotRecorded: if there is none, as without a judge.
        """
        found = [each for each in self.leaks if (each.target, each.source) == (target, source)]
        if not found:
            raise NotRecorded(
                f"No leak of {source!r} into {target!r} was measured.", "Name both as items, and a judge."
            )
        return max(found, key=lambda each: each.form == "sense")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but images and maps as plain JSON data.

        Returns:
            What ``report.json`` holds.
        """
        return {
            "schema": REPORT_SCHEMA,
            "prompt": self.prompt,
            "settings": dict(self.settings),
            "tokens": [[token.to_dict() for token in table] for table in self.table],
            "screen": [cell.to_dict() for cell in self.screen],
            "token_screen": [cell.to_dict() for cell in self.token_screen],
            "questions": [] if self.scores is None else list(self.scores.questions),
            "scores": {} if self.scores is None else self.scores.to_dict(),
            "token_cells": [cell.to_dict() for cell in self.tokens],
            "carriers": {name: list(tokens) for name, tokens in self.carriers.items()},
            "leaks": [cell.to_dict() for cell in self.leaks],
            "repairs": [each.to_dict() for each in self.repairs],
            "seeds": list(self.seeds),
            "confirmed": list(self.confirmed),
            "cost": self.cost.to_dict(),
            "reused": self.reused,
        }

"""The screen: what text rows tell before any image is made."""

from __future__ import annotations

from typing import Any

import pytest

from t2ictl.processors.token_flow.analysis.screen import ENDS, POOLED, screen, screen_tokens
from t2ictl.processors.token_flow.items import Item
from tests.processors.token_flow.flow_cases import PROMPT, Case
from tests.tiny import sd, sd2, sdxl


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
def test_screen_equals_its_formula(build: Any) -> None:
    case = Case(build())
    cell = next(c for c in screen(case.make, case.items, case.encode) if (c.target, c.source) == ("square", "circle"))
    full, empty = case.stock(PROMPT).embeds[0, 7].double(), case.stock("").embeds[0, 7].double()
    hidden = case.encode([PROMPT], seen=[_without(3)] * len(case.prompt.encodings)).embeds[0, 7].double()
    assert cell.total == pytest.approx(float((full - hidden).norm() / (full - empty).norm()), rel=1e-4)
    assert cell.is_possible and cell.direct is not None and cell.direct > 0


def _without(place: int) -> Any:
    from t2ictl.families.text_masking import visible_except

    return visible_except([[place]], 16)


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
def test_screen_knows_what_a_causal_encoder_makes_impossible(build: Any) -> None:
    case = Case(build())
    cells = {(c.target, c.source): c for c in screen(case.make, case.items, case.encode)}
    assert not cells["circle", "square"].is_possible and cells["circle", "square"].total < 1e-5
    assert cells["square", "circle"].total > 1e-3
    assert cells[ENDS, "square"].is_possible and cells[ENDS, "square"].total > 1e-3
    assert ((POOLED, "circle") in cells) is (build is sdxl)


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
def test_screen_compares_with_the_swap_at_its_own_places(build: Any) -> None:
    case = Case(build(), items=(Item(words="circle", swap="skateboard"), Item(words="square")))  # two tokens for one
    cells = {(c.target, c.source): c for c in screen(case.make, case.items, case.encode)}
    full, empty = case.stock(PROMPT).embeds[0, 7].double(), case.stock("").embeds[0, 7].double()
    other = case.stock("a red skateboard and a blue square").embeds[0, 8].double()
    wanted = float((full - other).norm() / (full - empty).norm())
    assert cells["square", "circle"].swapped == pytest.approx(wanted, rel=1e-4)
    assert cells["circle", "square"].swapped is None and cells[ENDS, "circle"].swapped is None


class Mixing:
    """An encoder whose rows mix at known rates: what a row reads of each visible row before it."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, texts: Any, first: Any = None, seen: Any = None, depth: float = 1.0) -> Any:
        import torch

        from t2ictl.families.text_states import PromptEmbeds

        words = [text.split() for text in texts]
        rows = torch.zeros(len(texts), 16, 64)
        for number, own in enumerate(words):
            for place, word in enumerate(own, start=1):
                vector = torch.zeros(64)
                vector[sum(map(ord, word)) % 64] = 1.0
                rows[number, place] = vector
        mixed = rows.clone()
        for number in range(len(texts)):
            visible = torch.ones(16, dtype=torch.bool) if seen is None else seen[0][number]
            for place in range(1, 16):
                sees = visible if visible.ndim == 1 else visible[place]
                if place > 3 and sees[3]:
                    mixed[number, place] += self._share * rows[number, 3]
        return PromptEmbeds(embeds=mixed)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.8])
def test_screen_recovers_a_known_mixture(share: float) -> None:
    case = Case(sd())
    cells = screen(case.make, case.items, Mixing(share))
    cell = next(c for c in cells if (c.target, c.source) == ("square", "circle"))
    # |h(full) - h(without)| is the share; |h(full) - h('')| the length of the word's vector with the share.
    assert cell.total == pytest.approx(share / (1 + share**2) ** 0.5, abs=1e-6)
    assert cell.direct == pytest.approx(cell.total, abs=1e-6)


def test_screen_of_tokens_says_who_reads_whom() -> None:
    case = Case(sd(), "a big red circle and a square", ("big red circle", "square"))
    tokens = screen_tokens(case.make, case.items[0], case.encode)
    assert [each.token for each in tokens] == [2, 3, 4]
    first, last = tokens[0].on_item, tokens[2].on_item
    assert first is not None and last is not None and first > 1e-3 and last < 1e-5

"""Token-flow analysis of one prompt: which token carries what, which item leaks into which, and what repairs it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from t2ictl.errors import BadSetting, shown
from t2ictl.evaluation.judges import Judge
from t2ictl.generation import Request, provenance
from t2ictl.maps.recorder import POINTING_LAYERS, Recording
from t2ictl.processors.token_flow.analysis.estimates import (
    LeakCell,
    Scores,
    TokenCell,
    carrier_set,
    leak_cells,
    token_cell,
)
from t2ictl.processors.token_flow.analysis.images import fingerprint
from t2ictl.processors.token_flow.analysis.repair import RepairOutcome, repair_leak
from t2ictl.processors.token_flow.analysis.result import FlowResult
from t2ictl.processors.token_flow.analysis.scoring import Scoring
from t2ictl.processors.token_flow.analysis.screen import screen, screen_tokens
from t2ictl.processors.token_flow.conditions import Intervention, Removal
from t2ictl.processors.token_flow.items import Item, ResolvedItem
from t2ictl.processors.token_flow.tokens import token_table

__all__ = ["flow"]

MOST_SEEDS = 100_000
"""Images of one condition. All that are to be made are listed before the first one is."""


def flow(
    pipe: Any,
    prompt: str,
    items: Sequence[Item | str] = (),
    *,
    judge: str | Judge | None = None,
    seeds: int = 8,
    confirm: int = 12,
    operators: Sequence[Removal] = ("clean_pad",),
    depths: Sequence[float] = (),
    folder: str | Path | None = None,
    batch: int = 8,
    on_batch: Callable[[int, int], bool | None] | None = None,
    **request: Any,
) -> FlowResult:
    """Analyze what each word of a prompt carries, and what leaks from one item into another.

    Encodings alone give the screen. With a judge, images follow: all conditions (one token kept, one taken out, an item
    alone, an item that has not read another) over the same noise. A repair is accepted if other seeds confirm it.

    Args:
        pipe: a diffusers pipeline.
        prompt: the prompt.
        items: words or :class:`Item` settings; empty for all objects that the parser finds.
        judge: a name as for :func:`t2ictl.evaluation.judges.open_judge`, or a judge; None: only screen and word maps.
        seeds: images of each condition. No-leak claims need many: the upper bound of 0 in 8 is 32 %, of 0 in 20 16 %.
        confirm: further seeds on which a repair must hold; 0: none is sought.
        operators: how tokens are removed: ``"clean_pad"`` (the paper's), ``"released"`` (pooled states too),
            ``"encoder_mask"``, ``"drop"``.
        depths: shares of the encoder's layers whose reading of the prompt is shown, too, as 0.5 (Diffusion Lens).
        folder: where images are kept, so that a stopped analysis goes on; None: nowhere.
        batch: images of one pipeline call.
        on_batch: gets the number of images done and to do; returns False to stop.
        **request: fields of :class:`t2ictl.generation.Request`: ``seed`` (the first one), ``steps``, ``width``,
            ``height``, ``guidance_scale``, ``negative_prompt``, ``parser``.

    Returns:
        The result: ``screen``, ``tokens``, ``leaks``, ``repairs``, ``record`` of word maps; ``save`` writes the report.

    Raises:
        UnsupportedPipeline: on transformers.
        SpanNotFound: if an item is not in the prompt.
        BadSetting: for bad settings, before any image is made.
        Cancelled: if ``on_batch`` returned False; images made so far are in the folder.

    Example:
        >>> import t2ictl
        >>> result = t2ictl.flow(t2ictl.load("shapes"), "a red circle and a blue square", ["circle", "square"])
        >>> [(cell.target, cell.source, cell.is_possible) for cell in result.screen[:4:2]]
        [('square', 'circle', True), ('circle', 'square', False)]

    Reference:
        Kaplan et al., "Follow the Flow", 2025, arXiv 2504.01137.
    """
    wanted = Request(prompt=prompt, **request)
    _check(seeds, confirm, batch, operators, depths)
    first, kept = wanted.seed + seeds, None if folder is None else Path(folder)
    draws = {"seeds": range(wanted.seed, first), "confirm": range(first, first + confirm)}
    scoring = Scoring(pipe, wanted, items, judge, **draws, folder=kept, batch=batch, on_batch=on_batch)
    return _Analysis(pipe, wanted, scoring, tuple(operators), tuple(depths)).run()


def _check(seeds: int, confirm: int, batch: int, operators: Sequence[Removal], depths: Sequence[float]) -> None:
    """Refuse what cannot be, before any image is made."""
    if seeds < 1 or confirm < 0 or batch < 1:
        raise BadSetting(f"seeds={seeds}, confirm={confirm}, batch={batch}.", "Use 1 or more; confirm may be 0.")
    if max(seeds, confirm, batch) > MOST_SEEDS:
        raise BadSetting(
            f"seeds={shown(seeds, 30)}, confirm={shown(confirm, 30)}, batch={shown(batch, 30)}.",
            f"Use {MOST_SEEDS} at most.",
        )
    if not operators or set(operators) - set(get_args(Removal)):
        raise BadSetting(f"operators={tuple(operators)}.", f"Use one or more of {', '.join(get_args(Removal))}.")
    if not all(0 <= depth <= 1 for depth in depths):
        raise BadSetting(f"depths={tuple(depths)}.", "Give shares of the encoder's layers, from 0 to 1.")


@dataclass(frozen=True)
class _Analysis:
    """One analysis."""

    pipe: Any
    request: Request
    scoring: Scoring
    operators: tuple[Removal, ...]
    depths: tuple[float, ...]

    def wanted_conditions(self) -> Iterator[Intervention]:
        """All conditions of the matrix and of the tokens."""
        make = self.scoring.conditions
        yield from (make.whole(), make.nothing(), make.keep("keep:end and padding", make.special))
        yield from map(make.at_depth, self.depths)
        for item in self.scoring.items:
            yield make.keep(f"keep:{item.name}", item.rows)
            yield make.isolate(item)
            for token in item.rows:
                yield make.keep(self._keep(token), (token,))
                for operator in self.operators:
                    yield make.remove(self._drop(token, operator), (token,), operator)
            for other in self.scoring.items:
                if other.name in item.item.senses:
                    yield make.cut(item, other)
            if item.item.swap:
                yield make.swap(item)

    def _keep(self, token: int) -> str:
        return f"keep:token {token}"

    def _drop(self, token: int, operator: Removal) -> str:
        return f"drop:token {token} ({operator})"

    def run(self) -> FlowResult:
        """Screen, images, quantities, repair, maps."""
        scoring, is_judged = self.scoring, self.scoring.judge is not None
        wanted = list(self.wanted_conditions()) if is_judged else [scoring.conditions.whole()]
        scores = scoring.score(wanted) if is_judged else None
        leaks = () if scores is None else leak_cells(scores, scoring.items)
        repairs = tuple(self._repairs(leaks))
        whole = scoring.cells([scoring.conditions.whole()], scoring.seeds[:1])[0]
        image, record = scoring.images.recorded(whole, Recording(layers=POINTING_LAYERS))
        read_tokens = [screen_tokens(scoring.conditions, each, scoring.encode) for each in scoring.items]
        return FlowResult(
            prompt=scoring.prompt.text,
            items=tuple(each.item for each in scoring.items),
            table=token_table(scoring.prompt, scoring.items),
            screen=screen(scoring.conditions, scoring.items, scoring.encode),
            token_screen=tuple(itertools.chain.from_iterable(read_tokens)),
            scores=scores,
            tokens=() if scores is None else tuple(self._tokens(scores)),
            carriers={} if scores is None else {each.name: self._carriers(scores, each) for each in scoring.items},
            leaks=leaks,
            repairs=repairs,
            seeds=scoring.seeds,
            confirmed=scoring.confirm,
            images=self._images(wanted, repairs) if is_judged else {("full", whole.seed): image},
            image=image,
            record=record,
            cost=scoring.images.cost,
            reused=scoring.images.reused,
            settings=self._settings(),
        )

    def _tokens(self, scores: Scores) -> Iterator[TokenCell]:
        table = token_table(self.scoring.prompt, self.scoring.items)[0]
        for item in self.scoring.items:
            for token in item.rows:
                drops: dict[str, str] = {name: self._drop(token, name) for name in self.operators}
                yield token_cell(scores, item, token, table[token].text, self._keep(token), drops)

    def _carriers(self, scores: Scores, item: ResolvedItem) -> tuple[int, ...]:
        asked = item.item.asked
        whole = float(scores.of(f"keep:{item.name}", asked).mean())
        single = {token: float(scores.of(self._keep(token), asked).mean()) for token in item.rows}
        found = carrier_set(single, {}, whole)
        if len(found) < 3:
            return found
        make = self.scoring.conditions
        pairs = {pair: make.keep(f"keep:tokens {pair}", pair) for pair in itertools.combinations(item.rows, 2)}
        both = self.scoring.score(list(pairs.values()))
        return carrier_set(single, {pair: float(both.of(one.name, asked).mean()) for pair, one in pairs.items()}, whole)

    def _repairs(self, leaks: Sequence[LeakCell]) -> Iterator[RepairOutcome]:
        if not self.scoring.confirm:
            return
        tests = max(1, sum(cell.is_possible for cell in leaks))
        for cell in leaks:
            yield repair_leak(self.scoring.conditions, self.scoring.items, cell, self.scoring.score, tests=tests)

    def _images(self, wanted: Sequence[Intervention], repairs: Sequence[RepairOutcome]) -> dict[tuple[str, int], Any]:
        """The images of the conditions, and those of accepted repairs."""
        by_name = {each.name: each for each in self.scoring.items}
        shown = list(wanted)
        for each in repairs:
            if each.accepted and each.chosen is not None:
                pairs = [(by_name[each.target], (by_name[each.source],))]
                how, strength, special = each.chosen.how, each.chosen.strength, each.chosen.special
                name = f"repair:{each.target}|{each.source}"
                shown.append(
                    self.scoring.conditions.repair(
                        name, pairs, how=how, strength=strength, special=special, pooled=special
                    )
                )
        cells = self.scoring.cells(shown, self.scoring.seeds)
        images = self.scoring.images.of(cells)
        return {(cell.condition, cell.seed): image for cell, image in zip(cells, images, strict=True)}

    def _settings(self) -> dict[str, Any]:
        """Everything that made this result, as plain JSON data."""
        from pydantic import TypeAdapter

        return {
            "request": TypeAdapter(Request).dump_python(self.request, mode="json"),
            "items": TypeAdapter(tuple[Item, ...]).dump_python(
                tuple(each.item for each in self.scoring.items), mode="json"
            ),
            "judge": None if self.scoring.judge is None else self.scoring.judge.name,
            "operators": list(self.operators),
            "depths": list(self.depths),
            "seeds": list(self.scoring.seeds),
            "confirm": list(self.scoring.confirm),
            **provenance(self.pipe, self.request.parser),
            "weights": fingerprint(self.pipe)["weights"],
        }

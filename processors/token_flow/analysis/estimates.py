"""What judged images say: which token carries an item, which one can go, which item leaks into which.

Letters: ``S`` seed, ``Q`` question.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from t2ictl.evaluation.statistics.resampling import Array
from t2ictl.processors.token_flow.analysis.cells import Estimate, adjusted, difference, share
from t2ictl.processors.token_flow.items import ResolvedItem

__all__ = ["LeakCell", "Scores", "TokenCell", "carrier_set", "leak_cell", "leak_cells", "p_text", "token_cell"]

# An effect of less than this counts as none: the default of the specification, a tenth of all images.
NEGLIGIBLE = 0.1
LEVEL = 0.05


def p_text(value: float | None) -> str:
    """Write a p-value as people read it.

    Args:
        value: the p-value, or None where nothing was tested.

    Returns:
        A short text.

    Example:
        >>> p_text(0.0234), p_text(1e-9), p_text(None)
        ('p = 0.023', 'p < 0.001', '–')
    """
    return "–" if value is None else "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


class Scores:
    """What a judge said of every image.

    Args:
        questions: what it was asked, in order.
        by_condition: for each condition ``p_SQ``, the same seeds for all.
    """

    def __init__(self, questions: Sequence[str], by_condition: Mapping[str, Array]) -> None:
        self.questions, self.by_condition = tuple(questions), dict(by_condition)

    def of(self, condition: str, question: str) -> Array:
        """Return ``p_S`` of a condition and a question."""
        found: Array = self.by_condition[condition][:, self.questions.index(question)]
        return found

    def every(self, condition: str, questions: Sequence[str]) -> Array:
        """Return ``p_S`` that all of some things are to be seen; with a judge of probabilities, their product."""
        product: Array = self.of(condition, questions[0]).copy()
        for question in questions[1:]:
            product *= self.of(condition, question)
        return product

    def to_dict(self) -> dict[str, Any]:
        """Return them as plain JSON data."""
        return {name: values.round(6).tolist() for name, values in self.by_condition.items()}


@dataclass(frozen=True, kw_only=True)
class TokenCell:
    """What one token does for its item.

    Args:
        token: position in the text row.
        text: as the tokenizer has it.
        item: name of the item.
        carrier: how much more often the item is seen where only this token is kept than with an empty prompt.
        necessity: how much less often it is seen without this token, by removal operator.
        verdict: ``"carrier"``: it alone brings the item up; ``"redundant"``: neither interval reaches a tenth, so the
            image does without it; ``"no carrier"``: alone it does not bring the item up; else ``"open"``.
    """

    token: int
    text: str
    item: str
    carrier: Estimate
    necessity: Mapping[str, Estimate]
    verdict: Literal["carrier", "redundant", "no carrier", "open"]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LeakCell:
    """Whether an item shows what belongs to another.

    Args:
        target: the item whose rows may have read too much.
        source: the item that may have leaked.
        form: ``"presence"``: an image made from the target's rows alone shows the source; ``"sense"``: in the
            image of the whole prompt the target has the sense that the source would give it.
        is_possible: False where a causal encoder never lets the target read the source.
        seen: what the judge saw, what it was asked for.
        before: how often with the rows of the prompt.
        clean: how often with rows that have not read the source, or have read its swap in its place.
        leak: the paired difference of the two, with its p-value: what the target's rows have read of the source.
        adjusted: that p-value for all tests of the matrix together (Holm); None for an impossible cell.
        total: how much more often with the source than with its swap in the prompt: what reaches the
            target on all ways, the denoiser's too; None without a swap.
        total_adjusted: its p-value, adjusted likewise.
        verdict: at a family-wise level of 5 %. ``"leaks"``: in the text encoder; ``"denoiser"``: the source acts on the
            target, but not shown by its rows, so no repair of rows will help; ``"impossible"``: a causal encoder does
            not let the target read the source, and no other way is shown; ``"not shown"``.
    """

    target: str
    source: str
    form: Literal["presence", "sense"]
    is_possible: bool
    seen: str
    before: Estimate
    clean: Estimate
    leak: Estimate
    adjusted: float | None = None
    total: Estimate | None = None
    total_adjusted: float | None = None
    verdict: Literal["leaks", "denoiser", "impossible", "not shown"] = "not shown"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return asdict(self)


def token_cell(
    scores: Scores, item: ResolvedItem, token: int, text: str, keep: str, drops: Mapping[str, str]
) -> TokenCell:
    """Judge one token of an item.

    Args:
        scores: of the conditions.
        item: the item.
        token: position.
        text: of the token.
        keep: the condition that keeps this token only.
        drops: by operator the condition without it.

    Returns:
        The cell.
    """
    asked = item.item.asked
    carrier = difference(scores.of(keep, asked), scores.of("empty", asked))
    full_S = scores.of("full", asked)
    necessity = {name: difference(full_S, scores.of(gone, asked)) for name, gone in drops.items()}
    is_needless = all(each.high <= NEGLIGIBLE for each in necessity.values())
    if carrier.low > NEGLIGIBLE:
        verdict: Any = "carrier"
    elif carrier.high <= NEGLIGIBLE:
        verdict = "redundant" if is_needless else "no carrier"
    else:
        verdict = "open"
    return TokenCell(token=token, text=text, item=item.name, carrier=carrier, necessity=necessity, verdict=verdict)


def carrier_set(keep: Mapping[int, float], pairs: Mapping[tuple[int, int], float], whole: float) -> tuple[int, ...]:
    """Find the fewest tokens that do what the whole item does, up to a tenth.

    Args:
        keep: by token how often the item is seen where only it is kept.
        pairs: the same by pair of tokens; may be empty.
        whole: how often it is seen where the whole item is kept.

    Returns:
        One token, or two; all of them where no two are enough, or none where the whole item is never seen.

    Example:
        >>> carrier_set({3: 0.1, 4: 0.9}, {}, 1.0)
        (4,)
    """
    if whole <= NEGLIGIBLE:
        return ()
    by_set: dict[tuple[int, ...], float] = {(token,): seen for token, seen in keep.items()}
    by_pair: dict[tuple[int, ...], float] = dict(pairs.items())
    for found in (by_set, by_pair):
        best: tuple[int, ...] | None = max(found, key=lambda each: found[each], default=None)
        if best is not None and found[best] >= whole - NEGLIGIBLE:
            return best
    return tuple(sorted(keep))


def leak_cells(scores: Scores, items: Sequence[ResolvedItem]) -> tuple[LeakCell, ...]:
    """Return the leakage matrix: all pairs by presence, and by sense where an item has one for the other.

    Args:
        scores: of ``keep:``, ``iso:`` and ``cut:`` conditions.
        items: the items.

    Returns:
        The cells, with p-values adjusted for the whole matrix.
    """
    cells = []
    for target, source in itertools.permutations(items, 2):
        seen = source.item.asked
        kept, clean = (scores.of(f"{kind}:{target.name}", seen) for kind in ("keep", "iso"))
        cells.append(leak_cell(target, source, "presence", seen, kept, clean))
        if source.name in target.item.senses:
            seen = target.item.senses[source.name]
            full_S, cut_S = scores.of("full", seen), scores.of(f"cut:{target.name}|{source.name}", seen)
            cell = leak_cell(target, source, "sense", seen, full_S, cut_S)
            if source.item.swap:
                cell = replace(cell, total=difference(full_S, scores.of(f"swap:{source.name}", seen)))
            cells.append(cell)
    return _judged(cells)


def leak_cell(
    target: ResolvedItem,
    source: ResolvedItem,
    form: Literal["presence", "sense"],
    seen: str,
    before_S: Array,
    clean_S: Array,
) -> LeakCell:
    """Return one cell of the matrix, not adjusted for the others.

    Args:
        target: the item whose rows may have read too much.
        source: the item that may have leaked.
        form: what kind of leak.
        seen: what was asked for.
        before_S: how it was seen with the rows of the prompt.
        clean_S: and with rows that have not read the source.

    Returns:
        The cell.
    """
    return LeakCell(
        target=target.name,
        source=source.name,
        form=form,
        is_possible=target.may_read(source),
        seen=seen,
        before=share(before_S),
        clean=share(clean_S),
        leak=difference(before_S, clean_S),
    )


def _judged(cells: Sequence[LeakCell]) -> tuple[LeakCell, ...]:
    """The same with adjusted p-values and verdicts; what is impossible is no test."""
    untested = Estimate(value=0.0, low=0.0, high=0.0, count=0, method="none")
    tests = [cell.leak if cell.is_possible else untested for cell in cells]
    tests += [cell.total or untested for cell in cells]
    p_values = [None if math.isnan(each) else each for each in adjusted(tests)]
    judged = []
    for cell, p_leak, p_total in zip(cells, p_values[: len(cells)], p_values[len(cells) :], strict=True):
        is_leak = p_leak is not None and p_leak <= LEVEL and cell.leak.value > 0
        acts = p_total is not None and p_total <= LEVEL and cell.total is not None and cell.total.value > 0
        verdict: Any = "leaks" if is_leak else "denoiser" if acts else "not shown" if cell.is_possible else "impossible"
        judged.append(replace(cell, adjusted=p_leak, total_adjusted=p_total, verdict=verdict))
    return tuple(judged)

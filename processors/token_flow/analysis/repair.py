"""Repair of one leak: candidates are tried on some seeds, and the best is believed only if other seeds confirm it.

Letters: ``S`` seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from t2ictl.evaluation.statistics.resampling import Array
from t2ictl.processors.token_flow.analysis.cells import Estimate, difference, paired_p_value, share
from t2ictl.processors.token_flow.analysis.estimates import LEVEL, NEGLIGIBLE, LeakCell, Scores, p_text
from t2ictl.processors.token_flow.conditions import Conditions, Intervention, Isolation, Special
from t2ictl.processors.token_flow.items import ResolvedItem

__all__ = ["Candidate", "RepairOutcome", "Trial", "repair_leak"]

# A repair may cost this share of the images that had all items.
INTENT_LOSS = 0.05
HOWS: tuple[Isolation, ...] = ("pairwise", "masked")
STRENGTHS = (1.0, 0.5)
SPECIALS: tuple[Special, ...] = ("keep", "masked")

#: Gives the scores of conditions on the seeds of selection, or (with True) on those of confirmation.
Score = Callable[[Sequence[Intervention], bool], Scores]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to clean an item's rows: fields of ``TokenFlow``."""

    how: Isolation
    strength: float
    special: Special

    @property
    def name(self) -> str:
        """Short, unique among the candidates."""
        return f"{self.how}, strength {self.strength:g}, ends {self.special}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a candidate did on the seeds of selection.

    Args:
        candidate: it.
        leak: how often the leak is still seen.
        intent: how often all items are seen.
    """

    candidate: Candidate
    leak: float
    intent: float


@dataclass(frozen=True, kw_only=True)
class RepairOutcome:
    """Whether a leak can be repaired.

    Args:
        target: the item whose rows are cleaned.
        source: the item that leaks.
        form: as in the leakage matrix.
        accepted: whether the repair is worth using: on new seeds the leak is seen less often (one-sided exact test, at
            5 % for all repairs of this prompt together), and at most 5 % of the images with all items are lost.
        reason: why, or why not.
        chosen: the candidate that was put to the test; None if none was.
        before: how often the leak is seen without the repair, on new seeds.
        after: and with it.
        change: the paired difference of the two.
        intent_before: how often all items are seen without it, on new seeds.
        intent_after: and with it.
        intent_loss: the paired difference of the two.
        trials: all candidates on the seeds of selection.
    """

    target: str
    source: str
    form: str
    accepted: bool
    reason: str
    chosen: Candidate | None = None
    before: Estimate | None = None
    after: Estimate | None = None
    change: Estimate | None = None
    intent_before: Estimate | None = None
    intent_after: Estimate | None = None
    intent_loss: Estimate | None = None
    trials: tuple[Trial, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return the fields of ``TokenFlow`` that make this repair.

        Returns:
            Keyword arguments; empty where the repair was not accepted.
        """
        if not self.accepted or self.chosen is None:
            return {}
        pooled = {"pooled": self.chosen.special}  # as it was tried
        return {"items": (self.target,), "sources": (self.source,), **asdict(self.chosen), **pooled}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return {**asdict(self), "settings": self.settings()}


def repair_leak(
    conditions: Conditions,
    items: Sequence[ResolvedItem],
    cell: LeakCell,
    score: Score,
    *,
    tests: int = 1,
) -> RepairOutcome:
    """Look for a repair of one leak.

    Args:
        conditions: of the prompt.
        items: all items.
        cell: the leak.
        score: makes and judges images.
        tests: repairs that are tried for this prompt; the level of the test is shared among them.

    Returns:
        The outcome.
    """
    by_name = {each.name: each for each in items}
    made = _Repair(conditions, by_name[cell.target], by_name[cell.source], cell, [each.item.asked for each in items])
    said: dict[str, Any] = {"target": cell.target, "source": cell.source, "form": cell.form}
    if not cell.is_possible:
        return RepairOutcome(**said, accepted=False, reason="impossible: the target's rows have not read the source")
    if cell.leak.value < NEGLIGIBLE:
        reason = f"no leak to repair: {cell.leak.value:+.0%} with the source's influence on the rows"
        return RepairOutcome(**said, accepted=False, reason=reason)
    candidates = [Candidate(how=h, strength=s, special=e) for h, s, e in itertools.product(HOWS, STRENGTHS, SPECIALS)]
    trials = made.trials(candidates, score)
    baseline = made.intent(score([made.conditions.whole()], False), "full").mean()
    # Least leak among those that lose nothing; of equals the gentlest.
    able = [each for each in trials if baseline - each.intent <= INTENT_LOSS] or list(trials)
    best = min(able, key=lambda each: (each.leak, -each.intent, each.candidate.strength))
    return made.confirmed(best, trials, score, said, LEVEL / tests)


class _Repair:
    """The conditions and the questions of one leak."""

    def __init__(
        self, conditions: Conditions, target: ResolvedItem, source: ResolvedItem, cell: LeakCell, asked: Sequence[str]
    ) -> None:
        self.conditions, self._target, self._source, self._cell, self._asked = conditions, target, source, cell, asked

    def _whole(self, candidate: Candidate) -> Intervention:
        """The whole prompt, repaired."""
        return self.conditions.repair(
            f"repair:{self._target.name}|{self._source.name}, {candidate.name}",
            [(self._target, (self._source,))],
            how=candidate.how,
            strength=candidate.strength,
            special=candidate.special,
            pooled=candidate.special,
        )

    def _shown(self, candidate: Candidate) -> Intervention:
        """The condition in which the leak is seen: the whole prompt, or the item's rows alone."""
        whole = self._whole(candidate)
        if self._cell.form == "sense":
            return whole
        kept = self.conditions.keep(f"kept {whole.name}", self._target.rows)
        rows = [patch for patch in whole.patches if patch.rows == self._target.rows]
        return Intervention(
            name=kept.name, kind="repair", base=kept.base, patches=(*kept.patches, *rows), pooled=kept.pooled
        )

    @property
    def _unrepaired(self) -> Intervention:
        if self._cell.form == "sense":
            return self.conditions.whole()
        return self.conditions.keep(f"keep:{self._target.name}", self._target.rows)

    def intent(self, scores: Scores, condition: str) -> Array:
        """Return ``p_S`` that all items are seen."""
        return scores.every(condition, self._asked)

    def trials(self, candidates: Sequence[Candidate], score: Score) -> tuple[Trial, ...]:
        """Try all candidates on the seeds of selection."""
        wholes, shown = [self._whole(each) for each in candidates], [self._shown(each) for each in candidates]
        scores = score([self.conditions.whole(), *wholes, *shown], False)
        return tuple(
            Trial(
                candidate=each,
                leak=float(scores.of(seen.name, self._cell.seen).mean()),
                intent=float(self.intent(scores, whole.name).mean()),
            )
            for each, whole, seen in zip(candidates, wholes, shown, strict=True)
        )

    def confirmed(
        self, best: Trial, trials: tuple[Trial, ...], score: Score, said: dict[str, Any], level: float
    ) -> RepairOutcome:
        """Put the best candidate to the test on new seeds."""
        whole, shown, unrepaired = self._whole(best.candidate), self._shown(best.candidate), self._unrepaired
        scores = score([self.conditions.whole(), unrepaired, whole, shown], True)
        before_S, after_S = (scores.of(name, self._cell.seen) for name in (unrepaired.name, shown.name))
        had_S, has_S = self.intent(scores, "full"), self.intent(scores, whole.name)
        p_value = paired_p_value(before_S, after_S, "greater")
        loss = difference(had_S, has_S)
        if p_value > level:
            reason = f"not confirmed: on new seeds {p_text(p_value)}, where {level:.3f} is needed"
        elif loss.value > INTENT_LOSS:
            reason = f"it costs {loss.value:.0%} of the images with all items"
        else:
            reason = f"confirmed on new seeds ({p_text(p_value)})"
        return RepairOutcome(
            **said,
            accepted=p_value <= level and loss.value <= INTENT_LOSS,
            reason=reason,
            chosen=best.candidate,
            before=share(before_S),
            after=share(after_S),
            change=difference(before_S, after_S),
            intent_before=share(had_S),
            intent_after=share(has_S),
            intent_loss=loss,
            trials=trials,
        )

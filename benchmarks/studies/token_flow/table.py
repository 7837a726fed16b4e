"""Tables of the study: shares and paired differences with intervals, prompts as the independent units.

Letters: ``P`` prompt, ``S`` seed, ``C`` column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2ictl.benchmarks.markdown import bounds_text, print_table
from t2ictl.benchmarks.studies.token_flow.cases import PARTS
from t2ictl.errors import BadSetting
from t2ictl.evaluation.statistics.intervals import difference_bounds, share_bounds
from t2ictl.evaluation.statistics.resampling import Array, seed_of

__all__ = ["print_tables", "read_part"]

RESAMPLES = 10_000
REMOVALS = ("clean_pad", "encoder_mask", "drop")
REPAIRS = ("masked", "pairwise", "alone")
REPAIRED = ("planted", "no leak")
TURNED = {"after": "before", "before": "after"}


def read_part(folder: Path, part: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the rows of all shards of a part.

    Args:
        folder: of the run.
        part: which.

    Returns:
        The rows, and what they have in common; no rows where the part is not there.

    Raises:
        BadSetting: if shards are missing, or were run with other settings.
    """
    paths = sorted(folder.glob(f"{part.replace(' ', '_')}.*-of-*.json"))
    if not paths:
        return [], {}
    of = int(paths[0].stem.rpartition("-")[2])
    if len(paths) != of:
        raise BadSetting(f"{part!r} has {len(paths)} of {of} shards.", "Run the others first.")
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    shared = [{key: each.get(key) for key in ("split", "seeds", "confirm", "instrument")} for each in contents]
    if any(each != shared[0] for each in shared):
        raise BadSetting(f"The shards of {part!r} were run with different settings.", "Run them with the same ones.")
    return [row for each in contents for row in each["rows"]], shared[0]


class _Prompts:
    """The prompts of a part, and how often things were seen, one value a prompt."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = list(rows)

    def asked(self, condition: str, *items: int) -> Array:
        """How often these items were all seen."""
        return np.array([_mean(row, condition, [row["asked"][item] for item in items]) for row in self.rows])

    def leak(self, condition: str, *items: int) -> Array:
        """How often an item had the sense that the other would give it; of several items the mean."""
        values = [[_mean(row, condition, [row["seen"][item]]) for row in self.rows] for item in items]
        return np.mean(values, axis=0)

    def groups(self) -> Iterator[tuple[str, _Prompts]]:
        """The prompts with the same note."""
        for note in dict.fromkeys(row["note"] for row in self.rows):
            yield note, _Prompts([row for row in self.rows if row["note"] == note])


def _mean(row: dict[str, Any], condition: str, questions: Sequence[str]) -> float:
    """How often all of some things were seen, over the seeds of a prompt."""
    columns = [row["questions"].index(each) for each in questions]
    return float(np.array(row["p"][condition])[:, columns].prod(axis=1).mean())


def _share(values_P: Array | Sequence[float]) -> str:
    return bounds_text(share_bounds(np.asarray(values_P, dtype=float)[:, None]))


def _difference(one_P: Array, other_P: Array) -> str:
    return bounds_text(difference_bounds((one_P - other_P)[:, None], RESAMPLES, seed_of("flow", 0)).bounds, "+")


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    if lines:
        print_table(head, lines)
        print()


def print_tables(folder: Path) -> None:
    """Print what a run found.

    Args:
        folder: of the run.
    """
    for part in PARTS:
        rows, shared = read_part(folder, part)
        if rows:
            seeds, confirm = len(shared["seeds"]), len(shared["confirm"])
            said = f"{len(rows)} {shared['split']} prompts, {seeds} seeds"
            print(f"### {part}: {said}{f' and {confirm} that confirm' if part in REPAIRED else ''}\n")
            if shared["instrument"] is not None:  # runs of before did not name it
                print(f"{shared['instrument']}\n")
            show = _print_tokens if part == "round" else _print_repairs if part in REPAIRED else _print_leaks
            show(_Prompts(rows))


def _print_leaks(prompts: _Prompts) -> None:
    has_back = prompts.rows[0]["seen"][1] is not None
    lines: list[tuple[Any, ...]] = []
    for note, own in prompts.groups():
        lines.append(_leak_line(f"{note} the source", own, "cut", "swap", 0))
        if has_back:
            lines.append(_leak_line(f"{TURNED[note]} the source", own, "cut back", "swap back", 1))
    head = ("target stands", "n", "sense seen", "rows of the swap", "leak by rows", "prompt of the swap", "on all ways")
    _table(head, lines)
    lines = []
    for item, role in enumerate(("target", "source")):
        kept, alone = (prompts.asked(f"{kind} {role}", 1 - item) for kind in ("keep", "iso"))
        itself = [_share(prompts.asked(f"{kind} {role}", item)) for kind in ("keep", "iso")]
        lines.append((role, _share(kept), _share(alone), _difference(kept, alone), *itself))
    _table(("rows kept", "shows the other item", "isolated", "difference", "shows itself", "isolated "), lines)
    items = (0, 1) if has_back else (0,)
    leak, both = prompts.leak("full", *items), prompts.asked("full", 0, 1)
    repairs: list[tuple[Any, ...]] = [("none", _share(leak), "", _share(both), "")]
    for how in REPAIRS:
        leak_after, both_after = prompts.leak(f"repair {how}", *items), prompts.asked(f"repair {how}", 0, 1)
        less, more = _difference(leak, leak_after), _difference(both_after, both)
        repairs.append((how, _share(leak_after), less, _share(both_after), more))
    _table(("repair of both items", "leak seen", "less by", "both items seen", "more by"), repairs)
    _print_screen(prompts)


def _leak_line(name: str, prompts: _Prompts, cut: str, swap: str, item: int) -> tuple[Any, ...]:
    full, rows, whole = (prompts.leak(condition, item) for condition in ("full", cut, swap))
    by_rows, on_all_ways = _difference(full, rows), _difference(full, whole)
    return name, len(prompts.rows), _share(full), _share(rows), by_rows, _share(whole), on_all_ways


def _print_screen(prompts: _Prompts) -> None:
    """Whether the screen knows, without an image, for which prompts the leak is seen."""
    possible = _Prompts([row for row in prompts.rows if row["screen"]["is_possible"]])
    leak = possible.leak("full", 0) - possible.leak("cut", 0)
    for name, meaning in (("total", "source hidden"), ("swapped", "source swapped")):
        effect = np.array([row["screen"][name] for row in possible.rows], dtype=float)
        up, down = effect[leak > 0], effect[leak <= 0]
        if len(up) and len(down):
            wins = (up[:, None] > down).mean() + 0.5 * (up[:, None] == down).mean()
            seen = f"a leak by rows above 0 ({len(up)} of {len(leak)} prompts)"
            print(f"Screen, {meaning}: mean effect {effect.mean():.3f}, AUROC {wins:.2f} for {seen}.\n")


def _print_tokens(prompts: _Prompts) -> None:
    full, empty = prompts.asked("full", 0), prompts.asked("empty", 0)
    print(f"The item is seen with the whole prompt in {_share(full)} %, with the empty one in {_share(empty)} %.\n")
    lines = []
    for token in ("round", "color", "shape"):
        carrier = _difference(prompts.asked(f"keep {token}", 0), empty)
        drops = [_difference(full, prompts.asked(f"drop {token}, {operator}", 0)) for operator in REMOVALS]
        lines.append((token, carrier, *drops))
    _table(("token", "carrier", *(f"needed ({operator})" for operator in REMOVALS)), lines)


def _print_repairs(prompts: _Prompts) -> None:
    full, cut = prompts.leak("full", 0), prompts.leak("cut", 0)
    print(f"Sense seen {_share(full)} %, with clean rows {_share(cut)} %: leak {_difference(full, cut)}.\n")
    outcomes = [row["repair"] for row in prompts.rows]
    accepted = [each for each in outcomes if each["accepted"]]
    share = _share([float(each["accepted"]) for each in outcomes])
    print(f"Repairs accepted: {len(accepted)} of {len(outcomes)} prompts, {share} %.\n")
    lines: list[tuple[Any, ...]] = []
    for name, own in (("put to the test", [each for each in outcomes if each["chosen"]]), ("accepted", accepted)):
        if len(own) > 1:
            lines.append((name, len(own), *_before_after(own, ""), *_before_after(own, "intent_")))
    head = ("repairs", "n", "leak before", "after", "change", "both items before", "after ", "change ")
    _table(head, lines)


def _before_after(outcomes: Sequence[dict[str, Any]], what: str) -> tuple[str, str, str]:
    before, after = (np.array([each[what + key]["value"] for each in outcomes]) for key in ("before", "after"))
    return _share(before), _share(after), _difference(after, before)

"""Change lines, one at a time, and see whether the tests of their area notice.

    python -m tests.mutation --out mutation.jsonl --sample 40
    python -m tests.mutation --out mutation.jsonl --file benchmarks/runs/store.py --survivors

Results are appended as they come; the same command goes on from there, and a file that was edited begins anew. A
survivor is a missing test, a line that nobody needs, or a change that changes nothing: those are listed in
``equivalent.txt`` with the reason.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.mutation.changes import Change, changes_of
from tests.mutation.trials import Covering, Tree, passed, tests_by_line
from tests.repository.sources import ROOT

#: Files that matter most, and the tests of their area.
AREAS: dict[str, tuple[str, ...]] = {
    "t2ictl/session/session.py": ("tests/session",),
    "t2ictl/session/call.py": ("tests/session",),
    "t2ictl/session/mover.py": ("tests/session",),
    "t2ictl/guidance/optimize.py": ("tests/guidance", "tests/session/test_moves.py"),
    "t2ictl/attention/processor.py": ("tests/attention",),
    "t2ictl/settings/store.py": ("tests/settings",),
    "benchmarks/runs/store.py": ("tests/benchmarks/test_bench_integrity.py", "tests/benchmarks/test_bench_runs.py"),
}
EQUIVALENT = Path(__file__).parent / "equivalent.txt"
MANY = 150  # tests of one change at most, the quickest ones
SLACK = 20.0  # seconds to start, beside four times what all tests take


def sampled(changes: Sequence[Change], count: int | None, seed: int, name: str) -> list[Change]:
    """Draw some of the changes of a file, the same ones in every run."""
    if count is None or count >= len(changes):
        return list(changes)
    drawn = random.Random(f"{seed} {name}").sample(range(len(changes)), count)
    return [changes[place] for place in sorted(drawn)]


def read_results(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Results by file and key; of two the later one."""
    if not out.exists():
        return {}
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(each["file"], each["key"]): each for each in lines}


def equivalents() -> dict[str, str]:
    """Reasons by file, owner, and change."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines() if EQUIVALENT.exists() else []
    pairs = [line.partition("  # ") for line in lines if line and not line.startswith("#")]
    return {change.strip(): reason for change, _, reason in pairs}


def said(result: dict[str, Any]) -> str:
    """A change in one line, as ``equivalent.txt`` has it."""
    before, after = (" ".join(result[key].split()) for key in ("before", "after"))
    return f"{result['file']} {result['owner']}: {before} -> {after}"


def run(options: argparse.Namespace, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Try what was not tried yet."""
    known = read_results(options.out)
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in files}
    todo: dict[str, list[Change]] = {}
    for name, source in sources.items():
        changes = sampled(changes_of(source), options.sample, options.seed, name)
        left = [each for each in changes if _is_open(known.get((name, each.key)), options.survivors)]
        todo |= {name: left} if left else {}
    with tempfile.TemporaryDirectory(prefix="mutation-") as home:
        tree = Tree(ROOT, Path(home))
        area = {name: tuple(options.tests or AREAS[name]) for name in todo}
        for tests, group in groupby(sorted(todo, key=lambda name: area[name]), key=lambda name: area[name]):
            names = list(group)
            print(f"{', '.join(names)}: first the tests without any change", file=sys.stderr, flush=True)
            covering = tests_by_line(tree, names, tests, options.baseline)
            for name in names:
                for change in todo[name]:
                    yield {"file": name, **_tried(tree, name, change, sources[name], covering)}


def _tried(tree: Tree, name: str, change: Change, source: str, covering: Covering) -> dict[str, Any]:
    tests = covering.tests[name].get(change.line, [])[:MANY]
    began = time.monotonic()
    with tree.changed(name, change.apply(source)):
        status = tree.run(tests, SLACK + 4 * covering.seconds) if tests else 0
    fields = {key: getattr(change, key) for key in ("key", "owner", "kind", "line", "before", "after")}
    verdict = "survived" if passed(status) else "timeout" if status is None else "killed"
    return {**fields, "tests": len(tests), "verdict": verdict, "seconds": round(time.monotonic() - began, 1)}


def _is_open(result: dict[str, Any] | None, survivors: bool) -> bool:
    return result is None or (survivors and result["verdict"] == "survived")


def report(options: argparse.Namespace, files: Sequence[str]) -> None:
    """Print the score of each file, and what survived without a reason."""
    known, reasons = read_results(options.out), equivalents()
    survivors, killed_in_all, counted_in_all = [], 0, 0
    for name in files:
        source = (ROOT / name).read_text(encoding="utf-8")
        results = [known[name, each.key] for each in changes_of(source) if (name, each.key) in known]
        excused = [each for each in results if each["verdict"] == "survived" and said(each) in reasons]
        left = [each for each in results if each["verdict"] == "survived" and said(each) not in reasons]
        counted = len(results) - len(excused)
        killed_in_all, counted_in_all = killed_in_all + counted - len(left), counted_in_all + counted
        print(f"{name}: {counted - len(left)} of {counted} noticed, {len(excused)} more change nothing")
        survivors += left
    if counted_in_all:
        print(f"score: {100 * killed_in_all / counted_in_all:.1f} % of {counted_in_all}")
    for each in survivors:
        print(f"survived: line {each['line']}, {each['tests']} tests: {said(each)}")


def main() -> None:
    """Read options, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, one object a line; a run goes on from them")
    parser.add_argument("--file", action="append", choices=AREAS, help="only this file; may be given again")
    parser.add_argument("--tests", action="append", help="run these, and not all tests of the area; may be given again")
    parser.add_argument("--sample", type=int, help="changes of each file, drawn by --seed; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survivors", action="store_true", help="try survivors again, after tests were written")
    parser.add_argument("--baseline", type=float, default=1800, help="seconds that the tests of one area may take")
    parser.add_argument("--report", action="store_true", help="try nothing, report what is there")
    options = parser.parse_args()
    files = options.file or list(AREAS)
    if not options.report:
        with options.out.open("a", encoding="utf-8") as handle:
            for result in run(options, files):
                print(json.dumps(result), file=handle, flush=True)
                print(f"{result['verdict']:8} {result['seconds']:6} {said(result)}", file=sys.stderr, flush=True)
    report(options, files)


if __name__ == "__main__":
    main()

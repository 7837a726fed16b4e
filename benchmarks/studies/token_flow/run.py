"""Run the study of token flow on an embedded model: ``t2ictl bench study token-flow --out DIR``.

Images are kept in the folder, so the same command goes on after a crash; ``--shard 1/2`` and ``2/2`` share
the prompts out. ``--table`` prints what is there.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import t2ictl
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.studies.token_flow.cases import PARTS, Case, Part, cases, conditions_of
from t2ictl.benchmarks.studies.token_flow.planted import planted_leak
from t2ictl.errors import BadSetting
from t2ictl.processors.token_flow.analysis.estimates import leak_cell
from t2ictl.processors.token_flow.analysis.repair import repair_leak
from t2ictl.processors.token_flow.analysis.scoring import Request, Scoring
from t2ictl.processors.token_flow.analysis.screen import screen
from t2ictl.settings.files import write_text

__all__ = ["main", "run_case"]

# How much of a sense is planted: images then have it about as often as those of the word itself.
PLANTED = 1.0
STEPS, GUIDANCE, BATCH = 20, 3.0, 12


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a part of the study is run with.

    Args:
        pipe: the pipeline.
        folder: where images are kept.
        seeds: of all conditions.
        confirm: seeds on which repairs are confirmed.
    """

    pipe: Any
    folder: Path
    seeds: range
    confirm: range


def run_case(part: Part, case: Case, setting: Setting) -> dict[str, Any]:
    """Make and judge all images of one prompt.

    Args:
        part: the part of the study.
        case: the prompt.
        setting: pipeline, folder and seeds.

    Returns:
        Plain JSON data: what the judge said by condition, the screen, and the outcome of the automatic repair.
    """
    scoring = Scoring(
        setting.pipe,
        Request(prompt=case.prompt, steps=STEPS, guidance_scale=GUIDANCE),
        case.items,
        "shapes",
        seeds=setting.seeds,
        confirm=setting.confirm,
        folder=setting.folder,
        batch=BATCH,
    )
    make, items = scoring.conditions, scoring.items
    scores = scoring.score(conditions_of(part, make, items))
    found: dict[str, Any] = {
        "prompt": case.prompt,
        "note": case.note,
        "questions": [*scores.questions],
        "p": scores.to_dict(),
    }
    found["asked"] = [each.asked for each in case.items]
    if len(items) == 2:
        found["seen"] = [next(iter(each.senses.values()), None) for each in case.items]
        cell = next(
            c for c in screen(make, items, scoring.encode) if (c.target, c.source) == (items[0].name, items[1].name)
        )
        found["screen"] = cell.to_dict()
    if part in ("planted", "no leak"):
        seen = found["seen"][0]
        leak = leak_cell(items[0], items[1], "sense", seen, scores.of("full", seen), scores.of("cut", seen))
        found["repair"] = repair_leak(make, items, leak, scoring.score).to_dict()
    return found


def _seeds(part: Part, count: int, confirm: int) -> tuple[range, range]:
    """Seeds of a part; every part has its own."""
    first = 10_000 * (1 + PARTS.index(part))
    return range(first, first + count), range(first + count, first + count + confirm)


@contextlib.contextmanager
def _planted(pipe: Any, part: Part) -> Iterator[None]:
    with planted_leak(pipe, PLANTED) if part == "planted" else contextlib.nullcontext():
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run parts of the study, or print their tables.

    Args:
        arguments: command-line arguments; None for those of the process.

    Returns:
        Exit status 0.
    """
    parser = ArgumentParser(prog="t2ictl bench study token-flow", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--model", default="shapes", help="an embedded model with a U-Net, or a diffusers folder")
    parser.add_argument("--part", choices=PARTS, action="append", help="parts; default: all")
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--prompts", type=int, default=100, help="most prompts of a part")
    parser.add_argument("--seeds", type=int, default=4, help="images of each condition")
    parser.add_argument("--confirm", type=int, default=12, help="further seeds that confirm a repair")
    parser.add_argument("--shard", default="1/1", help="this process's share, as 1/2")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    options = parser.parse_args(arguments)
    if options.table:
        from t2ictl.benchmarks.studies.token_flow.table import print_tables

        print_tables(options.out)
        return 0
    number, of = (int(each) for each in options.shard.split("/"))
    if not 1 <= number <= of:
        raise BadSetting(f"The shard {options.shard!r} is none.", "For example 1/2.")
    pipe = t2ictl.load(options.model, device="cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.part or PARTS:
        seeds, confirm = _seeds(part, options.seeds, options.confirm)
        setting = Setting(pipe=pipe, folder=options.out / "cells", seeds=seeds, confirm=confirm)
        rows = []
        chosen = cases(part, options.split, options.prompts)[number - 1 :: of]
        with _planted(pipe, part):
            for case in tqdm(chosen, desc=part, file=sys.stderr):
                rows.append(run_case(part, case, setting))
        content = {"part": part, "split": options.split, "seeds": [*seeds], "confirm": [*confirm], "rows": rows}
        path = options.out / f"{part.replace(' ', '_')}.{number}-of-{of}.json"
        write_text(path, json.dumps(content, indent=1))
    return 0

"""Measure a model on the suites: ``python -m t2ictl.benchmarks.shapes.evaluate.evaluate --model NAME``.

The intervals take images as independent. Where a kind has fewer prompts than images, prompts
repeat with other seeds, and the intervals of that kind are too narrow.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import t2ictl
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.embedded import add_model, as_measured, identity, open_model
from t2ictl.benchmarks.shapes.evaluate.shares import percent, wilson
from t2ictl.benchmarks.shapes.evaluate.words import Trial, words_table
from t2ictl.shapes.captions import Expectation
from t2ictl.shapes.embedded import DEFAULT, MODELS
from t2ictl.shapes.prompts import KINDS, all_prompts, suite
from t2ictl.shapes.verdict import SEMANTIC_FAILURES, Verdict, judge_expectation

#: Columns of the table.
OUTCOMES = {
    "is_strict": "strict",
    "has_all": "all there",
    "is_bound": "bound",
    "has_no_extra": "nothing extra",
    "is_well_formed": "well formed",
    "is_related": "related",
}
#: How ``shapes`` is measured; the guidance was chosen on tuning pairs (docs/shapes.md).
STEPS, GUIDANCE = MODELS[DEFAULT].steps, MODELS[DEFAULT].guidance
#: A kind of failure counts as one of the model's if it has at least this part of its failures.
NOTABLE = 0.05


def trials(kind: Any, split: Any, count: int, seed: int) -> list[tuple[Expectation, int]]:
    """List what to generate: prompts, each with its own seed.

    Args:
        kind: of the suite.
        split: of the suite.
        count: how many trials.
        seed: of the suite, and the first seed of an image.

    Returns:
        Expectations with seeds; prompts repeat, with other seeds, when the suite is smaller.

    Example:
        >>> len(trials("pair", "tune", 3, 0))
        3
    """
    prompts = suite(kind, split, min(count, len(all_prompts(kind, split))), seed)
    return [(prompts[i % len(prompts)], 1000 * seed + i) for i in range(count)]


def generate(pipe: Any, batch: Sequence[tuple[Expectation, int]], steps: int, guidance: float) -> list[Image.Image]:
    """Make one image a trial with the ordinary pipeline.

    Args:
        pipe: the plain pipeline.
        batch: expectations with seeds.
        steps: of the scheduler.
        guidance: classifier-free guidance scale.

    Returns:
        Images in order.
    """
    generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
    prompts = [item.prompt for item, _ in batch]
    more = t2ictl.own_arguments(pipe)
    images = pipe(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, **more).images
    return list(images)


def summarize(kind: str, judged: Sequence[Trial]) -> dict[str, Any]:
    """Count outcomes and failure kinds.

    Args:
        kind: of the suite.
        judged: at least one expectation with its verdict.

    Returns:
        Plain values: images, different prompts, for every outcome the share and its interval
        (of relations only if any was asked), and counts of failures.
    """
    total, verdicts = len(judged), [verdict for _, verdict in judged]
    row: dict[str, Any] = {"kind": kind, "n": total, "prompts": len({asked.prompt for asked, _ in judged})}
    for outcome in OUTCOMES:
        if outcome == "is_related" and all(asked.relation is None for asked, _ in judged):
            continue
        hits = sum(verdict.outcomes()[outcome] for verdict in verdicts)
        low, high = wilson(hits, total)
        row[outcome] = {"hits": hits, "share": round(hits / total, 4), "low": round(low, 4), "high": round(high, 4)}
    failures = Counter(verdict.failure for verdict in verdicts if verdict.failure)
    row["failures"] = dict(failures.most_common())
    semantic = sum(count for name, count in failures.items() if name in SEMANTIC_FAILURES)
    row["semantic_share_of_failures"] = round(semantic / max(1, sum(failures.values())), 3)
    return row


def measure(pipe: Any, kind: str, split: str, count: int, seed: int, options: argparse.Namespace) -> list[Trial]:
    """Generate and judge one suite.

    Args:
        pipe: the plain pipeline.
        kind: of the suite.
        split: of the suite.
        count: trials.
        seed: of the suite and the images.
        options: ``steps``, ``guidance``, ``batch`` and ``keep``.

    Returns:
        Every expectation with its verdict.
    """
    todo = trials(kind, split, count, seed)
    judged: list[tuple[Expectation, Verdict]] = []
    for start in range(0, count, options.batch):
        batch = todo[start : start + options.batch]
        images = generate(pipe, batch, options.steps, options.guidance)
        for (item, image_seed), image in zip(batch, images, strict=True):
            judged.append((item, judge_expectation(image, item)))
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                said = judged[-1][1].failure or "right"
                image.save(options.keep / f"{kind}-{image_seed:05d}-{said}-{item.prompt.replace(' ', '_')}.png")
    return judged


def show(row: dict[str, Any]) -> str:
    """Format a summary as a line of a table, shares in percent with intervals.

    Args:
        row: from :func:`summarize`.

    Returns:
        One Markdown table row.
    """
    cells = [percent(row[outcome]["hits"], row["n"]) if outcome in row else "-" for outcome in OUTCOMES]
    failures = ", ".join(f"{name} {count}" for name, count in row["failures"].items())
    return f"| {row['kind']} | {row['n']} | {row['prompts']} | " + " | ".join(cells) + f" | {failures or 'none'} |"


def show_failures(row: dict[str, Any]) -> str:
    """Count the malformed images, and list which failures of meaning there are.

    Args:
        row: from :func:`summarize`.

    Returns:
        One line.
    """
    total = sum(row["failures"].values())
    notable = [
        f"{name} {100 * count / total:.0f} %"
        for name, count in row["failures"].items()
        if name in SEMANTIC_FAILURES and count >= NOTABLE * total
    ]
    malformed = percent(row["failures"].get("malformed", 0), row["n"])
    return (
        f"{row['kind']}: malformed {malformed} % of the images; of {total} failures, kinds of meaning "
        f"with at least {100 * NOTABLE:.0f} %: {', '.join(notable) or 'none'}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure the asked-for kinds and print one table row each."""
    parser = ArgumentParser(prog="python -m t2ictl.benchmarks.shapes.evaluate.evaluate", description=__doc__)
    add_model(parser)
    parser.add_argument("--prompts", type=int, default=100, help="images a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="folder for the images")
    parser.add_argument("--words", action="store_true", help="a second table: accuracy of every word")
    parser.add_argument("--json", type=Path, default=None, help="file for the summaries, one JSON line a kind")
    options = as_measured(parser.parse_args(arguments))
    torch.set_num_threads(options.threads)
    pipe = open_model(options.model)
    how = f"{options.steps} steps, guidance {options.guidance:g}"
    print(f"{identity(options.model)}, split {options.split}, seed {options.seed}, {how}\n")
    print(f"| kind | n | prompts | {' | '.join(OUTCOMES.values())} | failures |")
    print("|---" * (len(OUTCOMES) + 4) + "|")
    rows, judged = [], []
    for kind in options.kinds:
        judged += (trials_of_kind := measure(pipe, kind, options.split, options.prompts, options.seed, options))
        rows.append(summarize(kind, trials_of_kind))
        print(show(rows[-1]), flush=True)
        if options.json is not None:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print("", *map(show_failures, rows), sep="\n")
    if options.words:
        print("", words_table(judged), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

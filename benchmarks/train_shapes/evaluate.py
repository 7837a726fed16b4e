"""Measure a model on the suites: ``python -m t2ictl.benchmarks.train_shapes.evaluate --model DIR``."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from t2ictl.shapes import model_path
from t2ictl.shapes.captions import Expectation
from t2ictl.shapes.prompts import KINDS, suite
from t2ictl.shapes.verdict import SEMANTIC_FAILURES, Verdict, judge_expectation

#: 97.5 % point of the normal distribution, for intervals of 95 %.
NORMAL_POINT = 1.959964
OUTCOMES = ("strict", "has_all", "is_bound", "has_no_extra", "is_well_formed")
#: Single prompts are few in a split, so every kind is filled up with further seeds of the same prompts.
UNIQUE = {"single": 8, "pair": 200, "triple": 200, "texture": 15, "size": 15, "attributes": 200}


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Give the 95 % interval of a share by Wilson's formula.

    Args:
        hits: successes.
        total: trials, at least 1.

    Returns:
        Lower and upper bound, 0 to 1.

    Example:
        >>> [round(bound, 3) for bound in wilson(198, 200)]
        [0.964, 0.997]
    """
    share, z2 = hits / total, NORMAL_POINT**2
    center = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = NORMAL_POINT / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, center - half), min(1.0, center + half)


def trials(kind: Any, split: Any, count: int, seed: int) -> list[tuple[Expectation, int]]:
    """List what to generate: prompts, each with its own seed.

    Args:
        kind: of the suite.
        split: of the suite.
        count: how many trials.
        seed: of the suite, and the first seed of a picture.

    Returns:
        Expectations with seeds; prompts repeat, with other seeds, when the suite is smaller.

    Example:
        >>> len(trials("pair", "tune", 3, 0))
        3
    """
    prompts = suite(kind, split, min(count, UNIQUE[kind]), seed)
    return [(prompts[i % len(prompts)], 1000 * seed + i) for i in range(count)]


def generate(
    pipe: StableDiffusionPipeline, batch: Sequence[tuple[Expectation, int]], steps: int, guidance: float
) -> list[Image.Image]:
    """Make one picture a trial with the ordinary pipeline.

    Args:
        pipe: the plain pipeline.
        batch: expectations with seeds.
        steps: DDIM steps.
        guidance: classifier-free guidance scale.

    Returns:
        Images in order.
    """
    generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
    prompts = [item.prompt for item, _ in batch]
    return pipe(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images


def summarize(kind: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Count outcomes and failure kinds.

    Args:
        kind: of the suite.
        verdicts: at least one.

    Returns:
        Plain values: for every outcome the share and its interval, and counts of failures.
    """
    total = len(verdicts)
    row: dict[str, Any] = {"kind": kind, "n": total}
    for outcome in OUTCOMES:
        hits = sum(getattr(v, "is_strict" if outcome == "strict" else outcome) for v in verdicts)
        low, high = wilson(hits, total)
        row[outcome] = {"share": round(hits / total, 4), "low": round(low, 4), "high": round(high, 4)}
    failures = Counter(v.failure for v in verdicts if v.failure)
    row["failures"] = dict(failures.most_common())
    semantic = sum(count for name, count in failures.items() if name in SEMANTIC_FAILURES)
    row["semantic_share_of_failures"] = round(semantic / max(1, sum(failures.values())), 3)
    return row


def measure(
    pipe: StableDiffusionPipeline, kind: str, split: str, count: int, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Generate and judge one suite.

    Args:
        pipe: the plain pipeline.
        kind: of the suite.
        split: of the suite.
        count: trials.
        seed: of the suite and the pictures.
        options: ``steps``, ``guidance``, ``batch`` and ``keep``.

    Returns:
        The summary.
    """
    todo, verdicts = trials(kind, split, count, seed), []
    for start in range(0, count, options.batch):
        batch = todo[start : start + options.batch]
        images = generate(pipe, batch, options.steps, options.guidance)
        for (item, picture_seed), image in zip(batch, images, strict=True):
            verdicts.append(judge_expectation(image, item))
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                name = f"{kind}-{picture_seed:05d}-{verdicts[-1].failure or 'right'}-{item.prompt.replace(' ', '_')}"
                image.save(options.keep / f"{name}.png")
    return summarize(kind, verdicts)


def show(row: dict[str, Any]) -> str:
    """Format a summary as a line of a table, shares in percent with intervals.

    Args:
        row: from :func:`summarize`.

    Returns:
        One Markdown table row.
    """
    cells = [f"{100 * row[o]['share']:.1f} [{100 * row[o]['low']:.1f}, {100 * row[o]['high']:.1f}]" for o in OUTCOMES]
    failures = ", ".join(f"{name} {count}" for name, count in row["failures"].items())
    return f"| {row['kind']} | {row['n']} | " + " | ".join(cells) + f" | {failures or 'none'} |"


def main(arguments: list[str] | None = None) -> int:
    """Measure the asked-for kinds and print one table row each."""
    parser = argparse.ArgumentParser(prog="python -m t2ictl.benchmarks.train_shapes.evaluate", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=model_path(), help="a diffusers folder; default: the packaged one"
    )
    parser.add_argument("--prompts", type=int, default=100, help="pictures a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="folder for the pictures")
    parser.add_argument("--json", type=Path, default=None, help="file for the summaries, one JSON line a kind")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    pipe = StableDiffusionPipeline.from_pretrained(str(options.model))
    pipe.set_progress_bar_config(disable=True)
    print("| kind | n | strict | all there | bound | nothing extra | well formed | failures |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        row = measure(pipe, kind, options.split, options.prompts, options.seed, options)
        print(show(row), flush=True)
        if options.json is not None:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

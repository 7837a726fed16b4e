"""Which reading of joint attention, which block and which segment of the text row point best.

Teacher-forced at several noise levels, and on generated images for the readings that the library records.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from t2ictl import Recording
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.studies.word_maps.forced import BOTH, MEAN, SEGMENTS, Key, Scores, score_forced
from t2ictl.benchmarks.studies.word_maps.generated import KINDS, score_generated
from t2ictl.benchmarks.studies.word_maps.readings import READINGS
from t2ictl.benchmarks.studies.word_maps.scoring import shown
from t2ictl.shapes.sampling import sample_scene
from t2ictl.shapes.world import Split

__all__ = ["NOISES", "drawn_scores", "print_tables"]

#: Of the latent, from the noise in which objects get their places to that in which they get their edges.
NOISES = (0.9, 0.8, 0.6, 0.35)
WORDS = ("noun", "color")
#: The readings that a session records.
RECORDED: tuple[Literal["text", "all_keys", "text_to_image", "output_space"], ...] = (
    "text",
    "all_keys",
    "text_to_image",
    "output_space",
)


def drawn_scores(pipe: Any, options: argparse.Namespace) -> Scores:
    """Score drawn scenes: single objects, or combinations of the tuning split.

    Args:
        pipe: a pipeline of SD 3.
        options: ``objects``, ``scenes``, ``noise`` and ``seed``.

    Returns:
        The scores.
    """
    generator = np.random.default_rng(options.seed)
    split: Split | None = None if options.objects == 1 else "tune"
    scenes = [sample_scene(options.objects, generator, split=split, marked_share=0) for _ in range(options.scenes)]
    return score_forced(pipe, scenes, options.noise, options.seed)


def print_tables(pipe: Any, options: argparse.Namespace) -> None:
    """Print the tables: readings, segments, blocks, attention to text, generated images.

    Args:
        pipe: a pipeline of SD 3.
        options: ``objects``, ``scenes``, ``generated``, ``noise`` and ``seed``.
    """
    scores = drawn_scores(pipe, options)
    levels = [f"s = {noise:g}" for noise in options.noise]
    blocks = list(dict.fromkeys(key.block for key in scores.words if key.block != MEAN))
    segments = [name for name in SEGMENTS if any(key.segment == name for key in scores.words)]
    single = [block for block in blocks if block.isdigit()]
    chance = f"by chance {100 * np.mean(scores.chance):.1f} % point"
    print(
        f"{options.objects} drawn objects, pointing in percent and overlap, mean of {len(single)} blocks; {chance}.\n"
    )
    print_table(("reading", "word", "n", *levels), _rows(scores, options.noise, [MEAN], [BOTH]))
    print()
    head = ("reading", "segment", "word", "n", *levels)
    print_table(head, _rows(scores, options.noise, [MEAN], segments, named="segment"))
    print()
    head = ("reading", "block", "word", "n", *levels)
    print_table(head, _rows(scores, options.noise, blocks, [BOTH], named="block"))
    print()
    print_table(("attention to text, percent", *levels), _mass_rows(scores, options.noise, single))
    if not options.generated:
        return
    print()
    print_table(("generated", "reading", "word", "n", "pointing", "overlap"), _generated_rows(pipe, options))


def _rows(
    scores: Scores,
    noises: Sequence[float],
    blocks: Sequence[str],
    segments: Sequence[str],
    named: str = "",
) -> Iterator[tuple[object, ...]]:
    """One row a reading, block, segment and kind of word; a column a noise level."""
    for reading in READINGS:
        for block in blocks:
            for segment in segments:
                for word in WORDS:
                    own = [scores.words[Key(noise, reading, block, segment, word)] for noise in noises]
                    name = {"": (), "segment": (segment,), "block": (block,)}[named]
                    yield READINGS[reading], *name, word, len(own[0]), *(", ".join(shown(each)) for each in own)


def _mass_rows(scores: Scores, noises: Sequence[float], blocks: Sequence[str]) -> Iterator[tuple[object, ...]]:
    for block in blocks:
        yield f"block {block}", *(f"{100 * np.mean(scores.mass[noise, block]):.1f}" for noise in noises)


def _generated_rows(pipe: Any, options: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    every: dict[str, Recording] = {kind: Recording(layers=("joint",), kind=kind, per_step=False) for kind in RECORDED}
    usual = {"default layers": Recording(per_step=False)}
    for kind in KINDS:
        found = score_generated(pipe, kind, options.generated, options.seed, every | usual)
        for way in (*every, *usual):
            for word in WORDS:
                own = found.get((way, word), [])
                yield kind, READINGS.get(way, f"{READINGS['text']}, {way}"), word, len(own), *shown(own)

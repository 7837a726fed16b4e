"""Maps of words on images that the model makes itself, where the judge finds all of them right.

Legend: ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from t2ictl import Recording, controlled, own_arguments
from t2ictl.benchmarks.shapes.evaluate.evaluate import GUIDANCE, STEPS, trials
from t2ictl.benchmarks.studies.word_maps.scoring import Score, found_cells, score_map
from t2ictl.shapes.prompts import Kind
from t2ictl.shapes.verdict import judge_expectation

__all__ = ["KINDS", "score_generated"]

KINDS: tuple[Kind, ...] = ("single", "pair", "triple")
BATCH = 10


def score_generated(
    pipe: Any, kind: Kind, count: int, seed: int, records: Mapping[str, Recording | bool]
) -> dict[tuple[str, str], list[Score]]:
    """Score the recorded maps of nouns and colors on generated images that are right: means over all steps.

    Args:
        pipe: the plain pipeline.
        kind: of the tuning prompts: ``"single"``, ``"pair"`` or ``"triple"``.
        count: images; those that the judge does not find right are left out.
        seed: of the prompts and the images.
        records: ways to record by name; the same images are made for each.

    Returns:
        For each way and kind of word the scores, one a word.
    """
    todo = trials(kind, "tune", count, seed)
    scores: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for start in range(0, count, BATCH):
        batch = todo[start : start + BATCH]
        prompts = [asked.prompt for asked, _ in batch]
        for way, record in records.items():
            noise = [torch.Generator().manual_seed(own) for _, own in batch]
            with controlled(pipe, [], record=record) as session:
                images = pipe(
                    prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise, **own_arguments(pipe)
                ).images
            for row, ((asked, _), image) in enumerate(zip(batch, images, strict=True)):
                verdict = judge_expectation(image, asked)
                if not verdict.is_strict:
                    continue
                for wanted, index in zip(asked.objects, verdict.matched, strict=True):
                    assert index is not None
                    for name, word in (("noun", wanted.shape), ("color", str(wanted.color))):
                        map_YX = session.record.map(word, image=row).numpy()
                        cells_YX = found_cells(image, verdict.found[index], len(map_YX))
                        scores[way, name].append(score_map(map_YX, cells_YX))
    return scores

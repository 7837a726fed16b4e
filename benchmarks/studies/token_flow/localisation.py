"""How well word maps point, ours beside a DAAM-style aggregation.

``t2ictl bench study localisation`` prints the table.

Both read the same images: pairs that the exact judge finds right. DAAM's way (Tang et al., 2023,
arXiv 2210.04885): maps of every head and layer of the down and up blocks, each brought to the size of the latent by
bicubic interpolation, negative values set to 0, added over steps; a word has the mean of its tokens.

Legend: ``B`` image, ``H`` head, ``Q`` image position, ``K`` text token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from tqdm import tqdm

import t2ictl
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.markdown import bounds_text, print_table
from t2ictl.benchmarks.shapes.evaluate.evaluate import GUIDANCE, STEPS
from t2ictl.benchmarks.studies.word_maps.scoring import found_cells, score_map
from t2ictl.evaluation.statistics.intervals import difference_bounds, share_bounds
from t2ictl.evaluation.statistics.resampling import seed_of
from t2ictl.shapes.prompts import HeldOut, suite
from t2ictl.shapes.verdict import judge_expectation

__all__ = ["DaamMaps", "main", "measure"]

BATCH = 10
# Layers of a record by default, and those of the analysis and of `t2ictl maps`.
OURS: dict[str, tuple[str, ...]] = {"record": (), "analysis": ("down.*", "up.*")}
Scores = dict[str, list[tuple[float, float]]]


class DaamMaps:
    """Aggregates maps in DAAM's way while a pipeline runs; the image is that of explicit attention.

    Args:
        pipe: a pipeline with guidance: the second half of its batch is conditional.
        size: rows and columns that all maps are brought to.
    """

    def __init__(self, pipe: Any, size: tuple[int, int]) -> None:
        self._size, self._sum, self._count = size, torch.zeros(()), 0
        self._before = dict(pipe.unet.attn_processors)
        self._pipe = pipe

    def __enter__(self) -> DaamMaps:
        listening = {
            name: _Listening(self) if "attn2" in name and not name.startswith("mid") else AttnProcessor()
            for name in self._before
        }
        self._pipe.unet.set_attn_processor(listening)
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.unet.set_attn_processor(dict(self._before))

    def add(self, weights_BHQK: Tensor) -> None:
        """Add one layer of the conditional rows."""
        rows, columns = self._size
        side = round((weights_BHQK.shape[2] * rows / columns) ** 0.5)
        maps_BHKYX = weights_BHQK.transpose(2, 3).unflatten(3, (side, -1))
        large = F.interpolate(maps_BHKYX.flatten(0, 1), size=self._size, mode="bicubic").clamp_min(0)
        self._sum = self._sum + large.unflatten(0, maps_BHKYX.shape[:2]).sum(dim=1)
        self._count += weights_BHQK.shape[1]

    def map(self, image: int, tokens: Sequence[int]) -> np.ndarray:
        """Return the map of a word: the mean of its tokens, over all that was added."""
        return np.asarray((self._sum[image, list(tokens)].mean(dim=0) / self._count).numpy())


class _Listening:
    def __init__(self, owner: DaamMaps) -> None:
        self._owner = owner

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Any = None, **unused: Any
    ) -> Tensor:
        query, key = (
            attn.head_to_batch_dim(each) for each in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states))
        )
        weights_BHQK = attn.get_attention_scores(query, key).unflatten(0, (-1, attn.heads))
        self._owner.add(weights_BHQK.chunk(2)[1])
        made: Tensor = AttnProcessor()(attn, hidden_states, encoder_hidden_states, attention_mask)
        return made


def measure(pipe: Any, split: HeldOut, prompts: int, seed: int) -> dict[str, dict[str, Scores]]:
    """Score the maps of nouns and colors in all ways, on the same images.

    Args:
        pipe: the embedded model.
        split: tuning or report prompts.
        prompts: pairs, one image each.
        seed: of the images.

    Returns:
        For each kind of word and each way, by prompt, whether each map's maximum is inside the object and the overlap
        of as many highest cells.
    """
    asked = suite("pair", split, prompts, seed)
    found: dict[str, dict[str, Scores]] = {
        kind: {way: defaultdict(list) for way in (*OURS, "daam")} for kind in ("noun", "color")
    }
    for start in tqdm(range(0, prompts, BATCH)):
        part = asked[start : start + BATCH]
        images, records, daam = _recorded(pipe, [each.prompt for each in part], seed + start)
        for row, (each, image) in enumerate(zip(part, images, strict=True)):
            verdict = judge_expectation(image, each)
            if not verdict.is_strict:
                continue
            for wanted, index in zip(each.objects, verdict.matched, strict=True):
                assert index is not None
                for kind, word in (("noun", wanted.shape), ("color", str(wanted.color))):
                    tokens = records[next(iter(OURS))].prompts[row].find(word).tokens
                    maps = {way: record.map(word, image=row).numpy() for way, record in records.items()}
                    for way, map_YX in (maps | {"daam": daam.map(row, tokens)}).items():
                        inside, _, overlap = score_map(map_YX, found_cells(image, verdict.found[index], len(map_YX)))
                        found[kind][way][each.prompt].append((float(inside), overlap))
    return found


def _recorded(pipe: Any, prompts: list[str], seed: int) -> tuple[list[Any], dict[str, Any], DaamMaps]:
    """The same images again and again, with maps read in one way after the other."""
    arguments: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}

    def run() -> list[Any]:
        noise = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
        return list(pipe(prompts, generator=noise, **arguments).images)

    records: dict[str, Any] = {}
    for way, layers in OURS.items():
        with t2ictl.controlled(pipe, [], record=t2ictl.Recording(layers=layers, per_step=False)) as session:
            images = run()
        records[way] = session.record
    with DaamMaps(pipe, (16, 16)) as daam:
        run()
    return images, records, daam


def _means(scores: Scores, column: int) -> np.ndarray:
    return np.array([np.mean([each[column] for each in own]) for own in scores.values()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one row for each kind of word and measure.

    Args:
        arguments: command-line arguments; None for those of the process.

    Returns:
        Exit status 0.
    """
    parser = ArgumentParser(prog="t2ictl bench study localisation", description=__doc__)
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    found = measure(pipe, options.split, options.prompts, options.seed)
    print_table(("word", "measure", "prompts", "way", "value", "DAAM's way", "difference"), _rows(found, options.seed))
    return 0


def _rows(found: dict[str, dict[str, Scores]], seed: int) -> Iterator[tuple[object, ...]]:
    for kind, ways in found.items():
        for column, name in enumerate(("pointing", "overlap")):
            daam = _means(ways["daam"], column)
            for way in OURS:
                ours = _means(ways[way], column)
                cells = [bounds_text(share_bounds(each[:, None])) for each in (ours, daam)]
                change = difference_bounds((ours - daam)[:, None], 10_000, seed_of("maps", seed)).bounds
                yield kind, name, len(ours), way, *cells, bounds_text(change, "+")

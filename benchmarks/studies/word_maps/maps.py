"""Measure whether the maps of words lie on their objects: ``t2ictl bench study word-maps --model DIR``.

Generated: what users see, the maps of :func:`t2ictl.controlled` with ``record=True``, mean over all
steps, on images that the judge finds right. Teacher-forced: drawn images are encoded, noised to
one time, and denoised once with their own honest caption. *Pointing* is the share of words whose
map has its maximum inside the object's outline, the hole of a ring included, where the maps of rings
have it; *on paint* leaves the hole out. *Overlap* is the intersection over union of the painted
cells with as many highest cells of the map.

Legend: ``B`` image, ``H`` head, ``Q`` image position, ``K`` text token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from scipy import ndimage

from t2ictl import controlled
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.shapes.evaluate.evaluate import GUIDANCE, STEPS, generate, trials
from t2ictl.benchmarks.shapes.train.data import to_pixels
from t2ictl.shapes import model_path
from t2ictl.shapes.captions import expectation_of
from t2ictl.shapes.draw import coverage
from t2ictl.shapes.prompts import Kind
from t2ictl.shapes.sampling import sample_scene
from t2ictl.shapes.seeing import Found
from t2ictl.shapes.silhouettes import object_mask, to_array
from t2ictl.shapes.verdict import judge_expectation
from t2ictl.shapes.world import Scene, Split

#: Inside the outline, on paint, overlap.
Score = tuple[bool, bool, float]


@dataclass(kw_only=True)
class Recorder:
    """An attention processor that keeps the mean weights over heads, by map size.

    Args:
        maps: rows of the map to a list of weights of shape ``(B, Q, K)``, one a layer.
    """

    maps: dict[int, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        """Record the weights of a cross-attention layer, then attend as usual."""
        if encoder_hidden_states is not None:
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            weights = attn.get_attention_scores(query, key)
            weights_BQK = weights.unflatten(0, (-1, attn.heads)).mean(dim=1)
            self.maps[int(weights_BQK.shape[1] ** 0.5)].append(weights_BQK)
        return AttnProcessor()(attn, hidden_states, encoder_hidden_states, attention_mask)


def object_cells(scene: Scene, index: int, side: int) -> np.ndarray:
    """Find which cells of a map an object covers by at least a quarter.

    Args:
        scene: a square scene.
        index: of the object.
        side: rows of the map.

    Returns:
        Booleans of shape ``(side, side)``.

    Example:
        >>> object_cells(sample_scene(1, np.random.default_rng(0)), 0, 16).shape
        (16, 16)
    """
    canvas_YX = np.zeros((scene.height, scene.width))
    rows, columns, cover_YX, _ = coverage(scene.objects[index], scene.height, scene.width)
    canvas_YX[rows, columns] = cover_YX
    cell = scene.height // side
    return canvas_YX.reshape(side, cell, side, cell).mean(axis=(1, 3)) > 0.25


def score_map(map_YX: np.ndarray, cells_YX: np.ndarray) -> tuple[bool, bool, float]:
    """Compare a map with the cells of its object.

    Args:
        map_YX: weights.
        cells_YX: booleans, at least one true.

    Returns:
        Whether the maximum lies inside the outline, whether on paint, and the overlap of the
        highest cells, 0 to 1.

    Example:
        >>> score_map(np.array([[0.9, 0.1]]), np.array([[True, False]]))
        (True, True, 1.0)
    """
    order = np.argsort(-map_YX.ravel(), kind="stable")
    truth = cells_YX.ravel()
    top = np.zeros_like(truth)
    top[order[: truth.sum()]] = True
    inside = ndimage.binary_fill_holes(cells_YX).ravel()
    return bool(inside[order[0]]), bool(truth[order[0]]), float((top & truth).sum() / (top | truth).sum())


def word_positions(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Find the tokens of a word that occurs once in a prompt.

    Args:
        tokenizer: fast, with offsets.
        prompt: the text.
        word: to find.

    Returns:
        Token positions, the start token counted.
    """
    start = prompt.index(word)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return [i for i, (left, right) in enumerate(offsets) if left < start + len(word) and right > start]


@torch.no_grad()
def record(pipe: StableDiffusionPipeline, scenes: list[Scene], time: int, seed: int) -> Recorder:
    """Denoise noised drawings once, with their captions, and keep the maps.

    Args:
        pipe: the plain pipeline; its attention processors are replaced.
        scenes: drawn and captioned honestly.
        time: step of the training schedule.
        seed: of the noise.

    Returns:
        The filled recorder.
    """
    recorder = Recorder()
    pipe.unet.set_attn_processor(recorder)
    latents = pipe.vae.encode(to_pixels(scenes)).latent_dist.mean * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    times = torch.full((len(scenes),), time)
    prompts = [expectation_of(scene).prompt for scene in scenes]
    tokens = pipe.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    context = pipe.text_encoder(tokens).last_hidden_state
    pipe.unet(pipe.scheduler.add_noise(latents, noise, times), times, encoder_hidden_states=context)
    return recorder


def measure_maps(
    pipe: StableDiffusionPipeline, objects: int, count: int, time: int, seed: int
) -> dict[tuple[int, str], list[float]]:
    """Score the maps of nouns and colors on drawn scenes: single objects, or combinations of the tuning split.

    Args:
        pipe: the plain pipeline.
        objects: of each scene, 1 to 3.
        count: images.
        time: step of the training schedule, 0 to 999.
        seed: of the scenes and the noise.

    Returns:
        For map size and kind of word: shares of maps that point inside the outline and on
        paint, mean overlap, number of words.
    """
    generator = np.random.default_rng(seed)
    split: Split | None = None if objects == 1 else "tune"
    scenes = [sample_scene(objects, generator, split=split, marked_share=0) for _ in range(count)]
    recorder = record(pipe, scenes, time, seed)
    scores: dict[tuple[int, str], list[Score]] = defaultdict(list)
    for side, layers in recorder.maps.items():
        mean_BQK = torch.stack(layers).mean(dim=0).numpy()
        for weights_QK, scene in zip(mean_BQK, scenes, strict=True):
            prompt = expectation_of(scene).prompt
            for index, item in enumerate(scene.objects):
                cells_YX = object_cells(scene, index, side)
                for kind, word in (("noun", item.look.shape), ("color", item.look.color)):
                    positions = word_positions(pipe.tokenizer, prompt, word)
                    map_YX = weights_QK[:, positions].mean(axis=1).reshape(side, side)
                    scores[side, kind].append(score_map(map_YX, cells_YX))
    return _means(scores)


def found_cells(image: Image.Image, found: Found, side: int) -> np.ndarray:
    """Find which cells of a map a found object covers by at least a quarter.

    Args:
        image: a square image.
        found: from the judge.
        side: rows of the map.

    Returns:
        Booleans of shape ``(side, side)``.

    Example:
        >>> from t2ictl.shapes import find_objects, render
        >>> image = render(sample_scene(1, np.random.default_rng(0)))
        >>> bool(found_cells(image, find_objects(image)[0], 16).any())
        True
    """
    labels_YX, count = ndimage.label(object_mask(to_array(image)))
    centers = ndimage.center_of_mass(labels_YX > 0, labels_YX, range(1, count + 1))
    distances = [abs(row - found.y) + abs(column - found.x) for row, column in centers]
    mask_YX = labels_YX == 1 + int(np.argmin(distances))
    cell = image.height // side
    return mask_YX.reshape(side, cell, side, cell).mean(axis=(1, 3)) > 0.25


def measure_generated(pipe: StableDiffusionPipeline, kind: Kind, count: int, seed: int) -> dict[str, list[float]]:
    """Score the recorded maps of nouns and colors on generated images that are right.

    Args:
        pipe: the plain pipeline.
        kind: of the tuning prompts: ``"single"``, ``"pair"`` or ``"triple"``.
        count: images; those that the judge does not find right are left out.
        seed: of the prompts and the images.

    Returns:
        For each kind of word: shares of maps that point inside the outline and on paint, mean
        overlap, number of words.
    """
    todo = trials(kind, "tune", count, seed)
    scores: dict[str, list[Score]] = defaultdict(list)
    for start in range(0, count, 10):
        batch = todo[start : start + 10]
        with controlled(pipe, [], record=True) as session:
            images = generate(pipe, batch, STEPS, GUIDANCE)
        for row, ((asked, _), image) in enumerate(zip(batch, images, strict=True)):
            verdict = judge_expectation(image, asked)
            if not verdict.is_strict:
                continue
            for wanted, index in zip(asked.objects, verdict.matched, strict=True):
                assert index is not None
                for name, word in (("noun", wanted.shape), ("color", str(wanted.color))):
                    map_YX = session.record.map(word, image=row).numpy()
                    cells_YX = found_cells(image, verdict.found[index], len(map_YX))
                    scores[name].append(score_map(map_YX, cells_YX))
    return _means(scores)


def _means(scores: dict[Any, list[Score]]) -> dict[Any, list[float]]:
    """The mean of each score, and the number of words."""
    return {key: [*np.mean(rows, axis=0).tolist(), float(len(rows))] for key, rows in scores.items()}


def main(arguments: list[str] | None = None) -> int:
    """Print one table row for every map size and kind of word."""
    parser = ArgumentParser(prog="t2ictl bench study word-maps", description=__doc__)
    parser.add_argument("--model", type=Path, default=model_path(), help="a diffusers folder")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--time", type=int, default=500, help="step of the training schedule, 0 to 999")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(str(options.model))
    pipe.set_progress_bar_config(disable=True)
    print_table(("generated", "word", "n", "pointing", "on paint", "overlap"), _generated_rows(pipe, options))
    print()
    print_table(("drawn", "map", "word", "n", "pointing", "on paint", "overlap"), _drawn_rows(pipe, options))
    return 0


def _generated_rows(pipe: StableDiffusionPipeline, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    kinds: tuple[Kind, ...] = ("single", "pair", "triple")
    for kind in kinds:
        for word, means in measure_generated(pipe, kind, options.scenes, options.seed).items():
            yield kind, word, *_cells(means)


def _drawn_rows(pipe: StableDiffusionPipeline, options: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    for objects in (1, 2, 3):
        found = measure_maps(pipe, objects, options.scenes, options.time, options.seed)
        for (side, word), means in sorted(found.items(), reverse=True):
            yield objects, f"{side}x{side}", word, *_cells(means)


def _cells(means: list[float]) -> tuple[str, ...]:
    inside, painted, overlap, total = means
    return f"{total:.0f}", f"{inside:.3f}", f"{painted:.3f}", f"{overlap:.2f}"

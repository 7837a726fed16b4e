"""Maps of words in the cross-attention of a U-Net, by map size.

Legend: ``B`` image, ``H`` head, ``Q`` image position, ``K`` text token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor

from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.shapes.train.data import to_pixels
from t2ictl.benchmarks.studies.word_maps.generated import KINDS, score_generated
from t2ictl.benchmarks.studies.word_maps.scoring import Score, object_cells, score_map
from t2ictl.shapes.captions import expectation_of
from t2ictl.shapes.sampling import sample_scene
from t2ictl.shapes.world import Scene, Split

__all__ = ["Recorder", "measure_maps", "print_tables", "record", "word_positions"]


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


def _means(scores: dict[Any, list[Score]]) -> dict[Any, list[float]]:
    """The mean of each score, and the number of words."""
    return {key: [*np.mean(rows, axis=0).tolist(), float(len(rows))] for key, rows in scores.items()}


def print_tables(pipe: StableDiffusionPipeline, options: argparse.Namespace) -> None:
    """Print one table of generated and one of drawn images.

    Args:
        pipe: the plain pipeline.
        options: ``scenes``, ``generated``, ``time`` and ``seed``.
    """
    if options.generated:
        print_table(("generated", "word", "n", "pointing", "on paint", "overlap"), _generated_rows(pipe, options))
        print()
    print_table(("drawn", "map", "word", "n", "pointing", "on paint", "overlap"), _drawn_rows(pipe, options))


def _generated_rows(pipe: StableDiffusionPipeline, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    for kind in KINDS:
        found = _means(score_generated(pipe, kind, options.generated, options.seed, {"": True}))
        for (_, word), means in found.items():
            yield kind, word, *_cells(means)


def _drawn_rows(pipe: StableDiffusionPipeline, options: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    for objects in (1, 2, 3):
        found = measure_maps(pipe, objects, options.scenes, options.time, options.seed)
        for (side, word), means in sorted(found.items(), reverse=True):
            yield objects, f"{side}x{side}", word, *_cells(means)


def _cells(means: list[float]) -> tuple[str, ...]:
    inside, painted, overlap, total = means
    return f"{total:.0f}", f"{inside:.3f}", f"{painted:.3f}", f"{overlap:.2f}"

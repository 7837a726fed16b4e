"""Teacher-forced maps of a flow model: drawn images, noised to one level, denoised once with their own captions.

Legend: ``P`` block, ``B`` image, ``Q`` image position, ``K`` text position, ``C`` channel, ``Y`` ``X`` rows, columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from t2ictl import own_arguments, parse
from t2ictl.benchmarks.shapes.train.data import to_pixels
from t2ictl.benchmarks.studies.word_maps.readings import JointCall, KernelListener, read_maps, read_mass
from t2ictl.benchmarks.studies.word_maps.scoring import Score, inside_cells, object_cells, score_map
from t2ictl.shapes.captions import expectation_of
from t2ictl.shapes.world import Scene

__all__ = ["BOTH", "MEAN", "Heard", "Key", "Scores", "listen", "score_forced"]

#: The segments of a text row, and their mean; all blocks together.
SEGMENTS, BOTH, MEAN = ("CLIP", "T5"), "both", "mean"


class Key(NamedTuple):
    """What a score is of.

    Args:
        noise: level.
        reading: name.
        block: ``"2"``, ``"0 to 2"``, or :data:`MEAN`.
        segment: of the text row, or :data:`BOTH`.
        word: ``"noun"`` or ``"color"``.
    """

    noise: float
    reading: str
    block: str
    segment: str
    word: str


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What one forward pass told.

    Args:
        maps: by reading ``maps_PBQK``.
        mass_PB: share of their attention that places give to text, in 0 to 1.
    """

    maps: dict[str, Tensor]
    mass_PB: Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of many images.

    Args:
        words: one score a word.
        mass: by noise level and block, one share an image.
        chance: for each object the share of a map's cells that lie inside its outline.
    """

    words: dict[Key, list[Score]] = field(default_factory=lambda: defaultdict(list))
    mass: dict[tuple[float, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    chance: list[float] = field(default_factory=list)


@torch.no_grad()
def listen(pipe: Any, prompts: Sequence[str], x_BCYX: Tensor, noise: float) -> Heard:
    """Denoise once without guidance, and read every block.

    Args:
        pipe: a pipeline of SD 3; it is not changed.
        prompts: ``B`` prompts.
        x_BCYX: latents at the noise level.
        noise: ``s`` of ``(1 - s) image + s noise``, in 0 to 1.

    Returns:
        Maps and shares, mean over heads.
    """
    embeds, _, pooled, _ = pipe.encode_prompt(
        list(prompts), None, None, do_classifier_free_guidance=False, **own_arguments(pipe)
    )
    words_BK = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        words_BK[row, sorted({token for span in parse(pipe, prompt).words() for token in span.every_token})] = True
    patch = pipe.transformer.config.patch_size
    places = (x_BCYX.shape[-2] // patch) * (x_BCYX.shape[-1] // patch)
    blocks: list[tuple[dict[str, Tensor], Tensor]] = []

    def hear(call: JointCall) -> None:
        blocks.append((read_maps(call, places, words_BK), read_mass(call, places)))

    time_B = torch.full((len(prompts),), 1000.0 * noise)
    with KernelListener(places + embeds.shape[1], hear):
        pipe.transformer(hidden_states=x_BCYX, timestep=time_B, encoder_hidden_states=embeds, pooled_projections=pooled)
    return Heard(
        maps={name: torch.stack([maps[name] for maps, _ in blocks]) for name in blocks[0][0]},
        mass_PB=torch.stack([mass_B for _, mass_B in blocks]),
    )


@torch.no_grad()
def score_forced(pipe: Any, scenes: Sequence[Scene], noises: Sequence[float], seed: int, batch: int = 20) -> Scores:
    """Score the maps of nouns and colors of drawn scenes in all readings, blocks and segments.

    Args:
        pipe: a pipeline of SD 3.
        scenes: drawn and captioned honestly.
        noises: noise levels in 0 to 1; an image has the same noise at all of them.
        seed: of the noise.
        batch: images of one forward pass.

    Returns:
        The scores.
    """
    scores, generator = Scores(), torch.Generator().manual_seed(seed)
    config = pipe.vae.config
    for start in range(0, len(scenes), batch):
        part = list(scenes[start : start + batch])
        mean_BCYX = pipe.vae.encode(to_pixels(part)).latent_dist.mean
        image_BCYX = (mean_BCYX - (config.shift_factor or 0.0)) * config.scaling_factor
        noise_BCYX = torch.randn(image_BCYX.shape, generator=generator)
        prompts = [expectation_of(scene).prompt for scene in part]
        for noise in noises:
            heard = listen(pipe, prompts, (1 - noise) * image_BCYX + noise * noise_BCYX, noise)
            _add(scores, pipe, part, prompts, heard, noise)
    return scores


def _add(
    scores: Scores, pipe: Any, scenes: Sequence[Scene], prompts: Sequence[str], heard: Heard, noise: float
) -> None:
    """Score one forward pass."""
    side = round(next(iter(heard.maps.values())).shape[2] ** 0.5)
    for number, mass_B in enumerate(heard.mass_PB.tolist()):
        scores.mass[noise, str(number)] += mass_B
    for row, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        asked = parse(pipe, prompt)
        for index, item in enumerate(scene.objects):
            cells_YX = object_cells(scene, index, side)
            inside_YX = inside_cells(cells_YX)
            scores.chance.append(float(inside_YX.mean()))
            for word, text in (("noun", item.look.shape), ("color", item.look.color)):
                segments = asked.find(text).by_segment
                for reading, maps_PBQK in heard.maps.items():
                    for block, segment, map_Q in _each(maps_PBQK[:, row], segments):
                        map_YX = map_Q.reshape(side, side).numpy()
                        key = Key(noise, reading, block, segment, word)
                        scores.words[key].append(score_map(map_YX, cells_YX, inside_YX))


def _each(maps_PQK: Tensor, segments: Sequence[Sequence[int]]) -> Iterator[tuple[str, str, Tensor]]:
    """The maps of a word by blocks and segment, means over its tokens; and means over segments, and over blocks.

    An update reads the first blocks and runs no others, so the means of the first ones are there too.
    """
    own = {name: maps_PQK[..., list(tokens)].mean(dim=-1) for name, tokens in zip(SEGMENTS, segments, strict=False)}
    own[BOTH] = torch.stack(list(own.values())).mean(dim=0)
    for segment, map_PQ in own.items():
        yield MEAN, segment, map_PQ.mean(dim=0)
        for block, map_Q in enumerate(map_PQ):
            yield str(block), segment, map_Q
        for last in range(1, len(map_PQ) - 1):
            yield f"0 to {last}", segment, map_PQ[: last + 1].mean(dim=0)

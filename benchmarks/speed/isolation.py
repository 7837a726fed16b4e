"""What isolation and reposition cost over plain sampling: operations, generations and paired times.

Operations are those of a target row's self-attention, ``QK`` and ``PV``, counted on real layer shapes with the very
groups that the control makes, over plain attention; beside them the formula ``1 - sum r_i r_j + p sum r_i^2`` over
pairs of different subjects (``r``: share of the image, ``p``: share of positions that read). A portrait's row costs
what a plain row costs, and is made once a story: how many generations that takes stands beside the published code's.

Command: ``t2ictl bench speed isolation``, with ``--pairs 0`` for the operations alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import t2ictl
from t2ictl import Scene, Subject
from t2ictl.attention.grouped import Grouping, grouped_attention
from t2ictl.attention.layers import Layer
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import embedded_model, empty_unet, operations_of
from t2ictl.benchmarks.speed.pairs import device_and_dtype, paired_ratios, print_ratios
from t2ictl.maps.masks import box_mask
from t2ictl.ports.unet import unet_layers
from t2ictl.processors.isolation_reposition.control import published_reading_layers
from t2ictl.processors.isolation_reposition.groups import Reading, isolated_groups, resampled_positions, subject_labels

__all__ = ["Work", "generations", "run", "target_work", "time_ratios"]

#: Share of the image that one subject has, by the number of subjects.
SHARES = {1: 0.3, 2: 0.2, 3: 0.15}
SIZES = {
    "SD 1.5, 512 x 512": ("SD 1.5, 512 x 512", (64, 64)),
    "SDXL, 1024 x 1024": ("SDXL, 1024 x 1024", (128, 128)),
    "SDXL, 1280 x 768": ("SDXL, 1024 x 1024", (96, 160)),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Self-attention of a target row, in plain self-attention.

    Args:
        counted: operations of all layers of the model.
        formula: what the formula says.
        worst: largest share by which a layer is off its own formula.
    """

    counted: float
    formula: float
    worst: float


def _labels(subjects: int, size: tuple[int, int]) -> Tensor:
    """Columns of equal width, each with its share of the image: ``labels_N``."""
    centers = [(2 * number + 1) / (2 * subjects) for number in range(subjects)]
    boxes = [(center - SHARES[subjects] / 2, center + SHARES[subjects] / 2) for center in centers]
    covered = torch.stack([box_mask((left, 0.0, right, 1.0), *size).float() for left, right in boxes])
    return subject_labels(covered).flatten()


def _grouping(labels_N: Tensor, size: tuple[int, int], dropout: float, reads: bool) -> Grouping:
    """The groups of a target row whose portraits are rows 1, 2, ... and show their subjects as large as it has them."""
    drawn_N = torch.rand(len(labels_N), generator=torch.Generator().manual_seed(0)) >= dropout
    readings = {
        number: Reading(
            row=(number,),
            positions=resampled_positions((labels_N == number).view(size), (labels_N == number).view(size)),
            strength=0.0,
            reads=drawn_N,
        )
        for number in (labels_N.unique().tolist() if reads else ())
        if number
    }
    found = isolated_groups(labels_N, readings)
    assert found is not None
    return found


def _operations(attend: Callable[[], Any]) -> int:
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        return operations_of(attend)[1]


def _layer(size: tuple[int, int], subjects: int, dropout: float, reads: bool) -> tuple[float, float]:
    """Operations of one layer, counted and by the formula; one head of one channel stands for all."""
    labels_N = _labels(subjects, size)
    x = torch.zeros(1 + subjects, 1, len(labels_N), 1)
    plain = _operations(lambda: F.scaled_dot_product_attention(x[:1], x[:1], x[:1]))
    if subjects == 1 and not reads:
        return 1.0, 1.0  # nobody to be kept apart from
    grouping = _grouping(labels_N, size, dropout, reads)
    counted = _operations(lambda: grouped_attention(x, x, x, (0,), grouping, 1.0)) / plain
    shares = [float((labels_N == number).float().mean()) for number in range(1, subjects + 1)]
    apart = sum(one * other for i, one in enumerate(shares) for j, other in enumerate(shares) if i != j)
    return counted, 1 - apart + (1 - dropout) * sum(share**2 for share in shares) * reads


def target_work(name: str, subjects: int, *, reads: bool, dropout: float = 0.0) -> Work:
    """Count the self-attention of a target row on a model's layers.

    Args:
        name: a key of ``SIZES``.
        subjects: one to three.
        reads: whether subjects read their portraits, at the published layers.
        dropout: share of positions that do not.

    Returns:
        The work.
    """
    model, cells = SIZES[name]
    unet = empty_unet(model)
    layers = [layer for layer in unet_layers(unet) if layer.kind == "self"]
    family = "sdxl" if model.startswith("SDXL") else "sd"
    reading = set(published_reading_layers(family, layers)) if reads else set()
    known: dict[tuple[tuple[int, int], bool], tuple[float, float]] = {}
    total, counted, formula, worst = 0.0, 0.0, 0.0, 0.0
    for layer in layers:
        key = (layer.size(cells), layer in reading)
        if key not in known:
            known[key] = _layer(key[0], subjects, dropout, key[1])
        weight = _plain_work(layer, unet, key[0])
        total += weight
        counted += weight * known[key][0]
        formula += weight * known[key][1]
        worst = max(worst, abs(known[key][0] / known[key][1] - 1))
    return Work(counted=counted / total, formula=formula / total, worst=worst)


def _plain_work(layer: Layer, unet: UNet2DConditionModel, size: tuple[int, int]) -> float:
    """Operations of plain attention in a layer: ``4 N^2 C``."""
    width = unet.get_submodule(layer.module).to_q.out_features
    return 4.0 * (size[0] * size[1]) ** 2 * width


def generations(subjects: int, scenes: int) -> dict[str, int]:
    """Count the images' worth of denoising that a story takes.

    Args:
        subjects: S.
        scenes: T.

    Returns:
        By way of telling it; rehearsals to their end.
    """
    s, t = subjects, scenes
    return {
        "plain scenes": t,
        "resample": s + t,
        "resample, rehearsed": s + 2 * t,
        "latent, boxes given": s + 2 * t,
        "latent, rehearsed": s + 3 * t,
        "published code": 2 * t * (s + 1),
    }


def time_ratios(side: int, heads: int, subjects: int, pairs: int, device: str | None = None) -> dict[str, list[float]]:
    """Time one layer's target row of two guidance sides, plain and otherwise in turn.

    Args:
        side: of the map (cells).
        heads: of 64 channels each.
        subjects: one to three.
        pairs: measurements of each way.
        device: of torch; None for CUDA where there is one.

    Returns:
        Ratios to plain attention by way: groups, and a dense mask over own and portraits' keys.
    """
    device, dtype = device_and_dtype(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * (1 + subjects), heads, side * side, 64, generator=generator).to(device, dtype)
    labels_N = _labels(subjects, (side, side))
    grouping = _both_sides(_grouping(labels_N, (side, side), 0.5, True)).to(device)
    mask = _dense(labels_N, subjects).to(device)
    sides = [x[2 * number : 2 * number + 2] for number in range(1 + subjects)]

    @torch.no_grad()
    def plain() -> Tensor:
        """Attention of the target row to itself."""
        return F.scaled_dot_product_attention(sides[0], sides[0], sides[0])

    @torch.no_grad()
    def groups() -> Tensor:
        """The same under isolation and reposition, group by group."""
        return grouped_attention(x, x, x, (0, 1), grouping, 64**-0.5)

    @torch.no_grad()
    def dense() -> Tensor:
        """The same by one mask over the keys of the target and of all portraits."""
        keys = torch.cat(sides, dim=2)
        return F.scaled_dot_product_attention(sides[0], keys, keys, attn_mask=mask)

    return paired_ratios(plain, {"groups": groups, "dense mask": dense}, pairs)


def _both_sides(grouping: Grouping) -> Grouping:
    """The same groups for two rows: portrait s is the pair of rows 2s, 2s + 1."""
    every = {id(source): source for group in grouping.groups for source in group.sources}
    both = {
        key: source if source.row is None else replace(source, row=(2 * source.row[0], 2 * source.row[0] + 1))
        for key, source in every.items()
    }
    return Grouping(
        tuple(replace(group, sources=tuple(both[id(each)] for each in group.sources)) for group in grouping.groups)
    )


def _dense(labels_N: Tensor, subjects: int) -> Tensor:
    """Which of its own and all portraits' keys each position reads, as published."""
    q_N1, k_1N = labels_N[:, None], labels_N[None, :]
    parts = [(q_N1 == 0) | (k_1N == 0) | (q_N1 == k_1N)]
    parts += [(q_N1 == number) & (k_1N == number) for number in range(1, subjects + 1)]
    return torch.cat(parts, dim=1)


def story_ratios(pairs: int, steps: int = 10, device: str | None = None) -> dict[str, list[float]]:
    """Time whole stories on the embedded model against plain calls for as many images.

    Args:
        pairs: measurements.
        steps: denoising steps.
        device: of torch; None for CUDA where there is one.

    Returns:
        Ratios of a story of two subjects and four scenes to plain portraits and scenes.
    """
    pipe = embedded_model(device)
    subjects = [Subject(name=name, prompt=f"a {color} {name}") for name, color in (("circle", "red"), ("star", "blue"))]
    scenes = [Scene(prompt="a circle and a star", seed=seed) for seed in range(4)]
    prompts = [*(subject.prompt for subject in subjects), *(scene.prompt for scene in scenes)]

    plain = functools.partial(pipe, prompts, num_inference_steps=steps, guidance_scale=3.0)
    told = functools.partial(t2ictl.story, pipe, subjects, scenes, steps=steps, guidance_scale=3.0)
    return paired_ratios(plain, {"story": told}, pairs)


def run(pairs: int = 20, device: str | None = None) -> None:
    """Print operations, generations and times.

    Args:
        pairs: timed pairs; 0: no times.
        device: of the times; None for CUDA where there is one.
    """
    head = ("self-attention of a target row", "subjects", "share", "isolation", "with portraits", "dropout 0.5")
    print_table((*head, "off by"), _rows())
    print()
    print_table(("generations for 2 subjects, 10 scenes", "number"), generations(2, 10).items())
    if pairs:
        for side, heads in ((32, 20), (64, 10)):
            found = time_ratios(side, heads, 2, pairs, device)
            print_ratios(f"one layer of SDXL, {side} x {side}, {heads} heads, 2 subjects", found)
        title = "a story on the embedded model, 2 subjects, 4 scenes, 10 steps"
        print_ratios(title, story_ratios(pairs, device=device))


def _rows() -> Iterator[tuple[object, ...]]:
    for name in SIZES:
        for subjects, share in SHARES.items():
            works = [target_work(name, subjects, reads=False)]
            works += [target_work(name, subjects, reads=True, dropout=dropout) for dropout in (0.0, 0.5)]
            cells = [f"{work.counted:.4f} ({work.formula:.4f})" for work in works]
            yield name, subjects, share, *cells, f"{max(work.worst for work in works):.1e}"

"""What the tests of isolation and reposition share: stories, and attention written out with a dense mask.

Nothing here is computed by the library but the draws of the dropout, which are listened to: rows, sizes, regions and
resampled positions are the test's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

import t2ictl
from t2ictl.controls.layouts import Region
from t2ictl.processors import IsolationReposition
from t2ictl.processors.isolation_reposition import scene_state as _isolation_scenes
from t2ictl.processors.isolation_reposition.subjects import Subject
from tests.tiny import run

Box = tuple[float, float, float, float]
Mask = tuple[tuple[int, ...], ...]
Place = Box | Mask | Tensor

SCENE, CAT, DOG, FROG = "a cat and a dog on a bench", "photo of a cat", "photo of a dog", "photo of a frog"
LEFT: Box = (0.0, 0.25, 0.45, 1.0)
RIGHT: Box = (0.55, 0.0, 1.0, 0.8)
MIDDLE: Box = (0.25, 0.3, 0.75, 1.0)
# A corner is missing, so that some of the box is outside of the mask.
CORNER: Mask = tuple(tuple(int(0 < y < 7 and 2 <= x and (y > 3 or x > 4)) for x in range(8)) for y in range(8))


def cells(place: Place, height: int, width: int) -> Tensor:
    """The cells of a given place: those whose center a box holds, or of which a mask covers a half; at least one."""
    assert not isinstance(place, Tensor)
    made = torch.zeros(height, width, dtype=torch.bool)
    if isinstance(place[0], tuple):
        mask = torch.tensor(place, dtype=torch.float64)
        assert all(max(a, b) % min(a, b) == 0 for a, b in zip(mask.shape, (height, width), strict=True))
        share = torch.tensor([[float(_part(mask, y, x, height, width)) for x in range(width)] for y in range(height)])
        return share >= min(0.5, float(share.max()))
    sides: list[list[int]] = []
    for low, high, count in ((place[1], place[3], height), (place[0], place[2], width)):
        inside = [each for each in range(count) if low <= (each + 0.5) / count < high]
        sides.append(inside or [int((low + high) / 2 * count)])
    made[torch.tensor(sides[0])[:, None], torch.tensor(sides[1])] = True
    return made


def _part(mask: Tensor, y: int, x: int, height: int, width: int) -> Tensor:
    """Mean of a mask over one cell of a map."""
    rows, columns = mask.shape
    return mask[
        y * rows // height : -(-(y + 1) * rows // height), x * columns // width : -(-(x + 1) * columns // width)
    ].mean()


@dataclass(frozen=True)
class Shown:
    """A subject of a scene: where it is, which image shows it alone, and where in that (None: not known)."""

    place: Place
    portrait: int | None = None
    there: Place | None = None


Story = dict[int, list[Shown]]
STORY: Story = {0: [Shown(LEFT, 1, MIDDLE), Shown(RIGHT, 2, CORNER)]}
CAST: dict[str, Any] = {
    "subjects": (Subject(name="cat", prompt=CAT, box=MIDDLE), Subject(name="dog", prompt=DOG, mask=CORNER)),
    "layout": (Region(word="cat", box=LEFT), Region(word="dog", box=RIGHT)),
}


def labels_of(shown: Sequence[Shown], height: int, width: int) -> Tensor:
    """Subject of each position: who covers most of it, a quarter at least, the first of equals; four cells for all."""
    shares = [_share(each.place, height, width) for each in shown]
    given = [share for share, each in zip(shares, shown, strict=True) if not isinstance(each.place, Tensor)]
    for share, each in zip(shares, shown, strict=True):
        if isinstance(each.place, Tensor) and given:
            share *= 1 - torch.stack(given).amax(dim=0)  # what the user gave to one is not learned for another
    labels = torch.zeros(height, width, dtype=torch.long)
    for y in range(height):
        for x in range(width):
            most = max(float(share[y, x]) for share in shares)
            if most >= 0.25:
                labels[y, x] = 1 + [float(share[y, x]) for share in shares].index(most)
    counts = [int((labels == number).sum()) for number in range(1, len(shares) + 1)]
    for number in sorted(range(1, len(shares) + 1), key=lambda number: counts[number - 1]):
        free = [
            (float(-shares[number - 1][y, x]), y, x)
            for y in range(height)
            for x in range(width)
            if not labels[y, x] and shares[number - 1][y, x] > 0
        ]
        for _, y, x in sorted(free)[: max(0, 4 - counts[number - 1])]:
            labels[y, x] = number
    return labels.flatten()


def _share(place: Place, height: int, width: int) -> Tensor:
    """Share of each cell that a given place or a learned mask covers."""
    if not isinstance(place, Tensor):
        return cells(place, height, width).double()
    share = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            share[y, x] = _part(place.double(), y, x, height, width)
    return share


def resampled(target: Tensor, source: Tensor, aspect: str = "stretch") -> list[int]:
    """Box of the source brought to the size of the target's box, nearest neighbor, position by position."""
    (ty, tx), (sy, sx) = ([sorted(set(each.tolist())) for each in mask.nonzero().T] for mask in (target, source))
    sides = [ty[-1] - ty[0] + 1, tx[-1] - tx[0] + 1]
    lengths = [sy[-1] - sy[0] + 1, sx[-1] - sx[0] + 1]
    if aspect == "fit":
        scale = min(Fraction(side, length) for side, length in zip(sides, lengths, strict=True))
        sides = [max(1, math.floor(scale * length + Fraction(1, 2))) for length in lengths]
    found = []
    for y in range(sides[0]):
        for x in range(sides[1]):
            row = sy[0] + (2 * y + 1) * lengths[0] // (2 * sides[0])
            column = sx[0] + (2 * x + 1) * lengths[1] // (2 * sides[1])
            if source[row, column]:
                found.append(row * source.shape[1] + column)
    return found


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of an attention layer."""

    name: str
    step: int
    size: tuple[int, int]
    attn: Any
    hidden: Tensor
    context: Tensor | None
    out: Tensor

    @property
    def kind(self) -> str:
        return "self" if self.context is None else "cross"

    @property
    def plain(self) -> Tensor:
        with torch.no_grad():
            made: Tensor = AttnProcessor2_0()(self.attn, self.hidden, encoder_hidden_states=self.context)
        return made


@dataclass
class Heard:
    """All layers of a run, and the draws of the dropout by image, step and size."""

    layers: list[Layer] = field(default_factory=list)
    draws: dict[tuple[int, int, tuple[int, int]], Tensor] = field(default_factory=dict)
    steps: int = 0

    def at(self, step: int, rows: int | None = None) -> Heard:
        """Those of one step, and of a batch of so many rows."""
        kept = [each for each in self.layers if each.step == step and rows in (None, len(each.out))]
        return Heard(layers=kept, draws=self.draws)

    def of(self, kind: str) -> list[Layer]:
        found = [each for each in self.layers if each.kind == kind]
        assert found
        return found


@contextmanager
def listening(pipe: Any) -> Iterator[Heard]:
    """Hear all layers and draws."""
    heard, handles, drawn = Heard(), [], _isolation_scenes.Scenes._drawn
    latent: list[int] = []

    def begin(_: Any, args: Any) -> None:
        latent[:] = args[0].shape[-2:]
        heard.steps += not torch.is_grad_enabled()  # an update's own pass comes before the one that makes the image

    def note(name: str) -> Any:
        def hook(attn: Any, args: Any, kwargs: Any, out: Tensor) -> None:
            height, width = latent
            while height * width != args[0].shape[1]:
                height, width = -(-height // 2), -(-width // 2)
            context = kwargs.get("encoder_hidden_states")
            layer = Layer(
                name=name,
                step=heard.steps - (not torch.is_grad_enabled()),
                size=(height, width),
                attn=attn,
                hidden=args[0].detach().clone(),
                context=context,
                out=out.detach().clone(),
            )
            heard.layers.append(layer)

        return hook

    def draw(scenes: Any, call: Any, image: int) -> Tensor:
        made: Tensor = drawn(scenes, call, image)
        heard.draws[image, call.step.index, call.size] = made
        return made

    handles.append(pipe.unet.conv_in.register_forward_pre_hook(begin))
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            handles.append(module.register_forward_hook(note(name), with_kwargs=True))
    with patch.object(_isolation_scenes.Scenes, "_drawn", draw):
        yield heard
    for handle in handles:
        handle.remove()


def heard_in(pipe: Any, prompts: Any, settings: dict[str, Any], *others: Any, **call: Any) -> Heard:
    """All layers of a run in a session."""
    with listening(pipe) as heard, t2ictl.controlled(pipe, [IsolationReposition(**settings), *others]):
        run(pipe, prompts, **{"steps": 1} | call)
    return heard


def controlled_run(pipe: Any, prompts: Any, settings: dict[str, Any], *others: Any, **call: Any) -> Tensor:
    with t2ictl.controlled(pipe, [IsolationReposition(**settings), *others]):
        return run(pipe, prompts, **{"steps": 2} | call)


@torch.no_grad()
def dense_self(layer: Layer, heard: Heard, story: Story, settings: dict[str, Any], **where: bool) -> Tensor:
    """The formula with a logit for every pair, over the pasted features of the references.

    ``where`` says whether the layer keeps apart and reads, and whether there are unconditional rows.
    """
    given: dict[str, Any] = {
        "strength": 1.0,
        "isolation": 1.0,
        "ref_strength": 0.0,
        "aspect": "stretch",
        "branch": "both",
    } | settings
    out, attn, strength = layer.plain, layer.attn, float(given["strength"])
    images = len(layer.hidden) // (2 if where["guided"] else 1)
    hidden_share = given["isolation"] * strength if where["apart"] else 0.0
    lowered = math.log(1 - hidden_share) if hidden_share < 1 else -math.inf
    for row in range(len(layer.hidden)):
        is_cond = not where["guided"] or row >= images
        if row % images not in story or (given["branch"] == "cond" and not is_cond):
            continue
        labels = labels_of(story[row % images], *layer.size)
        is_hidden = (labels[:, None] != labels) & (labels[:, None] > 0) & (labels > 0)
        states, bias = [layer.hidden[row]], [torch.where(is_hidden, lowered, 0.0)]
        for number, shown in enumerate(story[row % images], start=1):
            if not where["reads"] or shown.portrait is None or not (labels == number).any():
                continue
            there = shown.there if shown.there is not None else torch.zeros(1, 1)
            source = labels_of([Shown(there)], *layer.size).view(layer.size) > 0
            source = source if source.any() else ~source  # all of it, as long as nothing is known
            positions = resampled((labels == number).view(layer.size), source, given["aspect"])
            if given.get("reposition") == "latent":  # a composite has every subject in its place
                composite = labels_of(story[shown.portrait], *layer.size)
                positions = (composite == number).nonzero().flatten().tolist()
            states.append(layer.hidden[row - row % images + shown.portrait][positions])
            is_reader = (labels == number) & heard.draws[row % images, layer.step, layer.size]
            logit = given["ref_strength"] + math.log(strength)
            bias.append(torch.where(is_reader, logit, -math.inf)[:, None].expand(-1, len(positions)))
        keys = torch.cat(states)
        q, k, v = (
            each.unflatten(-1, (attn.heads, -1)).transpose(0, 1)
            for each in (attn.to_q(layer.hidden[row]), attn.to_k(keys), attn.to_v(keys))
        )
        weights = (attn.scale * q @ k.mT + torch.cat(bias, dim=1)).softmax(dim=-1)
        out[row] = attn.to_out[0]((weights @ v).transpose(0, 1).flatten(1))
    return out


@torch.no_grad()
def dense_cross(
    layer: Layer, story: Story, settings: dict[str, Any], guided: bool, base: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-attention under the scene's words (``base``) and the portraits', blended; and which positions are."""
    assert layer.context is not None
    weight = settings.get("cross", 0.9) * settings.get("strength", 1.0)
    images = len(layer.hidden) // (2 if guided else 1)
    first, out = len(layer.hidden) - images, layer.plain if base is None else base.clone()
    touched = torch.zeros(out.shape[:2], dtype=torch.bool)
    for image, shown in story.items():
        row, labels = first + image, labels_of(shown, *layer.size)
        for number, each in enumerate(shown, start=1):
            if each.portrait is None:
                continue
            here, attn = labels == number, layer.attn
            q, k, v = (
                to(x).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
                for to, x in (
                    (attn.to_q, layer.hidden[row]),
                    (attn.to_k, layer.context[first + each.portrait]),
                    (attn.to_v, layer.context[first + each.portrait]),
                )
            )
            told = attn.to_out[0](((attn.scale * q @ k.mT).softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
            out[row] = torch.where(here[:, None], (1 - weight) * out[row] + weight * told, out[row])
            touched[row] |= here
    return out, touched


def same(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest entry, or to 1e-5 where all are below 1."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def check_self(
    heard: Heard, story: Story, settings: dict[str, Any], apart: set[str], reads: set[str], guided: bool = True
) -> None:
    """Every self-attention is the dense one; rows of no scene are the plain ones bit by bit."""
    largest = 0.0
    for layer in heard.of("self"):
        is_apart, is_reading = layer.name in apart, layer.name in reads
        expected = dense_self(layer, heard, story, settings, apart=is_apart, reads=is_reading, guided=guided)
        same(layer.out, expected)
        images = len(layer.out) // (2 if guided else 1)
        for row in range(len(layer.out)):
            is_free = settings.get("branch") == "cond" and row < len(layer.out) - images
            if row % images not in story or is_free or not (is_apart or is_reading):
                assert torch.equal(layer.out[row], layer.plain[row])
            else:
                largest = max(largest, float((layer.out[row] - layer.plain[row]).abs().max()))
    assert largest > 1e-3


def check_cross(heard: Heard, story: Story, settings: dict[str, Any], guided: bool = True) -> None:
    """Every cross-attention is the blend at the positions of subjects, and the plain one bit by bit elsewhere."""
    for layer in heard.of("cross"):
        expected, touched = dense_cross(layer, story, settings, guided)
        same(layer.out, expected)
        assert torch.equal(layer.out[~touched], layer.plain[~touched])
        if touched.any():
            assert (layer.out - layer.plain)[touched].abs().max() > 1e-3


def names(pipe: Any, *wanted: str) -> set[str]:
    """Self-attention layers whose name has one of these words in it."""
    every = [name for name, _ in pipe.unet.named_modules() if name.endswith("attn1")]
    return {name for name in every if not wanted or any(word in name for word in wanted)}


def nearest_of_torch(target: Tensor, source: Tensor) -> list[int]:
    """The paste of the paper, by torch's own resize: crop, stretch, and leave out what the mask does not hold."""
    (ty, tx), (sy, sx) = (mask.nonzero().T for mask in (target, source))
    size = [int(each.max() - each.min()) + 1 for each in (ty, tx)]
    index = torch.arange(source.numel(), dtype=torch.float64).view_as(source).masked_fill(~source, -1)
    crop = index[sy.min() : sy.max() + 1, sx.min() : sx.max() + 1][None, None]
    pasted = F.interpolate(crop, size=size, mode="nearest-exact").flatten().long()
    return pasted[pasted >= 0].tolist()


# Which layers read, by the published rule: SD's last six of 16 (here 4 of 10), SDXL's decoder without its first two.
SD_READING = ("up_blocks.2", "up_blocks.3")
SDXL_READING = ("up_blocks.0.attentions.1", "up_blocks.1")

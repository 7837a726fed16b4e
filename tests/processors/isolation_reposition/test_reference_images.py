"""Composites of given images, which scenes read position for position."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import t2ictl
from t2ictl.controls.layouts import Region
from t2ictl.processors import IsolationReposition
from t2ictl.processors.isolation_reposition.subjects import Subject
from tests.processors.isolation_reposition.image_cases import (
    LATENT,
    OTHER,
    PHOTOS,
    UNNAMED,
    inputs,
    latents,
    photo,
    reading,
)
from tests.processors.isolation_reposition.isolation_cases import (
    CAT,
    CORNER,
    DOG,
    LEFT,
    RIGHT,
    SCENE,
    Shown,
    Story,
    check_self,
    controlled_run,
    heard_in,
    labels_of,
    names,
    same,
)
from tests.tiny import run, scheduler, sd, sdxl

# -- composites -------------------------------------------------------------------------------------------------------


def pasted(boxes: list[tuple[int, int, int, int]], height: int = 64, width: int = 64) -> list[Tensor]:
    """Where pieces lie in a composite, the later one in front: top, bottom, left, right in pixels."""
    shares = [torch.zeros(height, width) for _ in boxes]
    for number, (top, bottom, left, right) in enumerate(boxes):
        for each in shares:
            each[top:bottom, left:right] = 0
        shares[number][top:bottom, left:right] = 1
    return shares


# The cat's box: LEFT is rows 16..64 and columns 0..29; its image's, MIDDLE, 45 x 32 pixels, which fits at 29/32 of
# its size. The dog's mask is cut out of 48 x 48 pixels and fits at 29/48 of it into RIGHT, rows 0..51, columns 35..64.
CAT_THERE = (16 + (48 - 41) // 2, 16 + (48 - 41) // 2 + 41, 0, 29)


def composite_story(copies: int = 1, scene: int = 1, composite: int = 0) -> Story:
    cat, dog = composite_places()
    read = [Shown(LEFT, composite), Shown(RIGHT, composite)]
    return {composite: [Shown(cat), Shown(dog)]} | {scene + copy: read for copy in range(copies)}


def composite_places() -> tuple[Tensor, Tensor]:
    (cat,) = pasted([CAT_THERE])
    mask = Image.fromarray(np.array(CORNER, np.uint8) * 255).resize((64, 64), Image.Resampling.BILINEAR)
    inside = np.asarray(mask) >= 128
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = min(51 / (bottom - top), 29 / (right - left))
    size = (round(scale * (right - left)), round(scale * (bottom - top)))
    piece = Image.fromarray(inside[top:bottom, left:right].astype(np.uint8) * 255).resize(
        size, Image.Resampling.BILINEAR
    )
    dog = torch.zeros(64, 64)
    y, x = (51 - size[1]) // 2, (35 + 64 - size[0]) // 2
    dog[y : y + size[1], x : x + size[0]] = torch.from_numpy(np.array(piece)).float() / 255
    return cat, dog


def told_as_given(pipe: Any, heard: Any, story: Story, weight: float, guided: bool) -> None:
    """Cross-attention at positions of subjects, composite and scenes alike, reads the prompts of the images."""
    texts = [
        pipe.encode_prompt(each, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0][0]
        for each in (CAT, DOG)
    ]
    for layer in heard.of("cross"):
        images = len(layer.hidden) // (2 if guided else 1)
        expected = layer.plain
        for image, shown in story.items():
            labels, row, attn = labels_of(shown, *layer.size), len(layer.hidden) - images + image, layer.attn
            for number, text in enumerate(texts, start=1):
                q, k, v = (
                    to(x).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
                    for to, x in ((attn.to_q, layer.hidden[row]), (attn.to_k, text), (attn.to_v, text))
                )
                told = attn.to_out[0](((attn.scale * q @ k.mT).softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
                blend = (1 - weight) * layer.plain[row] + weight * told
                expected[row] = torch.where((labels == number)[:, None], blend, expected[row])
        same(layer.out, expected)


@pytest.mark.parametrize(
    "settings", [{}, {"ref_dropout": 0.0, "isolation": 0.4, "ref_strength": 1.1}, {"strength": 0.5}], ids=str
)
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("build", [sd, sdxl])
@torch.no_grad()
def test_scenes_read_their_composite_position_for_position(
    build: Any, guidance_scale: float, settings: dict[str, Any]
) -> None:
    pipe, story, guided = build(), composite_story(), guidance_scale > 1
    heard = heard_in(pipe, [SCENE, SCENE], LATENT | settings, steps=2, guidance_scale=guidance_scale)
    check_self(heard, story, settings | {"reposition": "latent"}, names(pipe), reading(pipe), guided)
    told_as_given(pipe, heard, story, 0.9 * settings.get("strength", 1.0), guided)


def test_a_composite_shows_the_images_where_the_scene_wants_them() -> None:
    """From what the denoiser sees: two calls differ in one image, and their composites in its place alone."""
    pipe = sd()
    pipe.vae.encode = lambda x: _Identity(x)  # what would be encoded
    seen = []
    for second in (PHOTOS[1], photo("black", 3)):
        subjects = (LATENT["subjects"][0], Subject(name="dog", prompt=DOG, image=second, mask=CORNER))
        with inputs(pipe) as found, t2ictl.controlled(pipe, [IsolationReposition(**LATENT | {"subjects": subjects})]):
            run(pipe, [SCENE, SCENE], steps=1)
        seen.append(found[0][1][0])
    changed = (seen[0] - seen[1]).abs().amax(dim=0) > 1e-4
    dog = torch.nn.functional.max_pool2d(composite_places()[1][None, None], 4)[0, 0] > 0
    assert changed.any() and not changed[~dog].any() and changed[dog].float().mean() > 0.6


class _Identity:
    """An autoencoder that only averages."""

    def __init__(self, x: Tensor) -> None:
        mean = torch.nn.functional.avg_pool2d(x, 4)
        self.latent_dist = self
        self.mean = torch.cat([mean, mean[:, :1]], dim=1)

    def mode(self) -> Tensor:
        return self.mean


@pytest.mark.parametrize("size", [{"height": 56, "width": 40}, {"height": 24, "width": 72}], ids=str)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_composites_of_odd_sizes_that_are_not_square(build: Any, size: dict[str, int]) -> None:
    """Boxes of whole pixels; their images have the aspect of their places, so that they fill them."""
    pipe, (height, width) = build(), size.values()
    places = [
        (height // 8, height // 8 + height // 2, 0, width // 4),
        (0, height // 4, width // 2, width // 2 + width // 4),
    ]
    boxes = [(left / width, top / height, right / width, bottom / height) for top, bottom, left, right in places]
    subjects = tuple(
        Subject(
            name=name, prompt=f"photo of a {name}", image=image.resize((right - left, bottom - top)), box=(0, 0, 1, 1)
        )
        for name, image, (top, bottom, left, right) in zip(("cat", "dog"), PHOTOS, places, strict=True)
    )
    layout = tuple(Region(word=name, box=box) for name, box in zip(("cat", "dog"), boxes, strict=True))
    story: Story = {
        0: [Shown(each) for each in pasted(places, height, width)],
        1: [Shown(box, 0) for box in boxes],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pieces keep their aspect: there is nothing to tell
        heard = heard_in(pipe, [SCENE, SCENE], LATENT | {"subjects": subjects, "layout": layout}, **size)
    check_self(heard, story, {"reposition": "latent"}, names(pipe), reading(pipe))


def test_several_images_of_a_prompt_read_the_first_of_them() -> None:
    pipe = sd()
    heard = heard_in(pipe, SCENE, LATENT, num_images_per_prompt=3)
    check_self(heard, composite_story(copies=2), {"reposition": "latent"}, names(pipe), reading(pipe))
    heard = heard_in(pipe, [UNNAMED, SCENE, UNNAMED, SCENE], LATENT)
    check_self(heard, composite_story(scene=3, composite=1), {"reposition": "latent"}, names(pipe), reading(pipe))


def test_two_scenes_have_a_composite_each() -> None:
    """The second wants the dog at the left and the cat at the right."""
    pipe = sd()
    here = LATENT["layout"]
    there = (Region(word="dog", box=LEFT), Region(word="cat", box=(0.5, 0.0, 1.0, 0.5)))
    subjects = tuple(
        Subject(name=each.name, prompt=each.prompt, image=each.image, box=(0.25, 0.25, 0.75, 0.75))
        for each in LATENT["subjects"]
    )
    heard = heard_in(
        pipe,
        [SCENE, OTHER, SCENE, OTHER],
        LATENT | {"layout": (here, there, here, there), "subjects": subjects, "ref_dropout": 0.2},
    )
    # 32 x 32 pixels: to 29 x 29, in the middle of rows 16..64 and columns 0..29, and so on.
    left, right, high = (25, 54, 0, 29), (11, 40, 35, 64), (0, 32, 32, 64)
    cat_first, dog_first = pasted([left, right]), pasted([left, high])
    story: Story = {
        0: [Shown(each) for each in cat_first],
        1: [Shown(each) for each in dog_first],
        2: [Shown(LEFT, 0), Shown(RIGHT, 0)],
        3: [Shown(LEFT, 1), Shown((0.5, 0.0, 1.0, 0.5), 1)],
    }
    check_self(heard, _in_order(story), {"reposition": "latent"}, names(pipe), reading(pipe))


def _in_order(story: Story) -> Story:
    """Subjects are numbered in the order of the control, cat and dog: the second scene's are the other way round."""
    return {image: shown[::-1] if image % 2 else shown for image, shown in story.items()}


def test_somebody_without_an_image_is_kept_apart_and_reads_nothing() -> None:
    pipe, prompt, low = sd(), "a cat and a dog and a frog", (0.3, 0.8, 0.7, 1.0)
    own = {
        "concepts": ("cat", "dog", "frog"),
        "layout": (*LATENT["layout"], Region(word="frog", box=low)),
        "ref_dropout": 0.0,
    }
    heard = heard_in(pipe, [prompt, prompt], LATENT | own)
    cat, dog = composite_places()
    story: Story = {
        0: [Shown(cat), Shown(dog), Shown(torch.zeros(64, 64))],
        1: [Shown(LEFT, 0), Shown(RIGHT, 0), Shown(low)],
    }
    check_self(heard, story, {"reposition": "latent"}, names(pipe), reading(pipe))


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("name", ["heun", "pndm", "euler_ancestral", "dpmpp_2m"])
def test_schedulers_of_every_kind(build: Any, name: str) -> None:
    pipe = build()
    pipe.scheduler = scheduler(name, pipe)
    heard = heard_in(pipe, [SCENE, SCENE], LATENT, steps=3)
    check_self(heard, composite_story(), {"reposition": "latent"}, names(pipe), reading(pipe))


@pytest.mark.parametrize("build", [sd, sdxl])
def test_a_composite_knows_nothing_of_its_scenes(build: Any) -> None:
    """Its latents are the same whatever noise the scene has, and in a larger batch the same but for rounding."""
    pipe, noise = build(), latents(4)
    other = torch.cat([noise[:1], noise[2:3]])
    found = controlled_run(pipe, [SCENE, SCENE], LATENT, latents=noise[:2])
    turned = controlled_run(pipe, [SCENE, SCENE], LATENT, latents=other)
    assert torch.equal(found[0], turned[0]) and (found[1] - turned[1]).abs().max() > 0.1
    more = controlled_run(pipe, [SCENE, SCENE, UNNAMED, UNNAMED], LATENT, latents=noise)
    assert (more[:2] - found).abs().max() < 2e-3
    plain = run(pipe, [SCENE, SCENE, UNNAMED, UNNAMED], steps=2, latents=noise)
    assert torch.equal(more[2:], plain[2:]) and (more[1] - plain[1]).abs().max() > 0.02


def test_what_a_composite_starts_from_does_not_matter() -> None:
    """All that it shows is the image: only the scene's own noise counts."""
    pipe, noise = sd(), latents(3)
    found = [controlled_run(pipe, [SCENE, SCENE], LATENT, latents=noise[[first, 1]])[1] for first in (0, 2)]
    assert (found[0] - found[1]).abs().max() < 1e-4


def test_a_scene_that_is_called_as_a_portrait_is_not_held() -> None:
    """Composites leave no portraits in a call: a prompt that is also a subject's is a scene like any other."""
    pipe = sd()
    own = LATENT | {"layout": (Region(word="cat", box=RIGHT),), "ref_dropout": 0.0}
    with inputs(pipe) as seen:
        heard = heard_in(pipe, [CAT, CAT], own, latents=latents(2))
    assert torch.equal(seen[0][1][1], latents(2)[1]) and not torch.equal(seen[0][1][0], latents(2)[0])
    # 45 x 32 pixels fit at 29/32 into rows 0..51 and columns 35..64.
    (cat,) = pasted([(5, 46, 35, 64)])
    check_self(heard, {0: [Shown(cat)], 1: [Shown(RIGHT, 0)]}, {"reposition": "latent"}, set(), reading(pipe))

"""Portraits that are given pictures, composites, and what subjects are told where no row of the batch says it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import t2ictl
from t2ictl import Region, Subject
from t2ictl.errors import BadSetting, ControlConflict
from t2ictl.processors.isolation_reposition import IsolationReposition
from tests import tiny
from tests.processors.isolation_cases import (
    CAT,
    DOG,
    SCENE,
    Layer,
    Shown,
    Story,
    check_self,
    controlled_run,
    heard_in,
    labels_of,
    same,
)
from tests.tiny import run, sd, sdxl

UPPER, LOWER, CENTER = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75)
LAYOUT = (Region(word="cat", box=UPPER), Region(word="dog", box=LOWER))


def photo(color: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A square of a color in the middle."""
    image = Image.new("RGB", size, "gray")
    image.paste(Image.new("RGB", (size[0] // 2, size[1] // 2), color), (size[0] // 4, size[1] // 4))
    return image


def pictured(cat: str = "red", dog: str = "blue", **more: Any) -> tuple[Subject, ...]:
    return (
        Subject(name="cat", prompt=CAT, image=photo(cat), box=CENTER, **more),
        Subject(name="dog", prompt=DOG, image=photo(dog), box=CENTER, **more),
    )


COMPOSED: dict[str, Any] = {"reposition": "latent", "subjects": pictured(), "layout": LAYOUT}
# Sources and targets are squares of one size, so that the composite covers just the cells of the targets.
STORY: Story = {
    0: [Shown(UPPER), Shown(LOWER)],
    1: [Shown(UPPER, 0, UPPER), Shown(LOWER, 0, LOWER)],
}
SELF = {"ref_sites": ("self",)}


def names(pipe: Any) -> set[str]:
    return {name for name, _ in pipe.unet.named_modules() if name.endswith("attn1")}


def encoded(pipe: Any, *texts: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = pipe.encode_prompt(
            prompt=list(texts), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
    return found


def told(layer: Layer, row: int, context_KC: Tensor) -> Tensor:
    """Cross-attention of one row under another text."""
    attn = layer.attn
    q, k, v = (
        to(x).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
        for to, x in ((attn.to_q, layer.hidden[row]), (attn.to_k, context_KC), (attn.to_v, context_KC))
    )
    out: Tensor = attn.to_out[0](((attn.scale * q @ k.mT).softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
    return out


# -- composites -----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize(
    "settings", [{}, {"ref_dropout": 0.0, "ref_strength": 1.0}, {"isolation": 0.5}, {"branch": "cond"}]
)
def test_scenes_read_the_composite_position_for_position(build: Any, settings: dict[str, Any]) -> None:
    pipe = build()
    heard = heard_in(pipe, [SCENE, SCENE], COMPOSED | SELF | settings)
    check_self(heard, STORY, settings, names(pipe), names(pipe))


@pytest.mark.parametrize("build", [sd, sdxl])
@torch.no_grad()
def test_composite_and_scenes_are_told_the_prompts_of_portraits(build: Any) -> None:
    pipe = build()
    texts = encoded(pipe, CAT, DOG)
    heard = heard_in(pipe, [SCENE, SCENE], COMPOSED)
    for layer in heard.of("cross"):
        expected, labels = layer.plain, labels_of(STORY[0], *layer.size)
        for row in (2, 3):
            for number in (1, 2):
                blended = 0.1 * layer.plain[row] + 0.9 * told(layer, row, texts[number - 1])
                expected[row] = torch.where((labels == number)[:, None], blended, expected[row])
        same(layer.out, expected)
        assert (layer.out[2:] - layer.plain[2:]).abs().max() > 1e-3


def test_the_composite_does_not_see_the_scenes() -> None:
    """Its rows are bit-equal whatever the noise of the scenes, and however many they are."""
    pipe, heard = sd(), []
    for seed, copies in ((0, 2), (1, 2), (1, 3)):
        generators = [torch.Generator().manual_seed(seed + each) for each in range(copies)]
        layers = heard_in(pipe, [SCENE] * copies, COMPOSED | SELF, generator=generators, steps=2).of("self")
        heard.append([layer.out[copies] for layer in layers])
    for one, two, three in zip(*heard, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
        torch.testing.assert_close(one, three, rtol=0, atol=1e-5)


def test_pictures_reach_the_scene_and_only_through_the_composite() -> None:
    pipe = sd()
    settings = COMPOSED | SELF | {"ref_dropout": 0.0, "cross": 0.0}
    base = controlled_run(pipe, [SCENE, SCENE], settings)
    other = controlled_run(pipe, [SCENE, SCENE], settings | {"subjects": pictured(cat="green")})
    unread = [
        controlled_run(pipe, [SCENE, SCENE], settings | {"subjects": pictured(cat=cat), "ref_dropout": 1.0})
        for cat in ("red", "green")
    ]
    assert (base[1] - other[1]).abs().max() > 1e-4
    assert torch.equal(unread[0][1], unread[1][1])


def test_several_scenes_and_copies_each_read_their_own_composite() -> None:
    pipe = sd()
    prompts, other = [SCENE, SCENE, SCENE], "a dog on a cat"
    settings = COMPOSED | SELF
    alone = controlled_run(pipe, prompts, settings, generator=_seeds(0, 1, 2))
    both = controlled_run(pipe, [*prompts, other, other], settings, generator=_seeds(0, 1, 2, 3, 4))
    torch.testing.assert_close(alone, both[:3], rtol=0, atol=1e-4)
    copies = controlled_run(pipe, [SCENE], settings, num_images_per_prompt=3, generator=_seeds(0, 1, 2))
    torch.testing.assert_close(alone, copies, rtol=0, atol=1e-5)


def _seeds(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("call", [{"height": 72, "width": 40}, {"guidance_scale": 1.0}, {"height": 48, "width": 88}])
def test_other_sizes_and_no_guidance(call: dict[str, Any]) -> None:
    pipe = sd()
    found = controlled_run(pipe, [SCENE, SCENE], COMPOSED | SELF, **call)
    assert torch.isfinite(found).all() and (found - run(pipe, [SCENE, SCENE], steps=2, **call)).abs().max() > 1e-3


def test_strength_zero_is_the_plain_picture() -> None:
    pipe = sd()
    assert torch.equal(
        controlled_run(pipe, [SCENE, SCENE], COMPOSED | {"strength": 0.0}), run(pipe, [SCENE, SCENE], steps=2)
    )


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([SCENE], {}, "is in the call once"),
        ([SCENE, SCENE], {"layout": LAYOUT[:1]}, "'dog' of .* has no region"),
        ([SCENE, SCENE], {"subjects": (pictured()[0], Subject(name="dog", prompt=DOG, box=CENTER))}, "has no picture"),
        (
            [SCENE, SCENE],
            {"subjects": (pictured()[0], Subject(name="dog", prompt=DOG, image=photo("blue")))},
            "has no place in it",
        ),
    ],
)
def test_what_is_missing_is_named_before_the_first_step(
    prompts: list[str], settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = sd()
    monkeypatch.setattr(pipe.unet, "forward", lambda *_, **__: pytest.fail("the denoiser was called"))
    with pytest.raises(BadSetting, match=message):
        controlled_run(pipe, prompts, COMPOSED | settings)


# -- given pictures as portraits ------------------------------------------------------------------


def test_a_portrait_shows_the_given_picture_and_the_scene_reads_it() -> None:
    pipe = sd()
    prompts = [CAT, DOG, SCENE]
    settings: dict[str, Any] = {"layout": LAYOUT, "cross": 0.0, "ref_dropout": 0.0, **SELF}
    base, other, generated = (
        controlled_run(pipe, prompts, settings | {"subjects": subjects})
        for subjects in (
            pictured(),
            pictured(cat="green"),
            (Subject(name="cat", prompt=CAT, box=CENTER), pictured()[1]),
        )
    )
    for changed in (other, generated):
        assert (base[0] - changed[0]).abs().max() > 1e-2 and (base[2] - changed[2]).abs().max() > 1e-4
        assert torch.equal(base[1], changed[1])  # the other portrait


def test_its_own_noise_does_not_matter_and_others_keep_theirs() -> None:
    pipe = sd()
    settings = {"layout": LAYOUT, "subjects": pictured()}
    one, two = (controlled_run(pipe, [CAT, DOG, SCENE], settings, generator=_seeds(seed, 8, 9)) for seed in (0, 1))
    assert torch.equal(one[2], two[2])
    plain = run(pipe, [CAT, DOG, SCENE], steps=2, generator=_seeds(0, 8, 9))
    assert (one[0] - plain[0]).abs().max() > 1e-2


def test_stretched_pictures_are_said_and_others_are_not() -> None:
    pipe = sd()
    wide = (Subject(name="cat", prompt=CAT, image=photo("red", (96, 64)), box=CENTER),)
    with pytest.warns(UserWarning, match="96 x 64 and is stretched to 64 x 64"):
        controlled_run(pipe, [CAT, SCENE], {"layout": LAYOUT[:1], "subjects": wide})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controlled_run(pipe, [CAT, SCENE], {"layout": LAYOUT[:1], "subjects": pictured()[:1]})
        controlled_run(pipe, [CAT, SCENE], {"layout": LAYOUT[:1], "subjects": wide}, height=64, width=96)


def test_two_that_hold_rows_are_a_conflict() -> None:
    pipe, control = sd(), IsolationReposition(layout=LAYOUT, subjects=pictured())
    with pytest.raises(ControlConflict), t2ictl.controlled(pipe, [control, control]):
        run(pipe, [CAT, DOG, SCENE])


# -- what is told ---------------------------------------------------------------------------------

RED_CAT, BLUE_DOG = "a red cat", "photo of a small blue dog"
NAMED = (
    Subject(name="cat", prompt=RED_CAT, box=CENTER),
    Subject(name="dog", prompt=BLUE_DOG, box=CENTER),
)


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize(
    ("how", "texts"),
    [
        (
            "spliced",
            (
                "a red cat and a small blue dog on a bench",
                "a red cat and a dog on a bench",
                "a cat and a small blue dog on a bench",
            ),
        ),
        ("spelled", ("a red cat and a small blue dog on a bench",) * 3),
    ],
)
@torch.no_grad()
def test_positions_are_told_the_phrases_of_portraits(build: Any, how: str, texts: tuple[str, ...]) -> None:
    """The background those of all; a subject its own, or those of all too. Phrases are those of the parser."""
    pipe = build()
    states, prompts = encoded(pipe, *texts), [RED_CAT, BLUE_DOG, SCENE]
    heard = heard_in(pipe, prompts, {"subjects": NAMED, "layout": LAYOUT, "told": how, "cross": 0.75})
    for layer in heard.of("cross"):
        labels, expected = labels_of(STORY[0], *layer.size), layer.plain
        for number in range(3):
            blended = 0.25 * layer.plain[5] + 0.75 * told(layer, 5, states[number])
            expected[5] = torch.where((labels == number)[:, None], blended, expected[5])
        same(layer.out, expected)
        assert (layer.out[5] - layer.plain[5]).abs().max() > 1e-3


def test_spelled_with_all_its_weight_is_the_plain_picture_of_the_spelled_prompt() -> None:
    """But for the isolation, which is off, and for the unconditional side, which is the same."""
    pipe = sd()
    settings = {
        "subjects": NAMED,
        "layout": LAYOUT,
        "told": "spelled",
        "cross": 1.0,
        "isolation": 0.0,
        "reposition": "off",
    }
    found = controlled_run(pipe, [RED_CAT, BLUE_DOG, SCENE], settings, generator=_seeds(0, 1, 2))
    spelled = "a red cat and a small blue dog on a bench"
    plain = run(pipe, [RED_CAT, BLUE_DOG, spelled], steps=2, generator=_seeds(0, 1, 2))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)


def test_portraits_that_say_no_more_than_the_name_change_nothing() -> None:
    pipe = sd()
    subjects = (Subject(name="cat", prompt=CAT, box=CENTER), Subject(name="dog", prompt=DOG, box=CENTER))
    base: dict[str, Any] = {"subjects": subjects, "layout": LAYOUT}
    told_, untold = (
        controlled_run(pipe, [CAT, DOG, SCENE], base | more) for more in ({"told": "spelled"}, {"cross": 0.0})
    )
    assert torch.equal(told_, untold)


def test_a_picture_is_not_changed_by_what_it_stands_for() -> None:
    image = photo("red")
    before = np.asarray(image).copy()
    subject = Subject(name="cat", prompt=CAT, image=image, box=CENTER)
    controlled_run(tiny.sd(), [CAT, SCENE], {"layout": LAYOUT[:1], "subjects": (subject,)})
    assert np.array_equal(np.asarray(image), before)

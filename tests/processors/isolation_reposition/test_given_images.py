"""Given images as portraits, and what is refused of given images."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.controls.layouts import Region
from t2ictl.controls.registry import control_from_dict, control_to_dict
from t2ictl.errors import BadSetting, UnsupportedPipeline
from t2ictl.processors import IsolationReposition
from t2ictl.processors.isolation_reposition.subjects import Subject
from tests.processors.isolation_reposition.image_cases import (
    IMAGED,
    LATENT,
    OTHER,
    PHOTOS,
    alpha,
    clean,
    inputs,
    photo,
    reading,
)
from tests.processors.isolation_reposition.isolation_cases import (
    CAST,
    CAT,
    CORNER,
    DOG,
    LEFT,
    MIDDLE,
    RIGHT,
    SCENE,
    STORY,
    Shown,
    check_cross,
    check_self,
    controlled_run,
    heard_in,
    names,
)
from tests.session.pipeline_cases import state, unreached
from tests.tiny import run, sd, sdxl

# -- portraits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("build", [sd, sdxl])
def test_portraits_from_images_are_held_and_read(build: Any, guidance_scale: float) -> None:
    pipe, guided = build(), guidance_scale > 1
    with inputs(pipe) as seen:
        heard = heard_in(pipe, [SCENE, CAT, DOG], IMAGED, steps=2, guidance_scale=guidance_scale)
    check_self(heard, STORY, {}, names(pipe), reading(pipe), guided)
    check_cross(heard, STORY, {}, guided)
    for row, image in enumerate(PHOTOS, start=1):
        noises = []
        for t, x_BCYX in seen:
            a = alpha(pipe.scheduler, t)
            noises += [(x - a**0.5 * clean(pipe, image)) / (1 - a) ** 0.5 for x in x_BCYX[row::3]]
        assert all(torch.allclose(each, noises[0], atol=2e-4) for each in noises)
        assert 0.85 < noises[0].std() < 1.15


def test_one_image_and_one_portrait_that_is_generated() -> None:
    pipe = sd()
    mixed = IMAGED | {"subjects": (IMAGED["subjects"][0], CAST["subjects"][1])}
    plain = run(pipe, [SCENE, CAT, DOG], steps=2)
    heard = heard_in(pipe, [SCENE, CAT, DOG], mixed)
    check_self(heard, STORY, {}, names(pipe), reading(pipe))
    found = controlled_run(pipe, [SCENE, CAT, DOG], mixed)
    assert torch.equal(found[2], plain[2])  # generated as ever
    assert (found[1] - plain[1]).abs().max() > 0.1 and (found[0] - plain[0]).abs().max() > 0.01


def test_images_without_a_place_are_read_everywhere() -> None:
    """Until its word's own maps show where it is; at the first step nothing is known."""
    pipe = sd()
    bare = IMAGED | {"subjects": (Subject(name="cat", prompt=CAT, image=PHOTOS[0]), IMAGED["subjects"][1])}
    heard = heard_in(pipe, [SCENE, CAT, DOG], bare, steps=1)
    check_self(heard, {0: [Shown(LEFT, 1), Shown(RIGHT, 2, CORNER)]}, {}, names(pipe), reading(pipe))


def test_several_portraits_of_one_image_are_the_same() -> None:
    pipe = sd()
    with inputs(pipe) as seen, t2ictl.controlled(pipe, [IsolationReposition(**IMAGED)]):
        run(pipe, [SCENE, CAT, DOG], steps=2, num_images_per_prompt=2)
    for _, x_BCYX in seen:
        assert torch.equal(x_BCYX[2], x_BCYX[3]) and torch.equal(x_BCYX[4], x_BCYX[5])
        assert not torch.equal(x_BCYX[0], x_BCYX[1]) and not torch.equal(x_BCYX[2], x_BCYX[4])


def test_the_seed_is_that_of_the_noise() -> None:
    pipe = sd()
    rows = []
    for seed in (0, 0, 1):
        with inputs(pipe) as seen, t2ictl.controlled(pipe, [IsolationReposition(**IMAGED, seed=seed)]):
            run(pipe, [SCENE, CAT, DOG], steps=2)
        rows.append(seen[0][1])
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0][[0, 3]], rows[2][[0, 3]])
    assert (rows[0][1:3] - rows[2][1:3]).abs().amax(dim=(1, 2, 3)).min() > 1


@pytest.mark.parametrize(
    ("size", "is_told"), [((64, 64), False), ((32, 32), False), ((128, 126), False), ((64, 60), True), ((32, 64), True)]
)
def test_images_that_are_stretched_are_told(size: tuple[int, int], is_told: bool) -> None:
    pipe = sd()
    subjects = (Subject(name="cat", prompt=CAT, image=photo("white", 1, size), box=MIDDLE), IMAGED["subjects"][1])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        controlled_run(pipe, [SCENE, CAT, DOG], IMAGED | {"subjects": subjects})
    told = [str(each.message) for each in found if "is stretched" in str(each.message)]
    assert len(told) == is_told
    if is_told:
        assert f"'cat' is {size[0]} x {size[1]} and is stretched to 64 x 64" in told[0]


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("cast", [IMAGED, LATENT], ids=["portraits", "composite"])
def test_strength_zero_is_the_plain_image(build: Any, cast: dict[str, Any]) -> None:
    pipe, prompts = build(), [SCENE, CAT, DOG] if cast is IMAGED else [SCENE, SCENE]
    found = controlled_run(pipe, prompts, cast | {"strength": 0.0})
    assert torch.equal(found, run(pipe, prompts, steps=2))
    assert not torch.equal(found, controlled_run(pipe, prompts, cast))


# -- errors -----------------------------------------------------------------------------------------------------------


def subject(**more: Any) -> Subject:
    return Subject(**{"name": "cat", "prompt": CAT, "image": PHOTOS[0], "box": MIDDLE} | more)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([SCENE], {}, "is in the call once"),
        ([SCENE, OTHER], {}, "is in the call once"),
        ([SCENE, SCENE, CAT], {}, "'photo of a cat' is in the call once"),
        ([SCENE, SCENE], {"layout": (Region(word="cat", box=LEFT),)}, "'dog' of .* has no region"),
        ([SCENE, SCENE], {"layout": ()}, "'cat' of .* has no region"),
        ([SCENE, SCENE], {"subjects": (subject(image=None), LATENT["subjects"][1])}, "'cat' of .* has no image"),
        ([SCENE, SCENE], {"subjects": (subject(box=None), LATENT["subjects"][1])}, "'cat' of .* has no place in it"),
        ([SCENE, CAT, DOG], {"reposition": "latent"}, "is in the call once"),
        ([SCENE, CAT], {"reposition": "resample"}, "portrait of 'dog'.* is none of the prompts"),
    ],
)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_errors_are_named_before_the_first_step(build: Any, prompts: Any, settings: Any, message: str) -> None:
    pipe = build()
    plain = run(pipe, prompts, steps=1)
    before = state(pipe)
    with unreached(pipe), pytest.raises(BadSetting, match=message):
        controlled_run(pipe, prompts, LATENT | settings)
    assert state(pipe) == before and torch.equal(run(pipe, prompts, steps=1), plain)


def test_an_image_file_that_is_gone_and_an_offloaded_autoencoder(tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe, file = sd(), tmp_path / "cat.png"
    PHOTOS[0].save(file)
    for reposition, prompts in (("latent", [SCENE, SCENE]), ("resample", [SCENE, CAT, DOG])):
        PHOTOS[0].save(file)
        control = IsolationReposition(
            **LATENT | {"reposition": reposition, "subjects": (subject(image=file), LATENT["subjects"][1])}
        )
        file.unlink()
        with unreached(pipe), pytest.raises(BadSetting, match="cannot be read"), t2ictl.controlled(pipe, [control]):
            run(pipe, prompts, steps=1)
        accelerate.cpu_offload_with_hook(pipe.vae)
        with unreached(pipe), pytest.raises(UnsupportedPipeline, match="offloading holds the autoencoder"):
            controlled_run(pipe, prompts, LATENT | {"reposition": reposition})
        accelerate.hooks.remove_hook_from_module(pipe.vae)


def test_settings_come_back_and_make_the_same_image() -> None:
    pipe, control = sd(), IsolationReposition(**LATENT)
    back = control_from_dict(control_to_dict(control))
    assert back == control
    with t2ictl.controlled(pipe, [back]):
        found = run(pipe, [SCENE, SCENE], steps=2)
    assert torch.equal(found, controlled_run(pipe, [SCENE, SCENE], LATENT))

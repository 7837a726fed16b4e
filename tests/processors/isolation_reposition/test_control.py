"""Isolation and reposition: every layer against attention with a dense mask, and the rows and images that stay."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.layers import Layer
from t2ictl.controls.base import Plan, PlanContext
from t2ictl.controls.layouts import Region
from t2ictl.errors import BadSetting, NoLayerMatched
from t2ictl.families import find_adapter
from t2ictl.processors import IsolationReposition
from t2ictl.processors.isolation_reposition.cast import SubjectAssignment
from t2ictl.processors.isolation_reposition.control import published_reading_layers
from t2ictl.processors.isolation_reposition.groups import resampled_positions
from t2ictl.processors.isolation_reposition.subjects import Subject
from t2ictl.settings.windows import Window
from tests.controls.context_cases import context
from tests.processors.isolation_reposition.isolation_cases import (
    CAST,
    CAT,
    CORNER,
    DOG,
    FROG,
    LEFT,
    MIDDLE,
    RIGHT,
    SCENE,
    SD_READING,
    SDXL_READING,
    STORY,
    Shown,
    Story,
    check_cross,
    check_self,
    controlled_run,
    heard_in,
    names,
    nearest_of_torch,
    resampled,
)
from tests.tiny import generator, run, scheduler, sd, sdxl

PROMPTS = [SCENE, CAT, DOG]
UNNAMED = "a cat on a bench"
SETTINGS: list[dict[str, Any]] = [
    {},
    {"isolation": 0.4, "ref_strength": 1.3, "cross": 0.3},
    {"isolation": 0.0, "ref_dropout": 0.0, "ref_strength": -0.7},
    {"strength": 0.5, "ref_dropout": 0.3},
    {"strength": 0.5, "isolation": 0.6, "ref_strength": 0.5},
    {"ref_dropout": 1.0},
    {"branch": "cond"},
    {"aspect": "fit", "seed": 3},
    {"reposition": "off"},
]


def reading(pipe: Any) -> set[str]:
    return names(pipe, *(SDXL_READING if hasattr(pipe, "tokenizer_2") else SD_READING))


def check(pipe: Any, prompts: Any, cast: dict[str, Any], story: Story, settings: dict[str, Any], **call: Any) -> None:
    """Both kinds of layers."""
    guided = call.get("guidance_scale", 7.5) > 1
    reads = set() if settings.get("reposition") == "off" else reading(pipe)
    heard = heard_in(pipe, prompts, cast | settings, **call)
    check_self(heard, story, settings, names(pipe), reads, guided)
    check_cross(heard, story, settings, guided)


# -- the arithmetic of a layer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_layers_are_those_of_a_dense_mask(build: Any, settings: dict[str, Any]) -> None:
    check(build(), PROMPTS, CAST, STORY, settings)


@pytest.mark.parametrize("build", [sd, sdxl])
def test_without_guidance_and_over_several_steps(build: Any) -> None:
    for branch in ("both", "cond"):
        check(build(), PROMPTS, CAST, STORY, {"branch": branch}, guidance_scale=1.0, steps=2)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m"])
def test_schedulers_that_call_the_model_otherwise(name: str) -> None:
    """Heun's calls it twice a step: each evaluation draws anew."""
    pipe = sd()
    pipe.scheduler = scheduler(name, pipe)
    check(pipe, PROMPTS, CAST, STORY, {}, steps=3)


def test_of_several_images_of_a_prompt_each_reads_its_own_portrait() -> None:
    story: Story = {
        copy: [Shown(LEFT, 2 + copy, MIDDLE), Shown(RIGHT, 4 + copy, CORNER)]
        for copy in range(2)  # scene scene cat cat dog dog
    }
    check(sd(), PROMPTS, CAST, story, {}, num_images_per_prompt=2)
    twice: Story = {place: [Shown(LEFT, 2, MIDDLE), Shown(RIGHT, 3, CORNER)] for place in (0, 1)}
    check(sd(), [SCENE, SCENE, CAT, DOG], CAST, twice, {})  # the first again where there are not enough


@pytest.mark.parametrize("build", [sd, sdxl])
def test_two_scenes_with_other_subjects_boxes_and_masks(build: Any) -> None:
    """The second names no dog; the third, with a layout of its own, has a subject without portrait."""
    high: Region = Region(word="cat", mask=CORNER)
    third = "a dog and a frog"
    regions = (
        (Region(word="cat", box=LEFT), Region(word="dog", box=RIGHT)),
        (),
        (high,),
        (Region(word="dog", box=(0.5, 0.1, 0.9, 0.6)), Region(word="frog", box=(0.0, 0.5, 0.4, 1.0))),
        (),
    )
    concepts = (("cat", "dog"), ("cat",), ("cat",), ("dog", "frog"), ("dog",))
    story: Story = {
        0: [Shown(LEFT, 1, MIDDLE), Shown(RIGHT, 4, CORNER)],
        2: [Shown(CORNER, 1, MIDDLE)],
        3: [Shown((0.5, 0.1, 0.9, 0.6), 4, CORNER), Shown((0.0, 0.5, 0.4, 1.0))],
    }
    cast = CAST | {"layout": regions, "concepts": concepts}
    check(build(), [SCENE, CAT, UNNAMED, third, DOG], cast, story, {"ref_dropout": 0.2})


def test_a_subject_that_a_scene_does_not_name_stays_out_of_it() -> None:
    cast = CAST | {"layout": (Region(word="cat", box=LEFT),)}
    check(sd(), [UNNAMED, CAT, DOG], cast, {0: [Shown(LEFT, 1, MIDDLE)]}, {})


def test_three_subjects() -> None:
    """At two cells a side the second and the third share one: it is the first of them's."""
    boxes = ((0.0, 0.0, 0.34, 1.0), (0.34, 0.0, 0.67, 1.0), (0.67, 0.3, 1.0, 1.0))
    prompts, wide = [CAT, "a cat and a dog and a frog", FROG, DOG], (0.1, 0.1, 1.0, 0.6)
    cast = {
        "subjects": (*CAST["subjects"], Subject(name="frog", prompt=FROG, box=wide)),
        "layout": tuple(Region(word=word, box=box) for word, box in zip(("cat", "dog", "frog"), boxes, strict=True)),
    }
    shown = [Shown(boxes[0], 0, MIDDLE), Shown(boxes[1], 3, CORNER), Shown(boxes[2], 2, wide)]
    check(sd(), prompts, cast, {1: shown}, {"isolation": 0.8})


@pytest.mark.parametrize("size", [{"height": 56, "width": 40}, {"height": 24, "width": 72}], ids=str)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_odd_sizes_that_are_not_square(build: Any, size: dict[str, int]) -> None:
    """Maps of 14 x 10, 7 x 5, 4 x 3, 2 x 2; and of 6 x 18 and so on."""
    subjects = (Subject(name="cat", prompt=CAT, box=MIDDLE), Subject(name="dog", prompt=DOG, box=(0.1, 0.0, 1.0, 0.5)))
    story: Story = {0: [Shown(LEFT, 1, MIDDLE), Shown(RIGHT, 2, (0.1, 0.0, 1.0, 0.5))]}
    for settings in ({}, {"aspect": "fit"}):
        check(build(), PROMPTS, CAST | {"subjects": subjects}, story, settings, **size)


@pytest.mark.parametrize("build", [sd, sdxl])
def test_layers_are_chosen_apart_for_keeping_apart_and_for_reading(build: Any) -> None:
    pipe = build()
    for own, apart, reads in (
        ({"layers": ("down",)}, names(pipe, "down_blocks"), reading(pipe)),
        ({"ref_layers": ("mid",)}, names(pipe), names(pipe, "mid_block")),
        (
            {"layers": ("down",), "ref_layers": ("down", "up")},
            names(pipe, "down_blocks"),
            names(pipe, "down", "up_blocks"),
        ),
        ({"layers": ("up",), "ref_layers": ("down", "mid")}, names(pipe, "up"), names(pipe, "down_blocks", "mid")),
    ):
        heard = heard_in(pipe, PROMPTS, CAST | own)
        check_self(heard, STORY, {}, apart, reads)
        check_cross(heard, STORY, {})
    for field in ("layers", "ref_layers"):
        with pytest.raises(NoLayerMatched, match="cross"):
            heard_in(pipe, PROMPTS, CAST | {field: ("up.*.cross",)})


@pytest.mark.parametrize(("family", "layers", "up", "first"), [("sdxl", 70, 34, 36), ("sd", 16, 7, 10)])
def test_published_layers_of_the_real_models(family: str, layers: int, up: int, first: int) -> None:
    """SDXL's 70 from number 36 on, and SD's 16 from number 10 on, in the order in which they run."""
    made = [
        Layer(address="", module="", kind=kind, block="up" if order >= up else "mid", stride=1, order=order, heads=1)
        for order in range(layers)
        for kind in ("self", "cross")
    ]
    found = published_reading_layers(family, made)  # type: ignore[arg-type]
    assert [each.order for each in found] == list(range(first, layers)) and {each.kind for each in found} == {"self"}


@pytest.mark.parametrize("aspect", ["stretch", "fit"])
def test_resampled_positions_are_those_of_a_pasted_crop(aspect: Any) -> None:
    dice, compared = generator(1), 0
    for _ in range(200):
        height, width = (int(torch.randint(1, 24, (1,), generator=dice)) for _ in range(2))
        target, source = (torch.rand(height, width, generator=dice) < 0.1 for _ in range(2))
        if target.any() and source.any():
            found = resampled_positions(target, source, aspect).tolist()
            assert found == resampled(target, source, aspect)
            if aspect == "stretch":
                assert found == nearest_of_torch(target, source)
            compared += 1
    assert compared > 100


# -- the draws --------------------------------------------------------------------------------------------------------


def draws(prompts: list[str] = PROMPTS, **settings: Any) -> dict[Any, Tensor]:
    own = {"layout": (Region(word="cat", box=LEFT), Region(word="dog", box=RIGHT))}
    return heard_in(sd(), prompts, CAST | own | settings, steps=2).draws


def test_draws_are_a_share_of_the_positions_and_new_in_each_step_and_size() -> None:
    for share in (0.0, 0.25, 0.5, 1.0):
        found = draws(ref_dropout=share)
        assert {(key[1], key[2]) for key in found} == set(itertools.product((0, 1), ((16, 16), (8, 8))))
        dropped = torch.cat([~each for each in found.values()]).float().mean()
        assert abs(float(dropped) - share) < 0.06  # four standard deviations of 1280 draws
    fine = draws()
    first, second, small = fine[0, 0, (16, 16)], fine[0, 1, (16, 16)], fine[0, 0, (8, 8)]
    assert 0.3 < (first != second).float().mean() < 0.7
    assert 0.2 < (first[:64] != small).float().mean() < 0.8
    assert not torch.equal(first, draws(seed=1)[0, 0, (16, 16)])


def test_draws_do_not_depend_on_what_else_is_in_the_batch() -> None:
    alone, other = draws(), "a dog and a cat"
    beside = draws([other, CAT, SCENE, DOG, SCENE])
    for step in range(2):
        size = (16, 16)
        assert torch.equal(beside[2, step, size], alone[0, step, size])
        assert not torch.equal(beside[4, step, size], alone[0, step, size])  # a second image of the same prompt
        assert not torch.equal(beside[0, step, size], alone[0, step, size])
    assert all(torch.equal(each, alone[key]) for key, each in draws().items())


# -- images ---------------------------------------------------------------------------------------------------------


def noise(rows: int) -> Tensor:
    return torch.randn(rows, 4, 16, 16, generator=generator(5))


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_portraits_and_other_images_stay_as_they_are(build: Any, guidance_scale: float) -> None:
    pipe, prompts = build(), [*PROMPTS, "a red circle and a blue square"]
    call: dict[str, Any] = {"steps": 3, "guidance_scale": guidance_scale, "latents": noise(4)}
    plain, found = run(pipe, prompts, **call), controlled_run(pipe, prompts, CAST, **call)
    assert torch.equal(found[1:], plain[1:])
    assert (found[0] - plain[0]).abs().max() > 0.01


@pytest.mark.parametrize("build", [sd, sdxl])
def test_another_scene_in_the_batch_changes_nothing(build: Any) -> None:
    pipe, latents = build(), noise(4)
    prompts, few = [SCENE, CAT, DOG, "a dog and a cat"], [0, 1, 2]
    plain = run(pipe, prompts, steps=2, latents=latents)
    plain_few = run(pipe, PROMPTS, steps=2, latents=latents[few])
    whole = controlled_run(pipe, prompts, CAST, latents=latents)
    alone = controlled_run(pipe, PROMPTS, CAST, latents=latents[few])
    allowed = 5 * (plain[few] - plain_few).abs().max() + 1e-3
    assert (whole[few] - alone).abs().max() <= allowed
    assert (whole[0] - plain[0]).abs().max() > 10 * allowed and (whole[3] - plain[3]).abs().max() > 10 * allowed
    order = [3, 2, 0, 1]
    turned = controlled_run(pipe, [prompts[each] for each in order], CAST, latents=latents[order])
    assert (turned - whole[order]).abs().max() <= allowed


def test_strength_is_continuous_from_the_plain_image() -> None:
    pipe = sd(dtype=torch.float64)
    plain = run(pipe, PROMPTS, steps=2)
    context = PlanContext(
        adapter=find_adapter(pipe),
        prompts=tuple(t2ictl.parse(pipe, each) for each in PROMPTS),
        batch=BatchLayout.from_counts(prompts=3, images_per_prompt=1, guided=True),
    )
    assert IsolationReposition(**CAST, strength=0.0).plan(context) == Plan()
    assert torch.equal(controlled_run(pipe, PROMPTS, CAST | {"strength": 0.0}), plain)
    moved = [float((controlled_run(pipe, PROMPTS, CAST | {"strength": s}) - plain).abs().max()) for s in (1e-5, 1e-4)]
    assert 0 < moved[0] < 1e-3 and 8 < moved[1] / moved[0] < 12
    whole = controlled_run(pipe, PROMPTS, CAST)
    near = controlled_run(pipe, PROMPTS, CAST | {"strength": 1 - 1e-9})
    assert (near - whole).abs().max() < 1e-5 < 1e-2 < (whole - plain).abs().max()


@pytest.mark.parametrize("window", [Window(start=0.3, stop=0.6), Window(start=0.6, stop=0.3, by="noise")])
def test_outside_of_the_window_all_layers_are_the_plain_ones(window: Window) -> None:
    """Of four evaluations that is the third one; their noise levels are .81, .62, .41 and .04."""
    pipe = sd()
    heard = heard_in(pipe, PROMPTS, CAST | {"window": window}, steps=4)
    for layer in heard.layers:
        if layer.step != 2 or layer.size != (2, 2):  # nothing to do where all of them fit into two cells
            assert torch.equal(layer.out, layer.plain) == (layer.step != 2), layer.name
    late = controlled_run(pipe, PROMPTS, CAST | {"window": Window(start=0.9)}, steps=3)
    assert torch.equal(late, run(pipe, PROMPTS, steps=3))


def test_pure_isolation_and_pure_reading() -> None:
    pipe = sd()
    off = {"reposition": "off", "cross": 0.0}
    heard = heard_in(pipe, PROMPTS, CAST | off)
    check_self(heard, STORY, off, names(pipe), set())
    assert not heard.draws and all(torch.equal(each.out, each.plain) for each in heard.of("cross"))
    alone = {"layout": CAST["layout"], "concepts": ("cat", "dog")}  # without portraits nothing else is done
    found = controlled_run(pipe, SCENE, alone, latents=noise(1))
    with_them = controlled_run(pipe, PROMPTS, CAST | off, latents=noise(3)[[0, 0, 0]])
    torch.testing.assert_close(with_them[:1], found, rtol=0, atol=2e-3)
    found_objects = controlled_run(pipe, SCENE, {"layout": CAST["layout"], "concepts": ()}, latents=noise(1))
    assert (found_objects - run(pipe, SCENE, steps=2, latents=noise(1))).abs().max() > 1e-3
    heard = heard_in(pipe, PROMPTS, CAST | {"isolation": 0.0, "cross": 0.0})
    check_self(heard, STORY, {"isolation": 0.0}, reading(pipe), reading(pipe))
    for layer in heard.of("self"):
        assert layer.name in reading(pipe) or torch.equal(layer.out, layer.plain)


def assigned(prompt: str, *names_: str, **settings: Any) -> SubjectAssignment:
    """Who is where in a scene after the portraits of some subjects."""
    subjects = tuple(Subject(name=name, prompt=f"photo of a {name}") for name in names_)
    here = context(sd(max_length=32), *(each.prompt for each in subjects), prompt)
    arguments = {"concepts": (), "layout": (), **settings}
    return SubjectAssignment.from_context(subjects, context=here, control="x", **arguments)


def test_a_subject_is_found_behind_a_longer_name() -> None:
    found = assigned("a teddy bear and a bear", "bear", "teddy bear", layout=(Region(word="bear", box=LEFT),))
    bear, teddy = found.rows[-1]
    assert (bear.text, teddy.text) == ("bear", "teddy bear") and not {*bear.tokens} & {*teddy.tokens}
    assert [each.name for each in found.subjects[-1] if each] == ["bear", "teddy bear"]
    assert [region is not None for region in found.regions[-1]] == [True, False]


def test_subjects_that_are_one_word_are_refused() -> None:
    with pytest.raises(BadSetting, match="'cat' and 'cat#1' share words"):
        assigned("a cat and a dog", "cat", "cat#1")
    with pytest.raises(BadSetting, match="'cat' and 'cat' share words"):
        assigned("a cat and a dog", "cat", "dog", concepts=("cat", "cat"))
